"""Tune: what trials are drawn from, and which is the best."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapsto.config.schema import TuneConfig
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.stages.tune_space import draw
from mapsto.stages.tune_trials import Trial, Trials

SPACE: dict[str, Any] = {
    "train.optimizer.lr": {"kind": "loguniform", "low": 1e-4, "high": 1.0},
    "train.batch_size": {"kind": "integers", "low": 2, "high": 4},
    "train.schedule.kind": {"kind": "choice", "values": ["fixed", "cosine"]},
}


def tune(**settings: Any) -> TuneConfig:
    return TuneConfig(**{"space": SPACE, **settings})


def test_random_trials_do_not_depend_on_how_many_there_are() -> None:
    many = draw(tune(trials=400, seed=3))
    assert draw(tune(trials=5, seed=3)) == many[:5]
    logs = np.log10([t["train.optimizer.lr"] for t in many])
    assert logs.min() >= -4
    assert logs.max() <= 0
    assert abs(logs.mean() + 2) < 3 * (4 / math.sqrt(12)) / 20  # uniform on -4..0, 3 standard errors
    assert {t["train.batch_size"] for t in many} == {2, 3, 4}
    assert {t["train.schedule.kind"] for t in many} == {"fixed", "cosine"}


def test_a_grid_is_every_combination() -> None:
    space = {"a": {"kind": "choice", "values": [1, 2]}, "b": {"kind": "integers", "low": 0, "high": 2}}
    assert draw(tune(search="grid", space=space)) == [{"a": a, "b": b} for a in (1, 2) for b in (0, 1, 2)]
    with pytest.raises(UserError, match=r"tune\.space\.train\.optimizer\.lr: a grid needs choices or integers"):
        draw(tune(search="grid"))


def test_the_best_is_one_that_came_to_its_end(tmp_path: Path) -> None:
    trials = Trials(Artifact(str(tmp_path), Storage()), {"loss": "min"}, lambda line: None, 3)
    for number, (value, uri, failed) in enumerate(
        [(0.5, "a", ""), (0.1, "", ""), (0.4, "b", ""), (0.0, "c", "diverged")], 1
    ):
        trials.found[number] = Trial(number, {}, 3, {"loss": value}, uri, failed, finished=True)
    best = trials.best()
    assert best is not None
    assert best.number == 3
    assert [t["state"] for t in trials.rows()] == ["complete", "stopped early", "complete", "failed"]


def test_a_value_that_is_no_number_comes_back_from_the_record(tmp_path: Path) -> None:
    trials = Trials(Artifact(str(tmp_path), Storage()), {"loss": "min"}, lambda line: None, 3)
    trials.save(Trial(1, {}, 2, {"loss": math.nan}, "a", curve=[(1, 0.5), (2, math.nan)]))
    (again,) = Trials(trials.artifact, {"loss": "min"}, lambda line: None, 3).load()
    assert math.isnan(again.values["loss"]) and again.curve[0] == (1, 0.5) and math.isnan(again.curve[1][1])
