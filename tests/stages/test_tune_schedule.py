"""Which trials go on: ASHA and Hyperband, median stopping, what a resumed sweep's scheduler knows, and what Optuna is told of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import TrialScheduler

from mapsto.stages.tune_halving import Halving
from mapsto.stages.tune_optuna import Search
from mapsto.stages.tune_schedule import recall, scheduler_of
from mapsto.stages.tune_trials import Trial

from .test_tune_space import LR, PLAIN, tune


def replay(kind: dict[str, Any], curves: list[list[float]], epochs: int, at_once: int = 1) -> list[int]:
    """Epochs that each trial trained, begun in turn, `at_once` at a time, by a loop like Ray Tune's."""
    return Loop(scheduler_of(tune(PLAIN, scheduler=kind), "top1", "max", epochs), curves, epochs, at_once).run()


class Run(SimpleNamespace):
    """A trial of Ray Tune's."""

    __hash__ = object.__hash__


class Loop:
    """Ray Tune's, as far as schedulers see it."""

    def __init__(self, scheduler: Any, curves: list[list[float]], epochs: int, at_once: int = 1) -> None:
        self.scheduler, self.epochs, self.at_once = scheduler, epochs, at_once
        scheduler.at_once = at_once
        names: dict[str, Any] = {"trial": {"overrides": {}}}
        self.trials: list[Any] = [
            Run(trial_id=str(i), status="RUNNING", curve=c, age=0, config=names) for i, c in enumerate(curves)
        ]
        self.left, self.running, self.search_alg = list(self.trials), list[Any](), self
        self.log: list[tuple[str, int, int]] = []
        """Each epoch: whose, which, and how many were still to begin."""

    def get_live_trials(self) -> list[Any]:
        return []

    def is_finished(self) -> bool:
        return not self.left

    def pause_trial(self, trial: Any, should_checkpoint: bool = True) -> None:
        assert not should_checkpoint
        self.running.remove(trial)

    def stop_trial(self, trial: Any) -> None:
        trial.status = "TERMINATED"
        self.scheduler.on_trial_remove(self, trial)

    def fill(self) -> None:
        halving = isinstance(self.scheduler, Halving)
        while len(self.running) < self.at_once:
            if self.left and (not halving or self.scheduler.room()):
                self.scheduler.on_trial_add(self, chosen := self.left.pop(0))
            elif not halving or (chosen := self.scheduler.choose_trial_to_run(self)) is None:
                return
            self.running.append(chosen)
        assert not halving or not self.scheduler.room()

    def run(self) -> list[int]:
        self.fill()
        while self.running:
            for each in list(self.running):
                each.age += 1
                self.log.append((each.trial_id, each.age, len(self.left)))
                over = each.age == self.epochs
                result = {"epoch": each.age, "top1": each.curve[each.age - 1], "uri": "here" if over else ""}
                answer = self.scheduler.on_trial_result(self, each, result)
                if over or answer == TrialScheduler.STOP:
                    self.running.remove(each)
                    self.scheduler.on_trial_complete(self, each, result)
            self.fill()
        if isinstance(self.scheduler, Halving):
            self.scheduler.choose_trial_to_run(self)
            assert not self.scheduler.waiting  # who waits at the end is stopped
        return [each.age for each in self.trials]


def test_ashas_trials_wait_at_rungs_and_go_on_when_they_belong_to_the_best() -> None:
    def levels(*values: float) -> list[list[float]]:
        return [[value + 0.001 * epoch for epoch in range(9)] for value in values]

    # of three the best goes on
    assert replay({"kind": "asha"}, levels(0.5, 0.1, 0.4), 9) == [9, 1, 1]
    assert replay({"kind": "asha", "grace": 3}, levels(0.5, 0.1, 0.4), 9) == [9, 3, 3]
    # the second waits behind the first, until a fourth has come and two of four may go on
    assert replay({"kind": "asha"}, levels(0.5, 0.4, 0.1, 0.2), 9) == [9, 3, 1, 1]
    # with seven, three come to the second rung: there one goes on of three
    assert replay({"kind": "asha"}, levels(0.5, 0.4, 0.1, 0.2, 0.3, 0.1, 0.1), 9) == [9, 3, 1, 1, 3, 1, 1]
    assert replay({"kind": "asha"}, levels(0.1, 0.2, 0.3, 0.4, 0.5, 0.6), 9, at_once=3)[-1] == 9  # the best comes last


