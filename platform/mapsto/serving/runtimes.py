"""Model runtimes: one way to run any saved model, float or compressed, from numpy arrays to numpy arrays.

evaluate, predict, compress and serve use nothing else. Each runtime imports its own library when it is opened, so an
ONNX replica never pays for torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from ..core.artifact import Artifact
from ..core.errors import BrokenModel, UserError
from ..core.registry import load_task
from ..core.sample import Arrays, Geometry, Prediction, Sample
from ..core.task import Task, direct


class Runtime(Protocol):
    """A model ready to answer. `run` may be called from any thread, one call at a time."""

    task: Task
    variant: dict[str, Any]
    """`kind` (torch, onnx), `file`, `precision` (fp32, bf16, int8), as in `variant.json`."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Inputs by the names that `task.inputs` gives (`image`: N×H×W×3 uint8), exactly those; outputs by the names
        that `task.forward` gives, float ones as float32, N rows each."""
        ...


def open_runtime(artifact: Artifact, threads: int = 1, device: str = "cpu") -> Runtime:
    """Open the model of a train or compress artifact. UserError when there is none, or the device cannot run it."""
    if not artifact.storage.exists(artifact.path("variant.json")):
        raise UserError(f"{artifact.uri}: no model here (variant.json is missing); give a train or compress artifact")
    variant = artifact.read_json("variant.json")
    return open_variant(load_task(artifact), variant, artifact.read(variant["file"]), threads, device)


def open_variant(
    task: Task, variant: Mapping[str, Any], model: bytes, threads: int = 1, device: str = "cpu"
) -> Runtime:
    """The same from a model file's bytes; `threads`: CPU threads of one call."""
    if variant["kind"] == "torch":
        return TorchRuntime(task, variant, model, threads, device)
    if variant["kind"] == "onnx":
        return OnnxRuntime(task, variant, model, threads, device)
    raise UserError(f"a model of kind '{variant['kind']}' is unknown to this mapsto; known: onnx, torch")


ROWS = 64
"""Most rows of one call of a model: an image seen through windows has many."""


def in_parts(run: Callable[[Mapping[str, np.ndarray]], Arrays], inputs: Mapping[str, np.ndarray]) -> Arrays:
    """`run` on at most ROWS rows at a time."""
    count = max((len(value) for value in inputs.values()), default=0)
    if count <= ROWS:
        return run(inputs)
    parts = [run({k: v[start : start + ROWS] for k, v in inputs.items()}) for start in range(0, count, ROWS)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@contextmanager
def threads_kept() -> Generator[None]:
    """Torch's thread count is afterwards as it was before: a TorchRuntime sets it for the whole process."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    try:
        yield
    finally:
        if torch and before:
            torch.set_num_threads(before)


class TorchRuntime:
    """safetensors weights in the task's own module. Sets torch's thread count for the whole process."""

    def __init__(self, task: Task, variant: Mapping[str, Any], model: bytes, threads: int, device: str) -> None:
        import torch
        from safetensors.torch import load

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"device '{device}' was asked for, and torch sees no GPU here; use 'cpu'")
        torch.set_num_threads(threads)
        self.task, self.variant, self._device, self._torch = task, dict(variant), device, torch
        module = task.build({})
        module.load_state_dict(load(model), strict=True)
        self.model = module.to(device).to(memory_format=torch.channels_last).eval()
        self._forward = direct(task)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        return in_parts(self._run, inputs)

    def _run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        torch, bf16 = self._torch, self.variant["precision"] == "bf16"
        with torch.inference_mode(), torch.autocast(self._device.split(":")[0], torch.bfloat16, enabled=bf16):
            tensors = {
                name: torch.from_numpy(np.require(array, requirements="CW")).to(self._device)
                for name, array in inputs.items()
            }
            output = self._forward.forward(self.model, tensors)
            return {name: (v.float() if v.is_floating_point() else v).cpu().numpy() for name, v in output.items()}


class OnnxRuntime:
    """An ONNX model in ONNX Runtime."""

    def __init__(self, task: Task, variant: Mapping[str, Any], model: bytes, threads: int, device: str) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        provider = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise UserError(f"device '{device}' was asked for, and this onnxruntime has no {provider}; use 'cpu'")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Replicas share their machine: waiting threads must not spin on the neighbours' cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.task, self.variant = task, dict(variant)
        self._session = onnxruntime.InferenceSession(model, options, providers=[provider])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        return in_parts(self._run, inputs)

    def _run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        values: Any = self._session.run(self._outputs, dict(inputs))
        return dict(zip(self._outputs, values, strict=True))


def answers(runtime: Runtime, prepared: Sequence[tuple[Sample, Geometry]]) -> list[Prediction]:
    """The answers to prepared requests, one or more, in their order. BrokenModel where one of them is not finite."""
    task = runtime.task
    batch = task.collate([sample for sample, _ in prepared])
    found = [runtime.run(part) for part in task.parts(batch)]
    output = found[0] if len(found) == 1 else {name: np.concatenate([one[name] for one in found]) for name in found[0]}
    return task.decode(output, [geometry for _, geometry in prepared])


def each_answer(runtime: Runtime, prepared: Sequence[tuple[Sample, Geometry]]) -> list[Prediction | BrokenModel]:
    """The same, with a BrokenModel in the place of each answer that is not finite: its half of the requests is asked again, until
    it is alone."""
    if not prepared:
        return []
    try:
        return list(answers(runtime, prepared))
    except BrokenModel as error:
        if len(prepared) == 1:
            return [error]
    half = len(prepared) // 2
    return each_answer(runtime, prepared[:half]) + each_answer(runtime, prepared[half:])
