"""The evaluation's page, without Ray: what a generator shows."""

from __future__ import annotations

import base64
import re
from importlib.machinery import SourceFileLoader
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from mapsto.config.schema import EvaluateConfig
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.page import Page
from mapsto.core.storage import Storage
from mapsto.data.dataset import Dataset
from mapsto.stages import evaluate, states
from mapsto.stages.evaluate import Evaluate, ends, resampled
from mapsto.stages.states import complete

models: Any = SourceFileLoader("saved_models", str(Path(__file__).parents[1] / "serving" / "models.py")).load_module()


@pytest.mark.parametrize(("kind", "headings"), [("vae", 3), ("diffusion", 2), ("segment", 0)])
def test_a_generators_images_are_shown(tmp_path: Path, kind: str, headings: int) -> None:
    task = models.task(kind)
    datasets = {"train": Dataset.open(models.dataset(tmp_path, {"train": 4, "val": 6}))}
    ids = np.array([row["row_id"] for row in datasets["train"].read("val")])
    job: Any = SimpleNamespace(parents={"model": models.train_artifact(tmp_path, task)}, section={"split": "val"})
    page = Page("x")
    Evaluate()._showcase(page, job, task, datasets, {"row_id": ids})
    assert page.html().count("<h2>") == page.html().count("<img") == headings


def test_states_that_are_not_of_every_row_once_are_an_error() -> None:
    parts = [{"row_id": np.array(ids), "x": np.array(ids) * 2} for ids in ([3, 1], [2])]
    assert complete(parts, 3)["x"].tolist() == [2, 4, 6]
    for found, count in ((parts, 4), ([*parts, parts[1]], 4)):
        with pytest.raises(RuntimeError, match=r"measured \d rows, 3 different, of a split of 4"):
            complete(found, count)


def test_a_mistaken_row_is_shown_beside_those_likest_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 10 to 15 of three people in turn; row 11's likest is 12, of another, then 14, of its own."""
    data, task = models.dataset(tmp_path, {"train": 10, "test": 6}), models.task("embed")
    angle = np.radians([0.0, 90.0, 94.0, 0.0, 96.0, 180.0])
    states = {"row_id": np.arange(10, 16), "identity": np.arange(10, 16) % 3}
    states["embedding"] = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    assert [k for k, _ in task.metrics().nearest(states, 1)] == [2, 4, 0, 3]
    monkeypatch.setattr(evaluate, "collect", lambda *_: states)
    artifact = Artifact(str(tmp_path / "a" / "evaluate" / "00"), Storage())
    parents = {"model": models.train_artifact(tmp_path, task), "data.train": data}
    job: Any = SimpleNamespace(
        parents=parents, section={"split": "test", "worst": 2}, recipe=SimpleNamespace(evaluate=None), artifact=artifact
    )
    Evaluate().run(job)
    page = artifact.read("report.html").decode().partition("Worst mistakes")[2]
    found = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', page)
    pictures = [cv2.imdecode(np.frombuffer(base64.b64decode(each), np.uint8), cv2.IMREAD_COLOR) for each in found]
    assert [picture.shape for picture in pictures] == [(192 + 22, 5 * 192, 3)] * 2  # with the four likest
    strips = [pictures[0][:180, k * 192 : (k + 1) * 192].astype(int) for k in range(5)]
    assert all(np.abs(a - b).mean() > 5 for a, b in pairwise(strips))