def test_asha_goes_on_where_the_search_has_none_to_give_before_one_that_waits_has_ended() -> None:
    """Optuna of few settings, all of which wait."""
    scheduler: Any = scheduler_of(tune(PLAIN, scheduler={"kind": "asha"}), "top1", "max", 9)
    loop = Loop(scheduler, [[0.5] * 9, [0.4] * 9], 9, at_once=2)
    loop.is_finished = lambda: False  # type: ignore[method-assign]
    assert loop.run() == [9, 1]


def test_few_go_up_while_trials_are_still_to_begin() -> None:
    values = [0.5, 0.4, 0.1, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1]
    loop = Loop(scheduler_of(tune(PLAIN, scheduler={"kind": "asha"}), "top1", "max", 9), [[v] * 9 for v in values], 9)
    assert loop.run() == [9, 3, 1, 1, 3, 1, 1, 1, 1]
    assert all(not left for _, epoch, left in loop.log if epoch > 3)  # one of one is none
    assert [trial for trial, epoch, _ in loop.log if epoch == 2] == ["0", "1", "4"]


def test_a_trial_that_is_begun_anew_keeps_its_bracket_and_its_place() -> None:
    scheduler: Any = scheduler_of(tune(PLAIN, scheduler={"kind": "hyperband"}), "top1", "max", 9)
    loop = Loop(scheduler, [[0.5] * 9] * 8, 9, at_once=9)
    for trial in loop.trials:
        scheduler.on_trial_add(loop, trial)
    held = {trial.trial_id: scheduler._bracket[trial.trial_id] for trial in loop.trials}
    for trial in loop.trials:
        scheduler.on_trial_error(loop, trial)
        scheduler.on_trial_add(loop, trial)
    assert all(scheduler._bracket[name] is bracket for name, bracket in held.items())
    assert not any(rung.left for bracket in scheduler.brackets for rung in bracket)


def test_places_of_trials_that_ray_says_nothing_of_are_free_again() -> None:
    """An actor that could not be reset for them: their status says so alone."""
    scheduler: Any = scheduler_of(tune(PLAIN, scheduler={"kind": "asha"}), "top1", "max", 9)
    loop = Loop(scheduler, [[0.5] * 9, [0.4] * 9], 9)
    scheduler.on_trial_add(loop, loop.trials[0])
    assert not scheduler.room()
    loop.trials[0].status = "ERROR"
    assert scheduler.room()


def test_what_waits_and_could_not_be_stopped_is_stopped_later() -> None:
    scheduler: Any = scheduler_of(tune(PLAIN, scheduler={"kind": "asha"}), "top1", "max", 9)
    loop = Loop(scheduler, [[0.5] * 9, [0.4] * 9], 9)
    loop.run()
    scheduler.waiting, scheduler._working = {"1": loop.trials[1]}, {}
    loop.trials[1].status = "PAUSED"
    stop, loop.stop_trial = loop.stop_trial, lambda trial: scheduler.on_trial_remove(loop, trial)  # type: ignore[method-assign]
    scheduler.choose_trial_to_run(loop)
    assert list(scheduler.waiting) == ["1"]
    loop.stop_trial = stop  # type: ignore[method-assign]
    scheduler.choose_trial_to_run(loop)
    assert not scheduler.waiting and loop.trials[1].status == "TERMINATED"


