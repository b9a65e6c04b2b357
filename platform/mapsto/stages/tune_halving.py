"""Asynchronous successive halving, as its paper has it: trials wait at rungs, and the best of those that came there go on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

if TYPE_CHECKING:
    from .tune_trials import Trial


@dataclass
class Rung:
    """Epoch `at`, and who came to it: trial → its best value so far (the higher, the better)."""

    at: int
    reduction: int
    values: dict[str, float] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    """Those that went on."""

    def best(self, *, all_began: bool) -> list[str]:
        """The best 1 / `reduction` of those that came so far; of equals who came first. Rounded down as in the paper, whose
        trials have no end, and up once `all_began`: of few, at least one goes on."""
        count = len(self.values) / self.reduction
        best = sorted(self.values, key=lambda trial: -self.values[trial])
        return best[: math.ceil(count) if all_began else int(count)]


class Halving(FIFOScheduler):
    """ASHA (Li et al., A System for Massively Parallel Hyperparameter Tuning, arXiv 1810.05934, algorithm 2), in one bracket
    or, as Hyperband, in several.

    Ray's own stops a trial at a rung for good, by those that happened to come before it: in some orders that is the best
    one. Here it waits, its state in its artifact, and goes on where it belongs to the best of those that came since. Compared
    is the best value up to the rung: a single epoch's falls and rises. Who waits when all have come is stopped.

    `at_once`: how many train at a time. Ray's limit counts those that wait, so it is kept here and asked for by the search (`room`).
    """

    _supports_buffered_results = False

    def __init__(
        self, seed: int, metric: str, mode: str, grace: int, epochs: int, reduction: int, brackets: int = 1
    ) -> None:
        super().__init__()
        self.measured, self._sign = metric, 1.0 if mode == "max" else -1.0
        self._epochs, self.at_once = epochs, math.inf
        self.brackets = [rungs(grace * reduction**least, epochs, reduction) for least in range(brackets)]
        self._draw = np.random.default_rng(seed)
        self._bracket: dict[str, list[Rung]] = {}
        self._value: dict[str, float] = {}
        """Trial → its best so far."""
        self._known: dict[str, list[tuple[int, float]]] = {}
        """Settings → the curve of an interrupted run of the sweep."""
        self._working: dict[str, Any] = {}
        self.waiting: dict[str, Any] = {}
        """Trials that were paused."""

    @property
    def pauses(self) -> list[int]:
        """After which epochs a trial may have to wait."""
        return sorted({rung.at for bracket in self.brackets for rung in bracket})

    def room(self) -> bool:
        """Whether a new trial may begin: there is a free place, and nobody waits that may take it."""
        return self._free() and self._next(all_began=False) is None

    def recall(self, before: Sequence[Trial]) -> None:
        """What the trials of an interrupted sweep were measured at; those that have not finished go on from there."""
        for each in before:
            if each.finished:
                name = f"earlier-{each.number}"
                self._begin(name)
                for epoch, value in each.curve:
                    self._come(name, epoch, self._signed(value))
            else:
                self._known[settings(each.overrides)] = each.curve

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._working[trial.trial_id] = trial
        if trial.trial_id in self._bracket:  # begun anew after an error
            return
        self._begin(trial.trial_id)
        for epoch, value in self._known.get(settings(trial.config["trial"]["overrides"]), ()):
            self._come(trial.trial_id, epoch, self._signed(value))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        mine = trial.trial_id
        if result.get("failed"):
            self._value.pop(mine, None)
            self._come(mine, self._epochs, -math.inf)
            return TrialScheduler.CONTINUE
        reached, value = self._reached(mine), self._signed(float(result[self.measured]))
        if not reached or mine in reached[-1].left or result.get("uri"):
            self._come(mine, int(result["epoch"]), value)
            reached = self._reached(mine)
        else:  # in an earlier run of the sweep it waited there: whether it goes on is seen now, an epoch later
            self._value[mine] = max(value, self._value[mine])
        if result.get("uri") or not reached or mine in reached[-1].left:
            return TrialScheduler.CONTINUE
        if mine in reached[-1].best(all_began=tune_controller.search_alg.is_finished()):
            reached[-1].left.add(mine)
            return TrialScheduler.CONTINUE
        self._working.pop(mine, None)
        self.waiting[mine] = trial
        tune_controller.pause_trial(trial, should_checkpoint=False)  # its checkpoint is the training's own
        return TrialScheduler.NOOP

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
        self._gone(trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._gone(trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._gone(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Who goes on; new trials begin by themselves, as the search gives them where there is `room`."""
        free, over = self._free(), tune_controller.search_alg.is_finished()
        found = self._next(all_began=over)
        if found is None and not self._working:
            # the search, which Ray asks first, has none to give as long as all wait
            found = self._next(all_began=True)
        if found is not None:
            if not free:
                return None
            rung, mine = found
            rung.left.add(mine)
            self._working[mine] = self.waiting[mine]
            return self.waiting.pop(mine)
        if not self._working:  # one by one while the search goes on: it may wait for the settings of any
            last = sorted(self.waiting, key=lambda mine: (self._reached(mine)[-1].at, self._value[mine]))
            for trial in [self.waiting[mine] for mine in (last if over else last[:1])]:
                tune_controller.stop_trial(trial)
                if trial.status == "PAUSED":  # what hears of it raised
                    self.waiting[trial.trial_id] = trial
        return None

    def debug_string(self) -> str:
        return f"{len(self._working)} train, {len(self.waiting)} wait"

    def _free(self) -> bool:
        """Whether a place is. Of a trial for which a process could not be made ready Ray tells nobody that it ended."""
        for mine, trial in list(self._working.items()):
            if trial.status in ("ERROR", "TERMINATED"):
                del self._working[mine]
        return len(self._working) < self.at_once

    def _reached(self, mine: str) -> list[Rung]:
        return [rung for rung in self._bracket[mine] if mine in rung.values]

    def _begin(self, mine: str) -> None:
        share = np.exp([len(rungs) for rungs in self.brackets])  # the bold brackets hold more trials
        number = int(self._draw.choice(len(share), p=share / share.sum())) if len(share) > 1 else 0
        self._bracket[mine] = self.brackets[number]

    def _come(self, mine: str, epoch: int, value: float) -> None:
        """Note a value, at every rung that is reached with it; who has passed one has left the ones below."""
        value = self._value[mine] = max(value, self._value.get(mine, -math.inf))
        reached = [rung for rung in self._bracket[mine] if rung.at <= epoch]
        for rung in reached:
            rung.values.setdefault(mine, value)
        for rung in reached if epoch >= self._epochs else reached[:-1]:
            rung.left.add(mine)

    def _next(self, *, all_began: bool) -> tuple[Rung, str] | None:
        """Who waits and may go on: from the highest rung that has one, and there the best."""
        rungs = sorted((rung for bracket in self.brackets for rung in bracket), key=lambda rung: -rung.at)
        for rung in rungs:
            for mine in rung.best(all_began=all_began):
                if mine not in rung.left and mine in self.waiting:
                    return rung, mine
        return None

    def _signed(self, value: float) -> float:
        return -math.inf if math.isnan(value) else self._sign * value

    def _gone(self, trial: Any) -> None:
        self._working.pop(trial.trial_id, None)
        self.waiting.pop(trial.trial_id, None)


class Listed(Searcher):
    """Gives the listed trials in turn, each where the scheduler has `room`."""

    def __init__(self, listed: Sequence[dict[str, Any]], halving: Halving) -> None:
        super().__init__(metric="epoch", mode="max")
        self.left, self.halving = list(listed), halving

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        return {"trial": self.left.pop(0)} if self.left and self.halving.room() else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's artifact holds what a resumed one is told."""

    def restore(self, checkpoint_path: str) -> None:
        """See save."""


def rungs(least: int, epochs: int, reduction: int) -> list[Rung]:
    found = []
    while least < epochs:
        found.append(Rung(least, reduction))
        least *= reduction
    return found


def settings(overrides: Mapping[str, Any]) -> str:
    return json.dumps(overrides, sort_keys=True, default=str)
