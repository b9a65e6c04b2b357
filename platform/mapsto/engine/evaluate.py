"""Metrics over all ranks: states gathered by row and computed once, in row order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..core.sample import Batch
from ..core.task import direct
from .batches import to_device, to_numpy, valid_rows
from .world import World

if TYPE_CHECKING:
    from ..core.task import Metrics, Task

States = Mapping[str, np.ndarray]


class Evaluation:
    """One pass over a split: `add` each microbatch of this rank, then `compute` on all ranks together."""

    def __init__(self, task: Task, world: World) -> None:
        self.task, self.world = task, world
        self.metrics: Metrics = task.metrics()
        self.bare = direct(task)
        self.parts: list[dict[str, np.ndarray]] = []

    @torch.no_grad()
    def add(self, model: nn.Module, batch: Batch, autocast: AbstractContextManager) -> None:
        """Run the model, which must be in eval mode, on a numpy batch; rows that are not valid are dropped. Only the model's
        inputs go to the device: truth, such as the originals' masks, stays."""
        keep = valid_rows(batch)
        if not keep.any():
            return
        with autocast:
            output = self.bare.forward(model, to_device(self.task.inputs(batch), self.world.device))
        state = {
            **self.metrics.state(to_numpy(output), batch),
            "row_id": np.asarray(batch["row_id"]),
        }
        self.parts.append(state if keep.all() else {name: value[keep] for name, value in state.items()})

    def compute(self) -> dict[str, float]:
        """The metrics of all ranks' rows, on every rank; empty when no row was evaluated."""
        parts = [part for rank in self.world.gather_objects(self.parts) for part in rank]
        values = self.metrics.compute(in_row_order(parts)) if parts else {}
        self.parts = []
        return self.world.broadcast_object({name: float(value) for name, value in values.items()})


def in_row_order(parts: Sequence[States]) -> dict[str, np.ndarray]:
    """Concatenate parts that each have `row_id` and sort by it: the same arrays however the rows were shared out."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["row_id"], kind="stable")
    return {name: value[order] for name, value in joined.items()}
