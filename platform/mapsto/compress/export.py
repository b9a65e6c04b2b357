"""A model as ONNX in float32, checked against torch on random inputs."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.sample import Arrays
from ..core.task import ExportSpec

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import nn


Forward = Callable[["nn.Module", dict[str, Any]], Mapping[str, Any]]
"""(model, its inputs by name) → outputs by name: a task's forward."""


def to_onnx(forward: Forward, model: nn.Module, spec: ExportSpec, opset: int = 18) -> bytes:
    """Trace `forward` on `spec.inputs` to one self-contained ONNX file; the first dimension stays dynamic.

    Inputs have the names of `spec.inputs`, outputs those of `spec.outputs`. Weights lie in the file: ONNX Runtime's
    quantization wants them there (so a model is at most 2 GiB).
    """
    import torch

    program = _positional(forward, model, tuple(spec.inputs), spec.outputs).eval()
    # The tracer takes a dimension of 1 for a constant.
    arrays = tuple(torch.from_numpy(np.repeat(value[:1], 2, axis=0)) for value in spec.inputs.values())
    batch = torch.export.Dim("batch", min=1)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            program,
            arrays,
            path,
            dynamo=True,
            external_data=False,
            opset_version=opset,
            verbose=False,
            input_names=list(spec.inputs),
            output_names=list(spec.outputs),
            dynamic_shapes={"arrays": tuple({0: batch} for _ in arrays)},
        )
        return path.read_bytes()


def difference(left: Arrays, right: Arrays) -> float:
    """The largest absolute difference over all outputs; infinite when names or shapes differ."""
    if set(left) != set(right) or any(left[name].shape != right[name].shape for name in left):
        return float("inf")
    return max(
        float(np.abs(left[name].astype(np.float64) - right[name].astype(np.float64)).max(initial=0)) for name in left
    )


def random_inputs(spec: ExportSpec, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs like the specification's: uint8 over 0..255, floats normal, other integers the example's own rows."""
    rng = np.random.default_rng(seed)
    return {name: _like(value, rows, rng) for name, value in spec.inputs.items()}


def _like(value: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
    shape = (rows, *value.shape[1:])
    if value.dtype == np.uint8:
        return rng.integers(0, 256, shape, np.uint8)
    if np.issubdtype(value.dtype, np.floating):
        return rng.standard_normal(shape).astype(value.dtype)
    return value[rng.integers(0, len(value), rows)]


def _positional(forward: Forward, model: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> nn.Module:
    """`forward` as a module of positional inputs and outputs."""
    from torch import nn

    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *arrays: Any) -> tuple[Any, ...]:
            found = forward(self.model, dict(zip(inputs, arrays, strict=True)))
            return tuple(found[name] for name in outputs)

    return Positional()


@contextmanager
def _quiet() -> Generator[None]:
    """The exporter logs its progress and its own deprecations; its errors are exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
