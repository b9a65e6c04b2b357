"""Optuna's TPE over the recipe's space: several objectives, branches, and what an earlier run of the sweep found.

A parameter's name in the study is its dotted path; within a branch the branch stands before it
(`train.optimizer.kind=sgd/train.optimizer.lr`), so that each branch's range is modelled by itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray.tune.search import Searcher

if TYPE_CHECKING:
    import optuna

    from ..config.tuning import Space, TuneConfig
    from .tune_halving import Halving
    from .tune_trials import Trial

REDRAWS = 10
SCALARS = (str, int, float, bool, type(None))


def study_of(config: TuneConfig, goals: Mapping[str, str], trials: Sequence[Trial]) -> optuna.Study:
    """The measured trials as an Optuna study. `goals`: metric → max or min, the recipe's own first."""
    import optuna
    from optuna.study import StudyDirection as Direction

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = [Direction.MAXIMIZE if mode == "max" else Direction.MINIMIZE for mode in goals.values()]
    # TPE with one seed would draw the same again after a resume
    startup = max(
        3, min(10, config.trials // 4)
    )  # random ones before it models; Optuna's own 10 would be all of a short sweep
    sampler = optuna.samplers.TPESampler(seed=config.seed + len(trials), n_startup_trials=startup)
    study = optuna.create_study(directions=directions, sampler=sampler)
    for each in trials:
        values = [each.values.get(name, math.nan) for name in goals]
        if not each.failed and all(math.isfinite(value) for value in values):
            add(study, config, each.overrides, values)
    return study


def add(study: optuna.Study, config: TuneConfig, overrides: Mapping[str, Any], values: list[float]) -> None:
    """A trial that the study did not ask for."""
    import optuna

    found = described(config.space, overrides)
    study.add_trial(
        optuna.create_trial(
            params={name: value for name, (value, _) in found.items()},
            distributions={name: distribution for name, (_, distribution) in found.items()},
            values=values,
        )
    )


def described(space: Mapping[str, Space], overrides: Mapping[str, Any], above: str = "") -> dict[str, tuple[Any, Any]]:
    """A trial's settings by their names in the study: (value, distribution)."""
    found: dict[str, tuple[Any, Any]] = {}
    for path, each in space.items():
        value, name = overrides[path], above + path
        found[name] = coded(value), distribution(each)
        if each.kind == "branch":
            below = next(inner for option, inner in each.options() if option == value)
            found |= described(below, overrides, f"{name}={value}/")
    return found


def distribution(space: Space) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if space.kind == "branch":
        return CategoricalDistribution([coded(value) for value, _ in space.options()])
    if space.kind == "choice":
        return CategoricalDistribution([coded(value) for value in space.values])
    if space.kind == "integers":
        return IntDistribution(space.low, space.high)
    return FloatDistribution(space.low, space.high, log=space.kind == "loguniform")


def coded(value: Any) -> Any:
    """A value as Optuna's categories take it: lists and mappings as JSON text."""
    return value if isinstance(value, SCALARS) else json.dumps(value)


class Search(Searcher):
    """Asks the study for each trial's settings, the interrupted ones first, and tells it what the trials came to."""

    def __init__(
        self, config: TuneConfig, goals: Mapping[str, str], finished: Sequence[Trial], interrupted: Sequence[Trial]
    ) -> None:
        first = next(iter(goals))
        super().__init__(metric=first, mode=goals[first])
        self.config, self.goals = config, dict(goals)
        self.finished, self.interrupted = list(finished), [each.overrides for each in interrupted]
        self.told: dict[str, tuple[dict[str, Any], list[float]]] = {}
        """What trials came to: settings and values."""
        self.study = study_of(config, goals, finished)
        self._enqueue()
        self.asked: dict[str, optuna.Trial] = {}
        self.running: dict[str, dict[str, Any]] = {}
        """Settings of the trials that were suggested and have not ended."""
        self.held: tuple[optuna.Trial, dict[str, Any]] | None = None
        self.halving: Halving | None = None
        """Says when there is room, where trials may wait."""

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Settings that no running trial has: both would train in one artifact. None where `REDRAWS` draws find none, until that
        one has ended; the second one then finds its artifact, and shares the result."""
        if self.halving and not self.halving.room():
            return None
        asked, drawn = self.held or self._ask()
        for _ in range(0 if self.held else REDRAWS):
            if drawn not in self.running.values():
                break
            self._forget(asked)
            asked, drawn = self._ask()
        self.held = (asked, drawn) if drawn in self.running.values() else None
        if self.held:
            return None
        self.asked[trial_id], self.running[trial_id] = asked, drawn
        if drawn in self.interrupted:
            self.interrupted.remove(drawn)
        return {"trial": {"overrides": drawn}}

    def _ask(self) -> tuple[optuna.Trial, dict[str, Any]]:
        asked = self.study.ask()
        return asked, self._drawn(asked, self.config.space)

    def _forget(self, asked: optuna.Trial) -> None:
        from optuna.trial import TrialState

        self.study.tell(asked, state=TrialState.FAIL)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tell the study of a trial that waits at a rung now: it may come to no more."""
        if self.halving and trial_id in self.halving.waiting:
            self._tell(trial_id, result, failed=False)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._tell(trial_id, result or {}, failed=error)
        self.running.pop(trial_id, None)

    def _tell(self, trial_id: str, result: Mapping[str, Any], *, failed: bool) -> None:
        asked, values = self.asked.pop(trial_id, None), [float(result.get(name, math.nan)) for name in self.goals]
        current = asked is not None and asked.study is self.study
        if failed or result.get("failed") or not all(math.isfinite(value) for value in values):
            if asked is not None and current:
                self._forget(asked)
            return
        again = trial_id in self.told
        if asked is None and not again:
            return
        overrides = self.running[trial_id]
        self.told[trial_id] = overrides, values
        if again:
            self._renew()
        elif asked is not None and current:
            self.study.tell(asked, values)
        else:
            add(self.study, self.config, overrides, values)

    def _renew(self) -> None:
        """A study of what the trials have come to since: Optuna's cannot change what it was told."""
        before, self.study, self.held = self.study, study_of(self.config, self.goals, self.finished), None
        self.study.sampler = before.sampler  # which goes on with its draws
        for overrides, values in self.told.values():
            add(self.study, self.config, overrides, values)
        self._enqueue()

    def _enqueue(self) -> None:
        for overrides in self.interrupted:
            self.study.enqueue_trial({n: value for n, (value, _) in described(self.config.space, overrides).items()})

    def _drawn(self, asked: optuna.Trial, space: Mapping[str, Space], above: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path, each in space.items():
            name = above + path
            if each.kind == "branch" or each.kind == "choice":
                options = each.options() if each.kind == "branch" else [(value, {}) for value in each.values]
                chosen = asked.suggest_categorical(name, [coded(value) for value, _ in options])
                found[path], below = next(pair for pair in options if coded(pair[0]) == chosen)
                found |= self._drawn(asked, below, f"{name}={found[path]}/")
            elif each.kind == "integers":
                found[path] = asked.suggest_int(name, each.low, each.high)
            else:
                found[path] = asked.suggest_float(name, each.low, each.high, log=each.kind == "loguniform")
        return found

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's artifact holds what a resumed one is told."""

    def restore(self, checkpoint_path: str) -> None:
        """See save."""
