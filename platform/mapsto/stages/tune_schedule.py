"""When trials are stopped, and what a population's worst go on from: by the recipe's settings."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler, MedianStoppingRule, PopulationBasedTraining, TrialScheduler

from .tune_halving import Halving
from .tune_space import perturb

if TYPE_CHECKING:
    from ..config.tuning import PopulationScheduler, TuneConfig
    from .tune_trials import Trial


def scheduler_of(config: TuneConfig, metric: str, mode: str, epochs: int) -> TrialScheduler:
    """The recipe's scheduler for trials of `epochs` epochs, with its metric set."""
    given = config.scheduler
    if given.kind == "none":
        return FIFOScheduler()
    if given.kind == "pbt":
        return Population(given, config, metric, mode)
    grace = min(given.grace, epochs)
    if given.kind == "median":
        return MedianStoppingRule("epoch", metric, mode, grace_period=grace, min_samples_required=given.samples)
    brackets = int(math.log(epochs / grace, given.reduction) + 1e-9) + 1 if given.kind == "hyperband" else 1
    return Halving(config.seed, metric, mode, grace, epochs, given.reduction, brackets)


class Population(PopulationBasedTraining):
    """Ray's, with settings that stay within the space, by the recipe's seed; a member keeps its number."""

    def __init__(self, given: PopulationScheduler, config: TuneConfig, metric: str, mode: str) -> None:
        logging.getLogger("ray.tune.schedulers.pbt").setLevel(logging.WARNING)
        super().__init__(
            "epoch",
            metric,
            mode,
            perturbation_interval=given.every,
            quantile_fraction=given.quantile,
            custom_explore_fn=lambda settings: settings,  # see _get_new_config
            log_config=False,
            synch=given.synchronous,
        )
        self._space, self._resample, self._rng = config.space, given.resample, np.random.default_rng(config.seed)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result.get("uri") or result.get("failed"):
            return TrialScheduler.CONTINUE  # it has come to its end: nothing to go on from
        return super().on_trial_result(tune_controller, trial, result)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        found = super().choose_trial_to_run(tune_controller)
        live = tune_controller.get_live_trials()
        if found is None and self._synch and live and all(trial.status == "PAUSED" for trial in live):
            self._go_on(tune_controller)  # whom they waited for has failed, and Ray asks at reports only
            found = super().choose_trial_to_run(tune_controller)
        return found

    def _go_on(self, tune_controller: Any) -> None:
        """What a report does that finds all members at the moment of exchange."""
        worst, best = self._quantiles()
        trials = tune_controller.get_trials()
        for trial in best + [t for t in trials if t not in best and t not in worst] + worst:
            state: Any = self._trial_state[trial]
            state.last_perturbation_time = max(state.last_perturbation_time, self._next_perturbation_sync)
            self._checkpoint_or_exploit(trial, tune_controller, best, worst)
        reached = max(self._trial_state[trial].last_train_time for trial in trials)
        self._next_perturbation_sync = max(self._next_perturbation_sync + self._perturbation_interval, reached)

    def _checkpoint_or_exploit(
        self, trial: Any, tune_controller: Any, upper_quantile: Any, lower_quantile: Any
    ) -> None:
        if trial in lower_quantile and trial not in upper_quantile:  # Ray draws the donor without a seed
            upper_quantile = [upper_quantile[int(self._rng.integers(len(upper_quantile)))]]
        super()._checkpoint_or_exploit(trial, tune_controller, upper_quantile, lower_quantile)

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        own, donor = trial.config["trial"], trial_to_clone.config["trial"]
        overrides = perturb(self._space, donor["overrides"], self._resample, self._rng)
        return {"trial": {**own, "overrides": overrides, "donor": donor["member"], "turn": own["turn"] + 1}}, {}


class Earlier:
    """A trial of an earlier run of the sweep, as schedulers know one."""

    def __init__(self, number: int) -> None:
        self.trial_id = f"earlier-{number}"


def recall(scheduler: TrialScheduler, metric: str, before: Sequence[Trial]) -> None:
    """Tell a new scheduler what the trials of an interrupted sweep were measured at, epoch by epoch."""
    controller: Any = None
    if isinstance(scheduler, Halving):
        scheduler.recall(before)
    elif isinstance(scheduler, MedianStoppingRule):
        for each in before:
            trial: Any = Earlier(each.number)
            for epoch, value in each.curve if each.finished else ():
                scheduler.on_trial_complete(controller, trial, {"epoch": epoch, metric: value})  # which only notes it
