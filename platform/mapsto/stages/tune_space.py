"""The recipe's search space: what a trial's settings are drawn from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import UserError

if TYPE_CHECKING:
    from ..config.schema import Space, TuneConfig
    from .tune_trial import Trial

Overrides = dict[str, Any]
"""Dotted path → value."""


def draw(config: TuneConfig) -> list[Overrides]:
    """Every trial of a grid or random search, in order: trial i depends on the seed and i only."""
    if config.search == "grid":
        return grid(config.space)
    found = []
    for number in range(config.trials):
        rng = np.random.default_rng([config.seed, number])
        found.append({path: sample(space, rng) for path, space in config.space.items()})
    return found


def grid(space: Mapping[str, Space]) -> list[Overrides]:
    """All combinations, the last path varying fastest. UserError for a range of real numbers, which has no grid."""
    axes = []
    for path, each in space.items():
        if each.kind == "choice":
            axes.append(each.values)
        elif each.kind == "integers":
            axes.append(list(range(each.low, each.high + 1)))
        else:
            raise UserError(
                f"tune.space.{path}: a grid needs choices or integers, not {each.kind}; list the values, or search: random"
            )
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]


def sample(space: Space, rng: np.random.Generator) -> Any:
    if space.kind == "uniform":
        return float(rng.uniform(space.low, space.high))
    if space.kind == "loguniform":
        return float(np.exp(rng.uniform(math.log(space.low), math.log(space.high))))
    if space.kind == "integers":
        return int(rng.integers(space.low, space.high, endpoint=True))
    return space.values[int(rng.integers(len(space.values)))]


def optuna_search(
    config: TuneConfig, metric: str, mode: str, finished: Sequence[Trial], interrupted: Sequence[Trial]
) -> Any:
    """Optuna's TPE sampler, told of the trials that an earlier run of this sweep finished; it begins with those that
    were interrupted."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {path: _optuna(each) for path, each in config.space.items()}
    # TPE with one seed would draw the same again after a resume
    sampler = optuna.samplers.TPESampler(seed=config.seed + len(finished))
    search = OptunaSearch(
        space, metric=metric, mode=mode, sampler=sampler, points_to_evaluate=[t.overrides for t in interrupted] or None
    )
    for each in finished:
        if each.value is not None and math.isfinite(each.value):
            search.add_evaluated_point(each.overrides, each.value)
    return search


def _optuna(space: Space) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if space.kind == "choice":
        return CategoricalDistribution(space.values)
    if space.kind == "integers":
        return IntDistribution(space.low, space.high)
    return FloatDistribution(space.low, space.high, log=space.kind == "loguniform")