def test_optuna_knows_each_trial_by_what_it_came_to_last() -> None:
    search = Search(tune(PLAIN, search="optuna", trials=8), {"top1": "max"}, [], [Trial(7, {LR: 0.5})])
    halving: Any = SimpleNamespace(waiting={"a": None}, room=lambda: True)
    search.halving = halving
    settings = {name: search.suggest(name)["trial"]["overrides"][LR] for name in ("a", "b", "c")}  # type: ignore[index]
    assert settings["a"] == 0.5  # the interrupted one
    search.on_trial_result("a", {"top1": 0.2})  # waits now
    search.on_trial_result("b", {"top1": 0.9})  # trains
    search.on_trial_complete("a", {"top1": 0.6})
    search.on_trial_complete("b", {"top1": 0.3})
    search.on_trial_complete("c", {"top1": 0.1, "failed": "diverged"})
    done = [trial for trial in search.study.trials if trial.state.is_finished() and trial.values]
    assert {(trial.params[LR], trial.value) for trial in done} == {(0.5, 0.6), (settings["b"], 0.3)}
    assert search.suggest("d")["trial"]["overrides"][LR] not in settings.values()  # type: ignore[index]


def test_ashas_rungs_compare_the_best_so_far() -> None:
    falls = [0.3, 0.9, 0.2] + [0.95] * 6
    assert replay({"kind": "asha", "grace": 3}, [[0.5] * 9, falls], 9) == [3, 9]  # by its last value it were second
    assert replay({"kind": "asha", "grace": 3}, [falls, [0.5] * 9, [0.6] * 9, [0.95] * 9], 9) == [9, 3, 3, 9]
    assert replay({"kind": "asha", "grace": 3}, [[0.95] * 9, [0.5] * 9, [0.6] * 9, falls], 9) == [9, 3, 3, 9]


def test_a_trial_that_failed_counts_as_the_worst_and_never_goes_on() -> None:
    scheduler: Any = scheduler_of(tune(PLAIN, scheduler={"kind": "asha"}), "top1", "max", 9)
    loop = Loop(scheduler, [[0.5] * 9, [0.4] * 9, [0.3] * 9, [0.2] * 9], 9)
    failed, waits, third, fourth = loop.trials
    loop.left = []
    for each in loop.trials:
        scheduler.on_trial_add(loop, each)
    loop.running = [waits, third, fourth]
    worst = {"epoch": 1, "top1": -np.inf, "failed": "diverged"}
    assert scheduler.on_trial_result(loop, failed, worst) == TrialScheduler.CONTINUE
    scheduler.on_trial_complete(loop, failed, worst)
    assert scheduler.on_trial_result(loop, waits, {"epoch": 1, "top1": 0.4}) == TrialScheduler.CONTINUE
    assert scheduler.on_trial_result(loop, third, {"epoch": 1, "top1": float("nan")}) == TrialScheduler.NOOP
    assert scheduler.on_trial_result(loop, fourth, {"epoch": 1, "top1": 0.2}) == TrialScheduler.CONTINUE  # two of four
    assert scheduler.choose_trial_to_run(loop) is None and not scheduler.room()


