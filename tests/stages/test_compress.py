"""compress: from a trained artifact and a data set to the variants' table and the chosen model."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapsto.config.schema import recipe_model
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.stage import Job
from mapsto.core.storage import Storage
from mapsto.core.task import Task, Unsupported
from mapsto.data.dataset import Dataset
from mapsto.data.feed import Feed
from mapsto.serving.runtimes import OnnxRuntime, TorchRuntime, open_runtime
from mapsto.stages.compress import Compress, evaluate
from mapsto.stages.states import batches

models: Any = SourceFileLoader("saved_models", str(Path(__file__).parents[1] / "serving" / "models.py")).load_module()
ROWS = {"train": 60, "val": 20, "test": 0}


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    root = tmp_path_factory.mktemp("compress")
    task = models.task("classify", model={"name": "resnet10t"})
    return {"model": models.train_artifact(root, task), "data.train": models.dataset(root, ROWS)}


def job(
    tmp_path: Path, parents: dict[str, Artifact], said: list[str], task: dict[str, Any] | None = None, **compress: Any
) -> Job:
    recipe = recipe_model()(
        name="small", root=str(tmp_path), data={"train": {"source": "unused"}}, task=task or {"kind": "classify"},
        compress={"repeats": 5, **compress},
    )  # fmt: skip
    stage, artifact = Compress(), Artifact(str(tmp_path / "small" / "compress" / "f"), Storage())
    return Job(recipe, stage.section(recipe, {}), parents, artifact, Storage(), False, {}, said.append)


def test_every_variant_is_measured_and_the_chosen_one_can_be_opened(
    tmp_path: Path, parents: dict[str, Artifact]
) -> None:
    said: list[str] = []
    made = job(tmp_path, parents, said, max_drop=100, target={"metric": "size_mb"})
    done = Compress().run(made)
    table = made.artifact.read_json("variants.json")
    assert [v["name"] for v in table["variants"]] == ["float", "onnx", "int8"]
    assert table["chosen"] == done.metrics["chosen"] == "int8"
    assert table["rows"] == 20
    assert table["split"] == "val"
    by_name = {v["name"]: v for v in table["variants"]}
    assert by_name["onnx"]["score"] == by_name["float"]["score"]
    assert by_name["int8"]["size_mb"] < 0.4 * by_name["float"]["size_mb"]
    assert all(0 < v["latency_p50_ms"] <= v["latency_p95_ms"] for v in table["variants"])
    runtime = open_runtime(made.artifact)
    assert isinstance(runtime, OnnxRuntime)
    assert runtime.variant["precision"] == "int8"
    assert runtime.run({"image": np.zeros((3, 32, 32, 3), np.uint8)})["logits"].shape == (3, 3)
    assert "int8 has the best size_mb" in made.artifact.read("report.html").decode()
    assert any("differs from float by at most" in line for line in said)


def test_none_within_the_drop_keeps_the_trained_weights(
    tmp_path: Path, parents: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mapsto.compress.quantize as quantize

    monkeypatch.setattr(quantize, "to_int8", lambda model, *a, **k: model)
    made = job(tmp_path, parents, [], steps=[{"kind": "quantize"}], max_drop=0)
    monkeypatch.setattr(
        "mapsto.stages.compress.evaluate",
        lambda runtimes, rows: {n: {"top1": 0.9 - 0.1 * (n == "int8")} for n in runtimes},
    )
    done = Compress().run(made)
    assert done.metrics["chosen"] == "float"
    assert "no variant stays within 0 points" in made.artifact.read_json("variants.json")["reason"]
    assert isinstance(open_runtime(made.artifact), TorchRuntime)
    assert made.artifact.read("model.safetensors") == parents["model"].read("model.safetensors")


def test_accuracy_is_the_metrics_own_over_every_row_once(parents: dict[str, Artifact]) -> None:
    runtime = open_runtime(parents["model"])
    datasets = {"train": Dataset.open(parents["data.train"])}
    found = list(batches(Feed.evaluating(runtime.task, datasets, "train"), "train", 7))
    assert [len(b["row_id"]) for b in found] == [7] * 8 + [4]
    assert np.concatenate([b["row_id"] for b in found]).tolist() == list(range(60))
    scores = evaluate({"a": runtime}, iter(found))["a"]
    right = [
        int(runtime.run({"image": runtime.task.prepare({"image": row["image"]})[0]["image"][None]})["logits"].argmax())
        == row["label"]
        for row in datasets["train"].read("train")
    ]
    assert scores["top1"] == pytest.approx(np.mean(right))


def test_no_val_rows_is_said(tmp_path: Path, parents: dict[str, Artifact]) -> None:
    said: list[str] = []
    without = {**parents, "data.train": models.dataset(tmp_path, {"train": 18, "val": 0})}
    made = job(tmp_path, without, said, steps=[{"kind": "export"}])
    Compress().run(made)
    assert any("no val rows; the variants are compared on training rows" in line for line in said)
    assert made.artifact.read_json("variants.json")["split"] == "train"


def test_the_gan_is_exported_and_not_quantized(tmp_path: Path) -> None:
    said: list[str] = []
    parents = {
        "model": models.train_artifact(tmp_path, models.task("gan")),
        "data.train": models.dataset(tmp_path, {"train": 8, "val": 8}),
    }
    made = job(tmp_path, parents, said, task={"kind": "gan"}, max_drop=1e9)
    Compress().run(made)
    assert [v["name"] for v in made.artifact.read_json("variants.json")["variants"]] == ["float", "onnx"]
    assert any("int8 makes no sense for gan" in line for line in said)


def test_what_cannot_be_exported_says_why(
    tmp_path: Path, parents: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Task, "export", lambda self: Unsupported("it has no fixed shape"))
    monkeypatch.setattr("mapsto.tasks.classify.Classify.export", Task.export)
    with pytest.raises(UserError, match="compress is not supported for classify: it has no fixed shape"):
        Compress().run(job(tmp_path, parents, []))


def test_null_is_one_line(tmp_path: Path) -> None:
    recipe = recipe_model()(
        name="x", root=str(tmp_path), data={"train": {"source": "s"}}, task={"kind": "classify"}, compress=None
    )
    with pytest.raises(UserError, match="compress: the recipe says null"):
        Compress().section(recipe, {})


def test_pictures_are_compared_through_the_trained_models_own_network(tmp_path: Path) -> None:
    task, said = models.task("stylize"), []
    parents = {"model": models.train_artifact(tmp_path, task), "data.train": models.dataset(tmp_path, ROWS)}
    made = job(tmp_path, parents, said, task=task.config.model_dump(), max_drop=100)
    Compress().run(made)
    float_row, onnx = made.artifact.read_json("variants.json")["variants"]
    assert (float_row["name"], onnx["name"]) == ("float", "onnx")  # int8 is skipped: the outputs are pixels
    for name in ("content_loss", "style_loss"):
        assert onnx["metrics"][name] == pytest.approx(float_row["metrics"][name], rel=1e-2)
    assert "s_per_megapixel" in float_row["metrics"]
