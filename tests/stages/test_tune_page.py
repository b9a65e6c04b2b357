"""The sweep's page: every picture is there, with branches, objectives, failed trials and a single one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mapsto.config.schema import TuneConfig
from mapsto.core.artifact import Artifact
from mapsto.core.chart import Axis
from mapsto.core.storage import Storage
from mapsto.stages.tune_page import page
from mapsto.stages.tune_space import draw
from mapsto.stages.tune_trials import Trial, Trials

from .test_tune_space import BRANCHES


def built(count: int, **settings: Any) -> str:
    config = TuneConfig(space=BRANCHES, trials=count, **settings)
    goals = {"top1": "max", **config.objectives}
    trials = Trials(Artifact("/nowhere", Storage()), goals, print, 2)
    rng = np.random.default_rng(0)
    for number, overrides in enumerate(draw(config), 1):
        values = {name: float(rng.random()) for name in goals}
        curve = [(1, 0.1), (2, values["top1"])]
        trials.found[number] = Trial(number, overrides, 2, values, f"/models/{number}", finished=True, curve=curve)
    trials.found[count + 1] = Trial(count + 1, trials.found[1].overrides, failed="diverged <here>", finished=True)
    best = trials.best()
    assert best is not None
    return page(SimpleNamespace(name="mine", tune=config), trials, best).html()


@pytest.mark.parametrize(
    ("count", "objectives", "pictures"),
    # lr, momentum and batch size against the metric; curves; and from two trials on parallel coordinates, from ten on importance
    [(12, {}, 3 + 1 + 1 + 1), (8, {}, 3 + 1 + 1), (8, {"size_mb": "min", "latency_p50_ms": "min"}, 3 + 1 + 1 + 2)],
)
def test_the_pages_pictures(count: int, objectives: dict[str, str], pictures: int) -> None:
    html = built(count, objectives=objectives)
    assert html.count("data:image/svg+xml;base64,") == pictures
    assert ("Too few trials to say" in html) == (count < 10)
    assert ("●" in html) == bool(objectives)
    assert "diverged &lt;here&gt;" in html


def test_one_trial_has_a_page() -> None:
    assert "best top1" in built(1)


def test_an_axis_places_numbers_by_scale_names_by_rank_and_leaves_gaps() -> None:
    heights, marks = Axis("lr", [0.01, 0.1, None, 1.0], log=True).places()
    np.testing.assert_allclose(heights, [0, 0.5, np.nan, 1])
    assert marks == [(0.0, "0.01"), (1.0, "1")]
    heights, marks = Axis("kind", ["sgd", "adam", "sgd"]).places()
    assert heights == [1.0, 0.0, 1.0]
    assert marks == [(0.0, "adam"), (1.0, "sgd")]
    assert Axis("flip", [False, True]).places()[1] == [(0.0, "False"), (1.0, "True")]
    assert Axis("same", [3, 3]).places() == ([0.0, 0.0], [(0.0, "3")])
