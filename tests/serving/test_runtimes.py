"""The same numbers from torch and from ONNX Runtime, and no torch where it is not needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mapsto.compress.export import random_inputs, to_onnx
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.core.task import ExportSpec
from mapsto.serving.runtimes import TorchRuntime, direct, open_runtime, open_variant

from . import models


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, TorchRuntime, ExportSpec, bytes]:
    task = models.task("segment")
    artifact = models.train_artifact(tmp_path_factory.mktemp("model"), task)
    runtime, spec = open_runtime(artifact), task.export()
    assert isinstance(runtime, TorchRuntime)
    assert isinstance(spec, ExportSpec)
    return artifact, runtime, spec, to_onnx(direct(runtime.task).forward, runtime.model, spec)


def test_torch_is_the_model_itself(opened: tuple[Artifact, TorchRuntime, ExportSpec, bytes]) -> None:
    _, runtime, spec, _ = opened
    inputs = random_inputs(spec, 3)
    inputs["image"].flags.writeable = False  # as it comes from the object store
    with torch.inference_mode():
        expected = runtime.model(image=torch.tensor(inputs["image"]))
    found = runtime.run(inputs)
    np.testing.assert_array_equal(found["logits"], expected.numpy())
    assert found["logits"].dtype == np.float32


def test_onnx_runtime_agrees(opened: tuple[Artifact, TorchRuntime, ExportSpec, bytes]) -> None:
    _, runtime, spec, onnx = opened
    other = open_variant(runtime.task, {"kind": "onnx", "file": "model.onnx", "precision": "fp32"}, onnx)
    for rows in (1, 5):
        inputs = random_inputs(spec, rows)
        assert set(other.run(inputs)) == {"logits"}
        np.testing.assert_allclose(other.run(inputs)["logits"], runtime.run(inputs)["logits"], atol=1e-4)


def test_bf16_answers_in_float32(opened: tuple[Artifact, TorchRuntime, ExportSpec, bytes]) -> None:
    artifact, runtime, spec, _ = opened
    half = open_variant(runtime.task, {**runtime.variant, "precision": "bf16"}, artifact.read("model.safetensors"))
    inputs = random_inputs(spec, 2)
    found, full = half.run(inputs)["logits"], runtime.run(inputs)["logits"]
    assert found.dtype == np.float32
    assert not np.array_equal(found, full)
    np.testing.assert_allclose(found, full, atol=0.1)


def test_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no model here \(variant.json is missing\); give a train or compress artifact"
    ):
        open_runtime(Artifact(str(tmp_path / "x" / "train" / "0"), Storage()))


def test_an_absent_device_is_one_line(opened: tuple[Artifact, TorchRuntime, ExportSpec, bytes]) -> None:
    artifact, runtime, _, onnx = opened
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch sees no GPU here"):
            open_runtime(artifact, device="cuda")
        with pytest.raises(UserError, match="no CUDAExecutionProvider"):
            open_variant(runtime.task, {"kind": "onnx", "precision": "fp32"}, onnx, device="cuda")


def test_an_onnx_replica_imports_no_torch(
    opened: tuple[Artifact, TorchRuntime, ExportSpec, bytes], tmp_path: Path
) -> None:
    _, runtime, _, onnx = opened
    artifact = models.train_artifact(tmp_path, runtime.task)
    artifact.write(onnx, "model.onnx")
    artifact.write_json({"kind": "onnx", "file": "model.onnx", "precision": "fp32"}, "variant.json")
    program = f"""
import sys
from mapsto.core.artifact import Artifact
from mapsto.core.storage import Storage
from mapsto.serving.options import Options
from mapsto.serving.runtimes import open_runtime
from mapsto.serving.web import Web
runtime = open_runtime(Artifact({artifact.uri!r}, Storage()))
web = Web(runtime, Options(artifact={artifact.uri!r}, name="m"))
print(web._infer([runtime.task.prepare({{"image": {models.jpeg(0)!r}}})])[0]["mask"].shape, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "(40, 48) False"
