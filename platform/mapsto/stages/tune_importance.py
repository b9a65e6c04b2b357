"""Which settings the metric hangs on: PED-ANOVA over a sweep's trials."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config.tuning import TuneConfig
    from .tune_trials import Trial

FEWEST = 10
"""Trials below which a share would be chance: at least two must be among the best quarter, beside as many others."""
BEST = 0.25


def importance(config: TuneConfig, goals: Mapping[str, str], trials: Sequence[Trial]) -> dict[str, float]:
    """Setting → its share (they add up to 1) of what tells the best quarter of the trials, by the first goal, from the
    rest; largest first. Empty where there are too few trials, or nothing tells them apart.

    Watanabe, Bansal and Hutter, PED-ANOVA, arXiv 2304.10255, as Optuna has it; settings of a branch are named with it.
    """
    from optuna.importance import PedAnovaImportanceEvaluator

    from .tune_optuna import study_of

    metric = next(iter(goals))
    study = study_of(config, {metric: goals[metric]}, trials)
    if len(study.trials) < FEWEST:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of being experimental
        found = PedAnovaImportanceEvaluator(target_quantile=BEST).evaluate(study)
    total = sum(found.values())
    if not total > 0:
        return {}
    return {name: value / total for name, value in sorted(found.items(), key=lambda pair: -pair[1])}
