"""Static int8 quantization by ONNX Runtime: QDQ nodes, ranges calibrated on training rows."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
Method = Literal["minmax", "entropy", "percentile"]


def to_int8(
    model: bytes,
    calibration: Iterable[Mapping[str, np.ndarray]],
    *,
    per_channel: bool = True,
    method: Method = "minmax",
) -> bytes:
    """Float ONNX → int8 ONNX with the same inputs and outputs.

    `calibration`: batches of the model's inputs, as the runtime would get them. Activations become uint8, weights
    int8 (7 bits where the processor has no VNNI, whose 8-bit products saturate: ONNX Runtime, "Quantize ONNX
    models"). What lies before the first convolution or product (pixels to normalised floats) stays in float: a pixel's
    own 8 bits would be rounded twice there.
    """
    import onnx
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    methods = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        plain, prepared, out = (Path(folder) / name for name in ("float.onnx", "prepared.onnx", "int8.onnx"))
        plain.write_bytes(model)
        # Its symbolic shape inference gives up at a resize (YOLO, feature pyramids); the exporter wrote the shapes already.
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        ort.quantize_static(
            str(prepared),
            str(out),
            _reader(calibration),
            quant_format=ort.QuantFormat.QDQ,
            per_channel=per_channel,
            reduce_range=not _has_vnni(),
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            nodes_to_exclude=before_compute(onnx.load(str(prepared))),
            calibrate_method=ort.CalibrationMethod[methods[method]],
        )
        return out.read_bytes()


def before_compute(model: Any) -> list[str]:
    """Names of the nodes that feed the first convolutions or products of an ONNX ModelProto and follow none."""
    tainted: set[str] = set()
    early: list[str] = []
    for node in model.graph.node:
        after = any(name in tainted for name in node.input)
        if after or node.op_type in COMPUTE:
            tainted.update(node.output)
        else:
            early.append(node.name)
    return early


def _reader(batches: Iterable[Mapping[str, np.ndarray]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator[Mapping[str, np.ndarray]] = iter(batches)

        def get_next(self) -> Any:
            batch = next(self._batches, None)
            return None if batch is None else dict(batch)

    return Reader()


def _has_vnni() -> bool:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    return "vnni" in text or "asimddp" in text


@contextmanager
def _quiet() -> Generator[None]:
    """ONNX Runtime's quantizer warns on the root logger that models could be pre-processed: ours is."""
    root = logging.getLogger()
    level = root.level
    try:
        root.setLevel(logging.ERROR)
        yield
    finally:
        root.setLevel(level)