def test_an_interrupted_sweep_of_asha_goes_on_where_it_was() -> None:
    lr = [{LR: 0.1 * i} for i in range(1, 6)]
    before = [
        Trial(1, lr[0], 9, {"top1": 0.9}, "u", finished=True, curve=[(e, 0.9) for e in range(1, 10)]),
        Trial(2, lr[1], 1, {"top1": 0.8}, curve=[(1, 0.8)]),  # waited
        Trial(3, lr[2], 0, failed="diverged", finished=True),
        Trial(4, lr[3], 4, {"top1": 0.7}, curve=[(1, 0.5), (3, 0.7), (4, 0.7)]),
    ]
    scheduler: Any = scheduler_of(tune(PLAIN, scheduler={"kind": "asha"}), "top1", "max", 9)
    recall(scheduler, "top1", before)
    first, second = scheduler.brackets[0]
    assert first.values == {"earlier-1": 0.9} and first.left == second.left == {"earlier-1"}
    loop = Loop(scheduler, [[]] * 3, 9, at_once=3)
    loop.left = []
    for each, settings in zip(loop.trials, (lr[1], lr[3], lr[4]), strict=True):
        each.config = {"trial": {"overrides": settings}}
        scheduler.on_trial_add(loop, each)
    assert first.values == {"earlier-1": 0.9, "0": 0.8, "1": 0.5} and second.values == {"earlier-1": 0.9, "1": 0.7}
    assert first.left == {"earlier-1", "1"}  # it was let past the first rung
    loop.running = list(loop.trials)
    waited, went, new = loop.trials
    assert scheduler.on_trial_result(loop, waited, {"epoch": 2, "top1": 0.8}) == TrialScheduler.NOOP
    assert scheduler.on_trial_result(loop, went, {"epoch": 5, "top1": 0.7}) == TrialScheduler.NOOP  # one of two
    assert scheduler.on_trial_result(loop, new, {"epoch": 1, "top1": 0.1}) == TrialScheduler.NOOP
    assert scheduler.choose_trial_to_run(loop) is waited  # now that four have come to the first rung


def test_hyperband_has_a_bracket_that_stops_none_early() -> None:
    scheduler = scheduler_of(tune(PLAIN, scheduler={"kind": "hyperband", "reduction": 3}), "top1", "max", 9)
    assert isinstance(scheduler, Halving)
    assert [[rung.at for rung in bracket] for bracket in scheduler.brackets] == [[1, 3], [3], []]
    worse = [[1.0 - 0.01 * i] * 9 for i in range(40)]
    lengths = replay({"kind": "hyperband", "reduction": 3}, worse, 9)
    assert {1, 3, 9} == set(lengths)
    assert lengths == replay({"kind": "hyperband", "reduction": 3}, worse, 9)  # by its seed


def test_median_stopping_is_the_papers_rule() -> None:
    curves = [[0.4, 0.6], [0.3, 0.3], [0.2, 0.8], [0.35, 0.45], [0.3, 0.5]]
    # of the fifth, after epoch 1: best 0.3 against the median of 0.4, 0.3, 0.2, 0.35, which is 0.325
    assert replay({"kind": "median", "samples": 3}, curves, 2) == [2, 2, 2, 2, 1]
    assert replay({"kind": "median", "samples": 3, "grace": 2}, curves, 2) == [2] * 5
    assert replay({"kind": "median", "samples": 5}, curves, 2) == [2] * 5


@pytest.mark.parametrize("kind", ["asha", "hyperband", "median"])
def test_a_resumed_sweeps_scheduler_knows_the_finished(kind: str) -> None:
    good = [Trial(i, {}, 3, {"top1": 0.9}, "u", finished=True, curve=[(1, 0.8), (2, 0.85), (3, 0.9)]) for i in range(9)]
    held = {}
    for told in (good, []):
        scheduler: Any = scheduler_of(tune(PLAIN, scheduler={"kind": kind}), "top1", "max", 3)
        recall(scheduler, "top1", told)
        loop = Loop(scheduler, [[]] * 6, 3)
        loop.running, loop.left, held[len(told)] = list(loop.trials), [], 0
        for trial in loop.trials:  # bad ones, fewer than the good
            scheduler.on_trial_add(loop, trial)
            action = scheduler.on_trial_result(loop, trial, {"epoch": 1, "top1": 0.1})
            held[len(told)] += action != TrialScheduler.CONTINUE
    assert held[9] >= (1 if kind == "hyperband" else 6)  # hyperband's other bracket stops none after one epoch
    if kind != "hyperband":
        assert held[0] < held[9]  # who comes first goes on
