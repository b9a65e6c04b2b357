"""Small tasks and runs for the engine's tests: no data sets, no Ray."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from mapsto.core.item import Item
from mapsto.core.task import Phase, Task

FEATURES = 6


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """`count` rows of x (FEATURES float32) and y (float32), row_id from 0."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, FEATURES)).astype(np.float32)
    y = (x @ rng.standard_normal(FEATURES) + 0.1 * rng.standard_normal(count)).astype(np.float32)
    return {"x": x, "y": y, "row_id": np.arange(count), "valid": np.ones(count, bool)}


def items(
    data: dict[str, np.ndarray],
    val: dict[str, np.ndarray] | None,
    *,
    batch: int,
    epochs: int,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    start: int = 0,
    evaluate_every: int = 1,
) -> Iterator[tuple[Item, dict[str, np.ndarray]]]:
    """A rank's part of a run: global batches in a shuffled order, each split as evenly as can be."""
    count, parts = len(data["row_id"]), world * accumulate
    steps = -(-count // batch)
    for epoch in range(start, epochs):
        order = np.random.default_rng(epoch).permutation(count)
        for s in range(steps):
            pieces = np.array_split(order[s * batch : (s + 1) * batch], parts)
            for micro in range(rank, parts, world):
                ends = micro + world >= parts
                yield (
                    Item(
                        "train",
                        epoch,
                        epoch * steps + s,
                        micro,
                        ends,
                        ends and s + 1 == steps,
                    ),
                    _take(data, pieces[micro]),
                )
        if val is not None and ((epoch + 1) % evaluate_every == 0 or epoch + 1 == epochs):
            pieces = np.array_split(np.arange(len(val["row_id"])), -(-len(val["row_id"]) // 3))
            pieces += [np.arange(0)] * (-len(pieces) % world)
            for micro in range(rank, len(pieces), world):
                yield (
                    Item(
                        "val",
                        epoch,
                        (epoch + 1) * steps,
                        micro,
                        False,
                        micro + world >= len(pieces),
                    ),
                    _take(val, pieces[micro]),
                )


def _take(data: dict[str, np.ndarray], index: np.ndarray) -> dict[str, np.ndarray]:
    """The rows, or one padding row where there is none."""
    batch = {name: value[index if len(index) else [0]] for name, value in data.items()}
    return batch if len(index) else {**batch, "valid": np.zeros(1, bool)}


class _Error:
    primary, mode = "mse", "min"

    def state(self, output: Any, batch: Any) -> dict[str, np.ndarray]:
        return {"square": (output["y"] - batch["y"]) ** 2}

    def compute(self, states: Any) -> dict[str, float]:
        return {
            "mse": float(states["square"].mean()),
            "rows": float(len(states["square"])),
        }

    def tables(self, states: Any) -> dict[str, Any]:
        return {}


class Regression(Task):
    """Least squares with a hidden layer, dropout and a batch norm where asked."""

    def __init__(self, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__(SimpleNamespace(dropout=dropout, norm=norm), {})

    def build(self, parents: Any) -> nn.Module:
        torch.manual_seed(0)
        middle = nn.BatchNorm1d(8) if self.config.norm else nn.Identity()
        return nn.Sequential(
            nn.Linear(FEATURES, 8),
            middle,
            nn.Tanh(),
            nn.Dropout(self.config.dropout),
            nn.Linear(8, 1),
        )

    def inputs(self, batch: Any) -> dict[str, Any]:
        return {"input": batch["x"]}

    def forward(self, model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        return {"y": model(**self.inputs(batch))[:, 0]}

    def phases(self, model: nn.Module) -> tuple[Phase, ...]:
        return (Phase("train", self.loss),)

    def loss(self, model: nn.Module, batch: Any, context: Any) -> Any:
        each = (self.forward(model, batch)["y"] - batch["y"]) ** 2 * batch["valid"]
        return each.sum(), batch["valid"].sum(), {"square": each.detach().sum()}

    def metrics(self) -> Any:
        return _Error()


class Adversaries(Task):
    """A GAN in miniature: each phase reaches the other's parameters through the model, and only trains its own."""

    def __init__(self) -> None:
        super().__init__(None, {})

    def build(self, parents: Any) -> nn.Module:
        torch.manual_seed(1)
        return nn.ModuleDict(
            {
                "D": nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, 1)),
                "G": nn.Linear(FEATURES, FEATURES),
            }
        )

    def inputs(self, batch: Any) -> dict[str, Any]:
        return {"x": batch["x"]}

    def forward(self, model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        return {"y": model["D"](model["G"](self.inputs(batch)["x"]))[:, 0]}

    def phases(self, model: nn.Module) -> tuple[Phase, ...]:
        return Phase("D", self.d, ("D.",), {"lr": 0.2}), Phase("G", self.g, ("G.",))

    def d(self, model: nn.Module, batch: Any, context: Any) -> Any:
        noise = batch["x"].roll(1, 1)
        score = model["D"](batch["x"]) - model["D"](model["G"](noise).detach())
        return (
            (torch.nn.functional.softplus(-score[:, 0]) * batch["valid"]).sum(),
            batch["valid"].sum(),
            {},
        )

    def g(self, model: nn.Module, batch: Any, context: Any) -> Any:
        score = model["D"](model["G"](batch["x"].roll(1, 1)))[:, 0]
        return (
            (torch.nn.functional.softplus(-score) * batch["valid"]).sum(),
            batch["valid"].sum(),
            {},
        )

    def metrics(self) -> Any:
        return _Error()
