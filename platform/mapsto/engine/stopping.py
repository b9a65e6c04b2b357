"""Early stopping: the end of a run that no longer improves, with the weights of its best evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from ..config.training import EarlyStopConfig


class EarlyStop:
    def __init__(self, config: EarlyStopConfig, mode: Literal["max", "min"]) -> None:
        self.config, self.mode = config, mode
        self.best: float | None = None
        self.bad = 0
        self.weights: dict[str, torch.Tensor] = {}
        """The best evaluation's, on the CPU."""

    @property
    def stopped(self) -> bool:
        return self.bad > self.config.patience

    def update(self, score: float, weights: Mapping[str, torch.Tensor]) -> None:
        """An evaluation's score (a NaN is no improvement) and the weights that were evaluated."""
        sign = 1 if self.mode == "max" else -1
        better = score == score if self.best is None else sign * (score - self.best) > self.config.min_delta
        self.bad = 0 if better else self.bad + 1
        if better:
            self.best = score
            self.weights = {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "bad": self.bad, "weights": self.weights}

    def load(self, state: Mapping[str, Any]) -> None:
        self.best, self.bad, self.weights = state["best"], state["bad"], state["weights"]
