"""What trials are drawn from, with branches; what Optuna, the schedulers and a population make of it; what it hangs on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import TrialScheduler

from mapsto.config.load import load
from mapsto.config.schema import TuneConfig
from mapsto.core.errors import UserError
from mapsto.stages.tune_importance import importance
from mapsto.stages.tune_measure import measure
from mapsto.stages.tune_optuna import Search, described
from mapsto.stages.tune_schedule import Population, scheduler_of
from mapsto.stages.tune_space import draw, perturb
from mapsto.stages.tune_trials import Trial, pareto

LR = "train.optimizer.lr"
BRANCHES: dict[str, Any] = {
    "train.optimizer.kind": {
        "kind": "branch",
        "branches": {
            "sgd": {
                LR: {"kind": "loguniform", "low": 0.1, "high": 1.0},
                "train.optimizer.momentum": {"kind": "choice", "values": [0.0, 0.9]},
            },
            "adamw": {LR: {"kind": "loguniform", "low": 1e-4, "high": 1e-2}},
        },
    },
    "train.batch_size": {"kind": "integers", "low": 2, "high": 4},
}
PLAIN: dict[str, Any] = {LR: {"kind": "loguniform", "low": 1e-3, "high": 1.0}}
RECIPE = """
name: branches
root: /nowhere
data: {train: {source: /nowhere}}
task: {kind: classify, model: {name: airbench_tiny}, image_size: 16}
tune:
  space:
    train.optimizer.kind:
      kind: branch
      branches:
        sgd: {train.optimizer.momentum: {kind: uniform, low: 0, high: %s}}
        adamw: {train.optimizer.lr: {kind: loguniform, low: 1.0e-4, high: 0.01}}