def test_a_classifiers_page_shows_curves_confusion_and_the_worst_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six rows of three classes round; rows 10 and 12 are wrong, 12 by more."""
    data, task = models.dataset(tmp_path, {"train": 10, "test": 6}), models.task()
    truth = np.array([row["label"] for row in Dataset.open(data).read("test")])
    logits = 4.0 * np.eye(3)[truth]
    logits[0], logits[2] = np.roll(logits[0], 1) / 2, np.roll(logits[2], 1)
    monkeypatch.setattr(evaluate, "collect", lambda *_: {"row_id": np.arange(10, 16), "label": truth, "logits": logits})
    artifact = Artifact(str(tmp_path / "a" / "evaluate" / "00"), Storage())
    parents = {"model": models.train_artifact(tmp_path, task), "data.train": data}
    job: Any = SimpleNamespace(
        parents=parents, section={"split": "test", "worst": 5}, recipe=SimpleNamespace(evaluate=None), artifact=artifact
    )
    assert Evaluate().run(job).metrics["top1"] == pytest.approx(4 / 6)
    page = artifact.read("report.html").decode()
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Confusion", "Calibration", "Classes", "Worst mistakes"]
    pictures = [
        cv2.imdecode(np.frombuffer(base64.b64decode(found), np.uint8), cv2.IMREAD_COLOR)
        for found in re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)
    ]
    assert page.count("data:image/svg+xml") == 2  # the two charts
    assert len(pictures) == 2 and all(picture is not None and picture.std() > 5 for picture in pictures)
    names = task.classes
    captions = re.findall(r"<figcaption>(row \d+, in truth \w+)", page)
    assert captions == [f"row 12, in truth {names[truth[2]]}", f"row 10, in truth {names[truth[0]]}"]


def test_intervals_hold_what_was_seen_and_are_the_binomials() -> None:
    """300 rows, 90 % right: the normal approximation of the share's interval is 0.9 ± 1.96 √(0.9·0.1/300)."""
    from mapsto.core.metrics.classification import ClassificationMetrics

    truth = np.arange(300) % 2
    answers = np.where(np.arange(300) % 10 == 0, 1 - truth, truth)
    states = {"row_id": np.arange(300), "label": truth, "logits": 4.0 * np.eye(2)[answers]}
    metrics = ClassificationMetrics(("a", "b"))
    found = ends(resampled(metrics, states, 2000))
    assert found.keys() <= metrics.compute(states).keys()
    np.testing.assert_allclose(found["top1"], [0.9 - 0.0339, 0.9 + 0.0339], atol=0.006)
    assert found == ends(resampled(metrics, states, 2000))


@pytest.mark.parametrize("kind", ["vae", "diffusion"])
def test_rows_that_are_compared_with_each_other_are_not_drawn_anew(tmp_path: Path, kind: str) -> None:
    data, task = models.dataset(tmp_path, {"train": 4, "test": 6}), models.task(kind)
    parents = {"model": models.train_artifact(tmp_path, task), "data.train": data}
    recipe = SimpleNamespace(evaluate=None, task=SimpleNamespace(kind=kind))
    section = {"split": "test", "worst": 5, "resamples": 200}
    job: Any = SimpleNamespace(parents=parents, section=section, recipe=recipe)
    with pytest.raises(UserError, match=f"evaluate.resamples: the metrics of {kind} compare rows with each other"):
        Evaluate().run(job)


@pytest.mark.parametrize(
    ("kind", "asked", "device"), [("torch", 0.5, "cuda"), ("onnx", 0.5, "cpu"), ("torch", 0.0, "cpu")]
)
def test_a_gpu_is_asked_for_where_the_recipe_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, asked: float, device: str
) -> None:
    """No GPU is needed to see what Ray Data is asked for."""

    class Rows:
        def map_batches(self, made: Any, **options: Any) -> Any:
            raise LookupError(options["num_gpus"], options["fn_constructor_args"][2])

    model = Artifact(str(tmp_path), Storage())
    model.write_json({"kind": kind, "file": "model"}, "variant.json")
    feed = SimpleNamespace(streams={"test": {"images": (None, SimpleNamespace(rows=4 if device == "cuda" else 10**6))}})
    monkeypatch.setattr(states.Feed, "evaluating", lambda *given: feed)
    monkeypatch.setattr(states, "bytes_of", lambda feed: {"": 0})
    monkeypatch.setattr(states, "connect", lambda: None)
    room: list[Any] = []
    monkeypatch.setattr(states, "require_cpus", lambda *given, section: room.append((*given, section)))
    monkeypatch.setattr(states, "evaluation_rows", lambda *given: Rows())
    task: Any = None
    with pytest.raises(LookupError) as raised:
        states.collect(model, task, {}, "test", EvaluateConfig(gpus_per_worker=asked))
    assert raised.value.args == (0.5 if device == "cuda" else None, device)
    assert room == [(1, 1.0, 0.5 if device == "cuda" else 0.0, "evaluate")]  # Ray Data would wait for ever
