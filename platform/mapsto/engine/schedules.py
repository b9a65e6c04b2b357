"""Learning rate as a factor of the optimizer's `lr`, by optimizer step from 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ..config.optimizing import PlateauSchedule, Schedule

Factor = Callable[[int], float]


def factor(schedule: Schedule, steps_per_epoch: int, steps: int) -> Factor:
    """Step (0 ≤ s < steps) → factor. Warmup climbs linearly to 1 over its share of all steps; step s has (s+1)/n of
    it, so that no step is wasted at 0. `cosine` spans the steps after warmup (Loshchilov and Hutter, SGDR, arXiv
    1608.03983, without restarts). `plateau` is 1 here: Plateau multiplies it."""
    if schedule.kind == "one_cycle":
        one_cycle = schedule
        peak = one_cycle.peak * steps
        return lambda s: (
            one_cycle.start + (1 - one_cycle.start) * s / peak
            if s < peak
            else 1 + (one_cycle.final - 1) * (s - peak) / max(steps - peak, 1)
        )
    warm = round(schedule.warmup * steps)
    after = _after_warmup(schedule, steps_per_epoch, steps, warm)
    return lambda s: (s + 1) / warm if s < warm else after(s)


def _after_warmup(schedule: Schedule, steps_per_epoch: int, steps: int, warm: int) -> Factor:
    if schedule.kind == "step":
        every, gamma = schedule.every * steps_per_epoch, schedule.gamma
        return lambda s: gamma ** (s // every)
    if schedule.kind == "exponential":
        rate = schedule.gamma
        return lambda s: rate ** (s // steps_per_epoch)
    if schedule.kind == "cosine":
        final, length = schedule.final, max(steps - warm, 1)
        return lambda s: final + (1 - final) * (1 + math.cos(math.pi * (s - warm) / length)) / 2
    return lambda s: 1.0


class Plateau:
    """Multiply the learning rate by `factor` after more than `patience` evaluations without improvement."""

    def __init__(self, schedule: PlateauSchedule, mode: Literal["max", "min"]) -> None:
        self.schedule, self.mode = schedule, mode
        self.best: float | None = None
        self.bad = 0
        self.factor = 1.0

    def update(self, value: float) -> None:
        better = self.best is None or (value > self.best if self.mode == "max" else value < self.best)
        self.best, self.bad = (value, 0) if better else (self.best, self.bad + 1)
        if self.bad > self.schedule.patience:
            self.factor, self.bad = self.factor * self.schedule.factor, 0

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "bad": self.bad, "factor": self.factor}

    def load(self, state: dict[str, Any]) -> None:
        self.best, self.bad, self.factor = state["best"], state["bad"], state["factor"]