"""


def tune(space: dict[str, Any] = BRANCHES, **settings: Any) -> TuneConfig:
    return TuneConfig(**{"space": space, **settings})


def belongs(trial: dict[str, Any]) -> bool:
    if trial["train.optimizer.kind"] == "sgd":
        return 0.1 <= trial[LR] <= 1.0 and trial["train.optimizer.momentum"] in (0.0, 0.9)
    return 1e-4 <= trial[LR] <= 1e-2 and "train.optimizer.momentum" not in trial


def test_a_branch_brings_its_own_settings_only() -> None:
    drawn = draw(tune(trials=60))
    assert {t["train.optimizer.kind"] for t in drawn} == {"sgd", "adamw"}
    assert all(belongs(t) for t in drawn)


def test_a_grid_walks_each_branch() -> None:
    space = {
        "a": {"kind": "branch", "branches": {"1": {"b": {"kind": "choice", "values": ["x", "y"]}}, "true": {}}},
        "c": {"kind": "integers", "low": 0, "high": 1},
    }
    assert draw(tune(space, search="grid")) == [
        {"a": 1, "b": "x", "c": 0}, {"a": 1, "b": "x", "c": 1}, {"a": 1, "b": "y", "c": 0}, {"a": 1, "b": "y", "c": 1},
        {"a": True, "c": 0}, {"a": True, "c": 1},
    ]  # fmt: skip


def test_a_branchs_mistake_has_its_line() -> None:
    assert load(RECIPE % "0.9").tune is not None
    with pytest.raises(UserError, match=r"recipe:11: tune\.space\.train\.optimizer\.kind.*momentum: 1.5 is too large"):
        load(RECIPE % "1.5")
    with pytest.raises(UserError, match=r"unknown field, did you mean 'momentum'"):
        load((RECIPE % "0.9").replace("optimizer.momentum", "optimizer.momentun"))


def test_optuna_begins_with_the_interrupted_knows_the_finished_and_draws_branches() -> None:
    sgd = {"train.optimizer.kind": "sgd", LR: 0.2, "train.optimizer.momentum": 0.9, "train.batch_size": 2}
    adamw = {"train.optimizer.kind": "adamw", LR: 0.002, "train.batch_size": 3}
    goals = {"top1": "max", "size_mb": "min"}
    done = Trial(1, sgd, values={"top1": 0.5, "size_mb": 3.0})
    broken = Trial(3, adamw, values={"top1": 0.9, "size_mb": 1.0}, failed="diverged")
    search = Search(tune(search="optuna"), goals, [done, broken], [Trial(2, adamw)])
    assert [t.values for t in search.study.trials if t.values] == [[0.5, 3.0]]
    assert search.suggest("a") == {"trial": {"overrides": adamw}}
    search.on_trial_complete("a", {"top1": 0.6, "size_mb": 2.0})
    assert search.study.trials[-1].values == [0.6, 2.0]
    for number in range(20):
        suggested = search.suggest(str(number))
        assert suggested
        drawn = suggested["trial"]["overrides"]
        assert belongs(drawn)
        assert set(described(search.config.space, drawn)) == set(search.study.trials[-1].params)
        search.on_trial_complete(str(number), {"failed": "x", "top1": float("-inf"), "size_mb": float("inf")})
    assert len(search.study.best_trials) == 1  # (0.6, 2.0) beats (0.5, 3.0); failed ones count for nothing


def test_running_trials_of_optuna_have_settings_of_their_own() -> None:
    space = {"train.optimizer.kind": {"kind": "choice", "values": ["sgd", "adamw", "adam"]}}
    search = Search(tune(space, search="optuna", trials=30), {"top1": "max"}, [], [])
    running = [search.suggest(str(number)) for number in range(3)]
    assert len({each["trial"]["overrides"]["train.optimizer.kind"] for each in running if each}) == 3
    tried = len(search.study.trials)
    assert [search.suggest("late") for _ in range(50)] == [None] * 50
    assert len(search.study.trials) <= tried + 11
    for number in range(3):
        search.on_trial_complete(str(number), {"top1": 0.5})
    assert search.suggest("late")  # one of theirs, whose result it finds


def test_settings_of_a_population_stay_within_the_space() -> None:
    space = tune({
        LR: PLAIN[LR],
        "train.clip": {"kind": "uniform", "low": 0.5, "high": 5},
        "task.augment.magnitude": {"kind": "integers", "low": 1, "high": 9},
        "task.augment.flip": {"kind": "choice", "values": [0.0, 0.25, 0.5]},
    }, scheduler={"kind": "pbt"}).space  # fmt: skip
    rng = np.random.default_rng(0)
    first = {LR: 0.9, "train.clip": 1.0, "task.augment.magnitude": 1, "task.augment.flip": 0.25}
    moved = [perturb(space, first, 0.0, rng) for _ in range(50)]
    assert {round(m[LR], 6) for m in moved} == {0.72, 1.0}  # times 0.8, and times 1.2 held at the space's end
    assert {round(m["train.clip"], 6) for m in moved} == {0.8, 1.2}
    assert {m["task.augment.magnitude"] for m in moved} == {1, 2}
    assert {m["task.augment.flip"] for m in moved} == {0.0, 0.5}
    assert len({m[LR] for m in (perturb(space, first, 1.0, rng) for _ in range(50))}) == 50


@pytest.mark.parametrize("path", ["train.batch_size", "task.model.name", "train.optimizer.kind"])
def test_a_population_cannot_change_what_the_weights_hang_on(path: str) -> None:
    with pytest.raises(ValueError, match="cannot change while a model trains"):
        tune({path: {"kind": "choice", "values": ["a", "b"]}}, scheduler={"kind": "pbt"})


def test_objectives_and_a_scheduler_that_stops_by_one_are_refused() -> None:
    with pytest.raises(ValueError, match="the small and quick ones first"):
        tune(objectives={"size_mb": "min"}, scheduler={"kind": "asha"})


def test_a_member_takes_its_donors_settings_and_keeps_its_number() -> None:
    config = tune(PLAIN, scheduler={"kind": "pbt", "resample": 0})
    scheduler = scheduler_of(config, "top1", "max", 4)
    assert isinstance(scheduler, Population)
    own: Any = type("T", (), {"config": {"trial": {"overrides": {LR: 0.001}, "member": 1, "turn": 3, "at": "x"}}})
    donor: Any = type("T", (), {"config": {"trial": {"overrides": {LR: 0.1}, "member": 2, "turn": 0, "at": "y"}}})
    new = scheduler._get_new_config(own, donor)[0]["trial"]
    assert (new["member"], new["donor"], new["turn"]) == (1, 2, 4)
    assert new["overrides"][LR] in (pytest.approx(0.08), pytest.approx(0.12))
    done: Any = {"epoch": 4, "top1": 0.1, "uri": "somewhere"}
    assert scheduler.on_trial_result(None, own, done) == TrialScheduler.CONTINUE  # the end is no time to exploit


class Member:
    """A trial of a population as Ray's scheduler knows one, that has reported."""

    def __init__(self, number: int, status: str = "PAUSED") -> None:
        self.trial_id, self.status, self.experiment_tag = str(number), status, ""
        self.config = {"trial": {"overrides": {LR: 0.1}, "member": number, "turn": 0, "at": ""}}
        self.checkpoint: Any = f"checkpoint {number}"
        self.temporary_state: Any = type("T", (), {"saving_to": None})
        self.evaluated_params: dict[str, Any] = {}
        config = type("C", (), {"num_to_keep": None, "checkpoint_score_attribute": None})
        self.run_metadata: Any = type("R", (), {"checkpoint_manager": type("M", (), {"checkpoint_config": config})})

    def is_finished(self) -> bool:
        return self.status in ("TERMINATED", "ERROR")


class Controller:
    search_alg = None

    def __init__(self, members: list[Member]) -> None:
        self.members = members

    def get_trials(self) -> list[Member]:
        return self.members

    def get_live_trials(self) -> list[Member]:
        return [each for each in self.members if not each.is_finished()]


