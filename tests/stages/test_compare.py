"""Several recipes on one page, without Ray."""

from __future__ import annotations

import base64
import re
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mapsto.config.schema import recipe_model
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.stages.compare import Compared, compare, differences, unlike
from mapsto.stages.pipeline import Pipeline

models: Any = SourceFileLoader("saved_models", str(Path(__file__).parents[1] / "serving" / "models.py")).load_module()


def recipe(name: str, task: Any) -> Any:
    given = task.config.model_dump(mode="json")
    return recipe_model()(name=name, root="/tmp/nowhere", data={"train": {"source": "/tmp/none"}}, task=given)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Recipes of three generators and a classifier, whose models are there."""
    found, recipes = {}, []
    for number, kind in enumerate(("vae", "gan", "diffusion", "classify")):
        task = models.task(kind)
        evaluated = Artifact(str(tmp_path / kind / "evaluate" / "0"), Storage())
        metrics = {"top1": 0.5} if kind == "classify" else {"FD_random_conv": 1.25 + number}
        evaluated.write_json({"split": "test", "rows": 20, "metrics": metrics, "tables": {}}, "metrics.json")
        evaluated.finish(section={}, parents={}, metrics={}, digest="d")
        found[kind] = {"train": models.train_artifact(tmp_path, task, kind), "evaluate": evaluated}
        recipes.append(recipe(f"my-{kind}", task))
    monkeypatch.setattr(Pipeline, "produce", lambda self, name, *_: found[self.recipe.task.kind][name])
    return recipes


def test_generators_stand_side_by_side_and_metrics_in_one_table(made: list[Any], tmp_path: Path) -> None:
    said: list[str] = []
    compare(made, str(tmp_path / "page.html"), said.append)
    page = (tmp_path / "page.html").read_text()
    header, *rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr.*?</tr>", page)]
    assert header == ["recipe", "task", "split", "rows", "FD_random_conv", "top1"]
    assert rows[0] == ["my-vae", "vae", "test", "20", "1.25", "–"] and rows[3][-2:] == ["–", "0.5"]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page) == ["my-vae", "my-gan", "my-diffusion"]
    drawn = re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)
    pictures = [cv2.imdecode(np.frombuffer(base64.b64decode(each), np.uint8), cv2.IMREAD_COLOR) for each in drawn]
    sides = [picture.shape[:2] for picture in pictures if picture is not None]
    assert sides == [(8 * (size + 2) + 2,) * 2 for size in (16, 32, 16)]  # 64 each
    assert "unlike splits" not in page and said == [f"compare: wrote {tmp_path / 'page.html'}"]


def test_unlike_rows_are_told_and_one_recipe_is_no_comparison(made: list[Any], tmp_path: Path) -> None:
    evaluated = Pipeline(made[0]).produce("evaluate")
    evaluated.write_json({"split": "val", "rows": 7, "metrics": {}, "tables": {}}, "metrics.json")
    compare(made[:2], str(tmp_path / "page.html"), lambda line: None)
    assert "unlike splits or numbers of rows" in (tmp_path / "page.html").read_text()
    with pytest.raises(UserError, match="give two recipes at least"):
        compare(made[:1], "page.html")
    with pytest.raises(UserError, match="2 recipes are named 'my-vae'"):
        compare([made[0], made[0]], "page.html")


def test_recipes_of_one_task_that_were_measured_on_other_data_or_pixels_are_told(tmp_path: Path) -> None:
    def compared(name: str, kind: str, data: str, **task: Any) -> Compared:
        section = models.task(kind).config.model_dump(mode="json") | task
        made = recipe_model()(name=name, root="/tmp/nowhere", data={"train": {"source": "/tmp/none"}}, task=section)
        return Compared(made, Artifact(str(tmp_path / name), Storage()), {}, {"data.train": data})

    same = [compared("a", "segment", "0:1"), compared("b", "segment", "0:1"), compared("c", "gan", "0:2")]
    assert unlike(same) == []
    data, pixels = unlike([*same, compared("d", "segment", "0:3", measure_at="input")])
    assert data == (
        "The recipes of segment were measured on unlike data sets: a data.train 0:1, b data.train 0:1, d data.train 0:3."
    )
    assert pixels.endswith("cannot be compared: a original, b original, d input.")


def test_models_of_one_task_are_compared_on_the_same_draws(tmp_path: Path) -> None:
    """The second is right where the first is, and on one row more in twenty."""
    rng = np.random.default_rng(0)
    right = rng.random((2, 200)) < [[0.5], [0.05]]
    picks = rng.integers(0, 200, (1000, 200))

    def compared(name: str, hits: np.ndarray, data: str = "0:1", kind: str = "classify", draws: int = 1000) -> Compared:
        values = {"top1": hits[picks[:draws]].mean(1).tolist()}
        found = {"split": "val", "rows": 200, "metrics": {"top1": float(hits.mean())}}
        return Compared(recipe(name, models.task(kind)), Artifact(str(tmp_path), Storage()), found, {"a": data}, values)

    one, other = compared("one", right[0]), compared("other", right[0] | right[1])
    apart = right[1] & ~right[0]
    (found,) = differences([one, other])
    assert found[:3] == ("one", "other", "top1") and found[3] == pytest.approx(apart.mean())
    assert list(found[4:]) == pytest.approx(np.percentile(apart[picks].mean(1), (2.5, 97.5)).tolist())
    assert found[5] - found[4] < 0.08  # of either alone it is twice as wide
    for unlike_one in (
        compared("c", right[0], data="0:2"),
        compared("d", right[0], kind="segment"),
        compared("e", right[0], draws=500),
    ):
        assert differences([one, unlike_one]) == []


def test_a_metric_without_a_value_has_no_difference(tmp_path: Path) -> None:
    """A value that is not finite is null in metrics.json, and some of its draws may be finite."""

    def compared(name: str, value: float | None) -> Compared:
        found = {"split": "val", "rows": 2, "metrics": {"top1": 0.5, "map": value}}
        draws = {"top1": [0.5] * 200, "map": [0.25, float("nan")] * 100}
        return Compared(recipe(name, models.task()), Artifact(str(tmp_path), Storage()), found, {"a": "0:1"}, draws)

    for one, other in ((None, 0.5), (0.5, None), (None, None)):
        assert [each[2] for each in differences([compared("one", one), compared("other", other)])] == ["top1"]


def test_differences_are_said_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, recipes, task = {}, [], models.task()
    for name, value in (("a", 0.5), ("b", 0.625)):
        evaluated = Artifact(str(tmp_path / name / "evaluate" / "0"), Storage())
        evaluated.write_json({"split": "test", "rows": 20, "metrics": {"top1": value}, "tables": {}}, "metrics.json")
        evaluated.write_json({"top1": [value] * 200, "nothing": [float("nan")] * 200}, "resampled.json")
        evaluated.finish(section={}, parents={}, metrics={}, digest="d")
        found[name] = {"train": models.train_artifact(tmp_path, task, name), "evaluate": evaluated}
        recipes.append(recipe(name, task))
    monkeypatch.setattr(Pipeline, "produce", lambda self, name, *_: found[self.recipe.name][name])
    said: list[str] = []
    compare(recipes, str(tmp_path / "page.html"), said.append)
    assert said[0] == "compare: b less a: top1 +0.1250, 95 % +0.1250 to +0.1250"
    assert "Differences on the same rows" in (tmp_path / "page.html").read_text()
