"""The processes that train together. A single process is a World of one, without torch.distributed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """Rank `rank` of `size`, computing on `device`. With size > 1 the default process group must be initialised."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def current(cls, device: torch.device | str = "cpu") -> World:
        """The World of the initialised default process group, or of this process alone."""
        if not dist.is_initialized():
            return cls(device=torch.device(device))
        return cls(dist.get_rank(), dist.get_world_size(), torch.device(device))

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add a tensor of one shape over the ranks, in place, without gradient."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy rank 0's tensors over everyone's, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's picklable value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Everyone's picklable values in rank order, on rank 0; an empty list on the others."""
        if self.size == 1:
            return [value]
        if dist.get_backend() == "nccl":  # it has no gather to one rank
            everyone: list[Any] = [None] * self.size
            dist.all_gather_object(everyone, value)
            return everyone if self.rank == 0 else []
        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, found, 0)
        return found or []

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Concatenate over the ranks along dimension 0, with gradient; the ranks' row counts may differ.

        The gradient that reaches a rank's rows is the sum of all ranks' (the derivative of the sum of all losses).
        """
        return tensor if self.size == 1 else _Gather.apply(tensor, self)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, world: World) -> torch.Tensor:
        counts = torch.zeros(world.size, dtype=torch.int64, device=tensor.device)
        counts[world.rank] = tensor.shape[0]
        rows = world.sum(counts).tolist()
        padded = tensor.new_zeros(max(rows), *tensor.shape[1:])
        padded[: tensor.shape[0]] = tensor
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded)
        ctx.world, ctx.rows = world, rows
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = ctx.world.sum(grads[0].contiguous().clone())
        start = sum(ctx.rows[: ctx.world.rank])
        return total[start : start + ctx.rows[ctx.world.rank]], None