def test_members_that_waited_for_one_that_failed_go_on() -> None:
    """Ray's synchronous population exchanges only when a report comes in: where the last one to come fails, none does."""
    scheduler: Any = scheduler_of(tune(PLAIN, scheduler={"kind": "pbt", "quantile": 0.5}), "top1", "max", 4)
    members = [Member(number, "RUNNING") for number in range(1, 5)]

    controller: Any = Controller(members)
    exploited: list[tuple[str, str]] = []
    scheduler._exploit = lambda _, mine, donor: exploited.append((mine.trial_id, donor.trial_id))
    for each in members:
        scheduler.on_trial_add(controller, each)
    for each, score in zip(members[:3], (0.3, 0.9, 0.5), strict=True):
        assert scheduler.on_trial_result(controller, each, {"epoch": 1, "top1": score}) == TrialScheduler.PAUSE
        each.status = "PAUSED"
    assert scheduler.choose_trial_to_run(controller) is None  # the fourth is on its way
    failed = {"epoch": 1, "top1": float("-inf"), "failed": "diverged"}
    assert scheduler.on_trial_result(controller, members[3], failed) == TrialScheduler.CONTINUE
    members[3].status = "TERMINATED"
    assert scheduler.choose_trial_to_run(controller) in members[:3]
    assert exploited and all(mine != donor and "4" not in (mine, donor) for mine, donor in exploited)
    assert scheduler.choose_trial_to_run(controller) in members[:3]  # asked again, they are not exchanged again
    assert len(exploited) == 1


def test_a_populations_donors_are_drawn_by_the_recipes_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    def donors(seed: int) -> list[str]:
        scheduler: Any = scheduler_of(tune(PLAIN, scheduler={"kind": "pbt"}, seed=seed), "top1", "max", 4)
        found: list[str] = []
        monkeypatch.setattr(scheduler, "_exploit", lambda _, mine, donor: found.append(donor.trial_id))
        members = [Member(number) for number in range(1, 9)]
        controller: Any = Controller(members)
        for each in members:
            scheduler.on_trial_add(controller, each)
        best, worst = members[:4], members[4:]
        for each in best + worst:
            scheduler._checkpoint_or_exploit(each, controller, best, worst)
        return found

    random.seed(1)
    first = donors(3)
    random.seed(2)
    assert len(first) == 4 and donors(3) == first
    assert any(donors(seed) != first for seed in range(4, 9))


def test_settings_are_not_tried_twice() -> None:
    space = {"train.optimizer.kind": {"kind": "choice", "values": ["sgd", "adamw", "adam"]}}
    drawn = draw(tune(space, trials=8))
    assert sorted(each["train.optimizer.kind"] for each in drawn) == ["adam", "adamw", "sgd"]
    assert draw(tune(space, trials=2)) == drawn[:2]


@pytest.mark.parametrize("path", ["train.epochs", "train.workers"])
def test_what_a_sweep_sets_itself_is_no_part_of_its_space(path: str) -> None:
    with pytest.raises(ValueError, match=f"{path}: every trial .* tune.{path.split('.')[1]}"):
        tune({path: {"kind": "choice", "values": [1, 2]}})


def test_the_front_is_what_nothing_beats() -> None:
    rng = np.random.default_rng(0)
    losses = rng.random((40, 3)).tolist()
    naive = [i for i, a in enumerate(losses) if not any(np.all(np.array(b) <= a) and b != a for b in losses)]
    assert pareto(losses) == naive
    assert pareto([[1, 1], [1, 1], [2, 0], [2, 2]]) == [0, 1, 2]


def test_importance_finds_what_the_metric_hangs_on() -> None:
    space = {**PLAIN, "train.batch_size": {"kind": "integers", "low": 2, "high": 64}}
    config, rng = tune(space, trials=40), np.random.default_rng(1)
    trials = []
    for number, overrides in enumerate(draw(config), 1):
        value = -abs(np.log10(overrides[LR]) + 1.5) + 0.05 * rng.normal()
        trials.append(Trial(number, overrides, values={"top1": float(value)}, uri="u"))
    shares = importance(config, {"top1": "max"}, trials)
    assert next(iter(shares)) == LR
    assert shares[LR] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert importance(config, {"top1": "max"}, trials[:9]) == {}


def test_size_and_latency_are_the_exported_models() -> None:
    from mapsto.core.sample import DatasetInfo
    from mapsto.tasks.classify import Classify, ClassifyConfig

    info = DatasetInfo("memory://", "0", ("a", "b"), {"train": 8}, ("image", "label"))
    config = ClassifyConfig(kind="classify", model={"name": "airbench_tiny"}, image_size=16)  # type: ignore[arg-type]
    task = Classify(config, {"train": info})
    found = measure(task, repeats=5)
    floats = sum(v.numel() * v.element_size() for v in task.build({}).state_dict().values())
    assert floats / 1e6 < found["size_mb"] < floats / 1e6 + 0.02  # safetensors' header
    assert found["latency_p50_ms"] > 0
