"""The recipe's search space: what a trial's settings are drawn from, and how a population perturbs them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import UserError

if TYPE_CHECKING:
    from ..config.tuning import Space, TuneConfig

Overrides = dict[str, Any]
"""Dotted path → value."""
ATTEMPTS = 100
"""How often one trial's settings are drawn before its space counts as used up."""
FACTORS = (0.8, 1.2)
"""Of a perturbed number (Jaderberg et al., Population Based Training, arXiv 1711.09846, appendix A)."""


def draw(config: TuneConfig) -> list[Overrides]:
    """Every trial of a grid or random search, in order: trial i depends on the seed, i and those before it only. Settings
    that were drawn before are drawn anew, as long as that gives others: a small space has fewer trials than asked for. (A
    population's members may begin alike.)"""
    if config.search == "grid":
        return grid(config.space)
    found: list[Overrides] = []
    for number in range(config.trials):
        rng = np.random.default_rng([config.seed, number])
        drawn = (sample_all(config.space, rng) for _ in range(ATTEMPTS))
        new = next((each for each in drawn if each not in found), None)
        if new is not None:
            found.append(new)
        elif config.scheduler.kind == "pbt":
            found.append(sample_all(config.space, rng))
    return found


def grid(space: Mapping[str, Space]) -> list[Overrides]:
    """All combinations, the last path varying fastest. UserError for a range of real numbers, which has no grid."""
    rows: list[Overrides] = [{}]
    for path, each in space.items():
        if each.kind == "branch":
            axis = [{path: value, **inner} for value, below in each.options() for inner in grid(below)]
        elif each.kind == "choice":
            axis = [{path: value} for value in each.values]
        elif each.kind == "integers":
            axis = [{path: value} for value in range(each.low, each.high + 1)]
        else:
            raise UserError(
                f"tune.space.{path}: a grid needs choices or integers, not {each.kind}; list the values, or search: random"
            )
        rows = [{**row, **step} for row in rows for step in axis]
    return rows


def sample_all(space: Mapping[str, Space], rng: np.random.Generator) -> Overrides:
    """One trial's settings; of a branch only those that belong to the value drawn."""
    found: Overrides = {}
    for path, each in space.items():
        if each.kind == "branch":
            options = each.options()
            found[path], below = options[int(rng.integers(len(options)))]
            found |= sample_all(below, rng)
        else:
            found[path] = sample(each, rng)
    return found


def sample(space: Space, rng: np.random.Generator) -> Any:
    """A value of a space that is no branch."""
    if space.kind == "uniform":
        return float(rng.uniform(space.low, space.high))
    if space.kind == "loguniform":
        return float(np.exp(rng.uniform(math.log(space.low), math.log(space.high))))
    if space.kind == "integers":
        return int(rng.integers(space.low, space.high, endpoint=True))
    assert space.kind == "choice", space
    return space.values[int(rng.integers(len(space.values)))]


def perturb(
    space: Mapping[str, Space], settings: Mapping[str, Any], resample: float, rng: np.random.Generator
) -> Overrides:
    """A population's next settings: each one drawn anew with probability `resample`, else a number times 0.8 or 1.2 and
    a choice moved to a neighbour; always within the space."""
    return {
        path: sample(each, rng) if rng.random() < resample else _step(each, settings[path], rng)
        for path, each in space.items()
    }


def _step(space: Space, value: Any, rng: np.random.Generator) -> Any:
    up = bool(rng.integers(2))
    if space.kind == "choice":
        place = space.values.index(value) + (1 if up else -1)
        return space.values[min(max(place, 0), len(space.values) - 1)]
    assert space.kind != "branch", space
    moved = value * FACTORS[up]
    if space.kind == "integers":  # at least one further, however small it is
        moved = max(round(moved), value + 1) if up else min(round(moved), value - 1)
    return type(value)(min(max(moved, space.low), space.high))
