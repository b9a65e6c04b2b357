"""Export and quantization of a small convolutional net, against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from mapsto.compress.export import difference, random_inputs, to_onnx
from mapsto.compress.measure import latencies
from mapsto.compress.quantize import before_compute, to_int8
from mapsto.core.task import ExportSpec
from mapsto.models.normalize import Normalized
from mapsto.models.views import Views

SPEC = ExportSpec({"image": np.zeros((2, 16, 16, 3), np.uint8)}, ("logits",))


def net() -> nn.Module:
    torch.manual_seed(3)
    block = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU()
    )
    net = nn.Sequential(block, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 5))
    return Normalized(net, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)).eval()


def forward(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    return {"logits": model(inputs["image"])}


class Session:
    def __init__(self, model: bytes) -> None:
        self.session = onnxruntime.InferenceSession(model)

    def run(self, inputs: Any) -> dict[str, np.ndarray]:
        return {"logits": np.asarray(self.session.run(["logits"], dict(inputs))[0])}


@pytest.fixture(scope="module")
def exported() -> bytes:
    return to_onnx(forward, net(), SPEC)


def test_export_answers_as_torch_does_at_any_batch_size(exported: bytes) -> None:
    model, session = net(), Session(exported)
    for rows in (1, 2, 7):
        inputs = random_inputs(SPEC, rows, seed=rows)
        with torch.inference_mode():
            expected = model(torch.from_numpy(inputs["image"])).numpy()
        np.testing.assert_allclose(session.run(inputs)["logits"], expected, atol=1e-5)


def test_a_mirrored_classifier_is_exported_with_its_mirror() -> None:
    torch.manual_seed(5)
    core = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 256, 5))
    model = Normalized(Views(core), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)).eval()
    session = Session(to_onnx(forward, model, SPEC))
    for rows in (1, 4):
        inputs = random_inputs(SPEC, rows, seed=rows)
        with torch.inference_mode():
            expected = model(torch.from_numpy(inputs["image"])).numpy()
        found = session.run(inputs)["logits"]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        turned = session.run({"image": np.ascontiguousarray(inputs["image"][:, :, ::-1])})["logits"]
        np.testing.assert_allclose(found, turned, atol=1e-5)


def test_the_exported_file_is_whole_and_takes_bytes(exported: bytes) -> None:
    graph = onnx.load_from_string(exported).graph
    assert [i.name for i in graph.input] == ["image"]
    assert [o.name for o in graph.output] == ["logits"]
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert not any(t.external_data for t in graph.initializer)


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_int8_stays_near_and_is_smaller(exported: bytes, method: Any) -> None:
    quantized = to_int8(exported, [random_inputs(SPEC, 16, seed) for seed in range(4)], method=method)
    inputs = random_inputs(SPEC, 64, seed=99)
    expected, found = Session(exported).run(inputs)["logits"], Session(quantized).run(inputs)["logits"]
    noise = np.abs(found - expected).mean() / np.abs(expected - expected.mean(0)).mean()
    assert noise < 0.35
    weights = {t.data_type for t in onnx.load_from_string(quantized).graph.initializer if len(t.dims) == 4}
    assert weights == {onnx.TensorProto.INT8}


def test_normalisation_stays_in_float(exported: bytes) -> None:
    graph = onnx.load_from_string(exported).graph
    early = before_compute(onnx.load_from_string(exported))
    kinds = [node.op_type for node in graph.node if node.name in early]
    assert "Cast" in kinds
    assert "Transpose" in kinds
    assert not {"Conv", "Gemm", "Relu"} & set(kinds)


def test_difference() -> None:
    a = {"x": np.array([1.0, 2.0])}
    assert difference(a, {"x": np.array([1.0, 2.5])}) == 0.5
    assert difference(a, {"y": np.array([1.0, 2.0])}) == float("inf")
    assert difference({"x": np.array([0], np.uint8)}, {"x": np.array([255], np.uint8)}) == 255


def test_random_inputs_have_the_kind_of_the_examples() -> None:
    spec = ExportSpec(
        {"a": np.zeros((2, 3), np.uint8), "z": np.zeros((1, 4), np.float32), "c": np.array([3, 3])}, ("y",)
    )
    inputs = random_inputs(spec, 5)
    assert inputs["a"].shape == (5, 3)
    assert inputs["a"].dtype == np.uint8
    assert inputs["a"].max() > 100
    assert inputs["z"].dtype == np.float32
    assert inputs["z"].shape == (5, 4)
    assert inputs["c"].tolist() == [3] * 5


class Counting:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def run(self, inputs: Any) -> dict[str, np.ndarray]:
        self.log.append(self.name)
        return {}


def test_variants_take_turns() -> None:
    log: list[str] = []
    timings = latencies({n: Counting(n, log) for n in "abc"}, {"x": np.zeros((4, 1))}, repeats=6)
    measured = log[-18:]
    assert [measured[i] for i in range(0, 18, 3)] == list("abcabc")
    assert all(measured.count(n) == 6 for n in "abc")
    assert timings["a"].calls == 6
    assert timings["a"].latency_p50_ms <= timings["a"].latency_p95_ms
    assert timings["b"].throughput == pytest.approx(4e3 / timings["b"].latency_p50_ms)


def test_slow_models_stop_at_the_budget() -> None:
    assert (
        latencies({"a": Counting("a", [])}, {"x": np.zeros((1, 1))}, repeats=100_000, budget_s=0.01)["a"].calls
        < 100_000
    )
