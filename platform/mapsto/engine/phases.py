"""One optimizer's part of a training step: forward, backward over ranks and microbatches, clip, step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ..core.errors import UserError
from ..core.sample import Batch
from .batches import to_device, valid_rows
from .layers import layer_scales, undecayed
from .optimizers import check_groups, of_phase, optimizer
from .prepare import seen_already
from .world import World

if TYPE_CHECKING:
    from ..config.training import TrainConfig
    from ..core.task import Context, Phase

Autocast = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class Sums:
    """What a step adds up to over all ranks: the loss and the logs in sum over the rows that count, and their number."""

    count: float
    rows: int
    sums: dict[str, float]
    asked: bool = False
    """Whether any rank was asked for something (see fit)."""


class _Loss(nn.Module):
    """The phase's loss as a module's forward: what DDP must wrap, so that every use of the model goes through it."""

    def __init__(self, model: nn.Module, phase: Phase) -> None:
        super().__init__()
        self.model, self.loss = model, phase.loss

    def forward(self, batch: Batch, context: Context) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        return self.loss(self.model, batch, context)


SCALE = 2.0**8
"""Where fp16's loss scale begins: torch's 2 ** 16 is meant for means, and a phase's loss is a sum over its rows."""
LEAST = 1e-4
"""Below it (fairseq's min_loss_scale) steps were left out again and again: the gradient overflows whatever its scale."""


class PhaseTrainer:
    """Trains the parameters of one phase; those that the model itself froze (`requires_grad`) stay as they are, and those
    in `frozen` until `thaw`. The gradient of a step is exactly the derivative of the sum of the losses of all ranks and
    microbatches over their total count, whatever their sizes."""

    def __init__(
        self,
        phase: Phase,
        model: nn.Module,
        config: TrainConfig,
        world: World,
        autocast: Autocast,
        frozen: Mapping[str, float] | None = None,
    ) -> None:
        self.phase, self.model, self.world, self.clip, self.autocast = (
            phase,
            model,
            world,
            config.clip,
            autocast,
        )
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        names = [n for n in trained if n.startswith(tuple(phase.parameters))]
        self.parameters = [trained[n] for n in names]
        if not self.parameters:
            raise ValueError(f"phase {phase.name}: no trained parameter's name begins with one of {phase.parameters}")
        self.others = [p for n, p in trained.items() if n not in set(names)]
        self._held = {n: trained[n] for n in names if n in (frozen or {})}
        check_groups(trained, config.optimizer)
        settings = of_phase(config.optimizer, phase.optimizer)
        decay = settings.layer_decay
        self.optimizer = optimizer(
            zip(names, self.parameters, strict=True),
            settings,
            scales=layer_scales(model, set(names), decay) if decay is not None else None,
            undecayed=undecayed(model),
            apart=frozen,
        )
        self.lr = settings.lr
        self.named = ("weight_decay", "momentum", "nesterov", "betas", *settings.options)
        self.lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(world.device.type, init_scale=SCALE, enabled=config.precision == "fp16")
        self._again = [m for m in model.modules() if config.gradient_checkpointing and isinstance(m, _BatchNorm)]
        """Batch norms that the backward pass may compute a second time."""
        self._before: list[int] = []
        """This rank's rows of the step before."""
        self._wrap()

    def thaw(self, frozen: Collection[str]) -> None:
        """From the next step on train all that was held but what is `frozen` still."""
        if not self._held.keys() <= set(frozen):
            self._held = {name: parameter for name, parameter in self._held.items() if name in frozen}
            self._wrap()

    def _wrap(self) -> None:
        self._select()
        if len(self._held) == len(self.parameters):
            raise UserError(f"train.init.freeze: phase '{self.phase.name}' has nothing left to train")
        loss = _Loss(self.model, self.phase)
        # buffers are the engine's to synchronise; the weights are equal already
        ddp = self.world.size > 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # what is to take its place copies the buffers at the start
            self.loss = DistributedDataParallel(loss, broadcast_buffers=False, init_sync=False) if ddp else loss
        for parameter in (*self.others, *self._held.values()):  # as they were, for the next phase to find
            parameter.requires_grad_(True)

    def _select(self) -> None:
        for parameter in self.others:
            parameter.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        for parameter in self._held.values():
            parameter.requires_grad_(False)

    def step(
        self, micros: Iterable[tuple[Batch, bool]], context: Context, factor: float, asked: Callable[[], bool] = bool
    ) -> Sums:
        """One optimizer step over this rank's microbatches, each with whether it is the last; lr is scaled by
        `factor`. `asked`: this rank's part of the sums' own, at the end of the backward passes. Raises UserError when the loss is not finite."""
        self._select()
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, torch.Tensor] = {}
        suspects: list[int] = []
        rows = 0
        for batch, last in micros:
            part = self._backward(batch, last, context)
            for name, value in part.items():
                totals[name] = totals[name] + value if name in totals else value
            valid = valid_rows(batch)
            rows += int(valid.sum())
            suspects.extend(np.asarray(batch["row_id"])[valid].tolist())
        found = self._share(totals, rows, asked())
        if not math.isfinite(found.sums["loss"]):
            self.check(context.step - 1, context.epoch, self.lr * factor)
            mine = [] if math.isfinite(float(totals["loss"])) else suspects
            self._stop("loss", mine, context.step, context.epoch, self.lr * factor)
        self._before = suspects
        self._apply(found.count, factor, context.shared)
        if self.scaler.is_enabled() and self.scaler.get_scale() < LEAST:
            self._stop("gradient", suspects, context.step, context.epoch, self.lr * factor)
        if self.phase.after_step is not None:
            with torch.no_grad():
                self.phase.after_step(self.model, context)
        return found

    def _backward(self, batch: Batch, last: bool, context: Context) -> dict[str, torch.Tensor]:
        """Add a microbatch's gradient; only the last one's backward talks to the other ranks."""
        alone = isinstance(self.loss, DistributedDataParallel) and not last
        with self.loss.no_sync() if alone else nullcontext():  # type: ignore[union-attr]
            with self.autocast():
                total, count, logs = self.loss(to_device(batch, self.world.device), context)
            with seen_already(self._again):
                self.scaler.scale(total.float()).backward()
        return {
            "loss": total.detach(),
            "count": count.detach(),
            **{f"log/{k}": v.detach() for k, v in logs.items()},
        }

    def _share(self, totals: dict[str, torch.Tensor], rows: int, asked: bool) -> Sums:
        """Add the step's sums over the ranks, in one small message."""
        names = sorted(totals)
        mine = torch.stack([torch.as_tensor(totals[n], device=self.world.device).double().reshape(()) for n in names])
        vector = torch.cat([mine, mine.new_tensor([float(rows), float(asked)])])
        values = self.world.sum(vector).tolist()
        sums = dict(zip(names, values[:-2], strict=True))
        return Sums(
            sums.pop("count"),
            int(values[-2]),
            {n.removeprefix("log/"): v for n, v in sums.items()},
            values[-1] > 0,
        )

    def _apply(self, count: float, factor: float, seed: int) -> None:
        """DDP leaves the mean over ranks of the gradients of sums: make it the gradient of the global mean, and step. An optimizer
        that draws (kron) has torch's own generator with the `seed` that all ranks share."""
        self.scaler.unscale_(self.optimizer)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_mul_(grads, self.world.size / max(count, 1.0))
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        for group, lr in zip(self.optimizer.param_groups, self.lrs, strict=True):
            group["lr"] = lr * factor
        torch.manual_seed(seed)
        self.scaler.step(self.optimizer)  # without fp16 the optimizer's own; with it, none where a gradient overflowed
        self.scaler.update()

    def check(self, step: int, epoch: int, lr: float) -> None:
        """Raises UserError where the step that was taken last, number `step` of `epoch` at rate `lr`, left weights that are not
        finite: its loss was, its gradient was not. All ranks, whose weights are alike, ask together."""
        if not finite(self.parameters):
            self._stop("gradient", self._before, step, epoch, lr)

    def _stop(self, what: str, rows: list[int], step: int, epoch: int, lr: float) -> NoReturn:
        everyone = self.world.broadcast_object([r for part in self.world.gather_objects(rows) for r in part])
        shown = ", ".join(map(str, everyone[:8])) + (f", ... ({len(everyone)} rows)" if len(everyone) > 8 else "")
        raise UserError(
            f"train: the {what} of phase '{self.phase.name}' is not finite at step {step} (epoch {epoch + 1}), lr {lr:.4g}, "
            f"rows {shown}; lower train.optimizer.lr, or set train.clip"
            f"{', or train.precision: bf16' if self.scaler.is_enabled() else ''}"
        )

    def state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """What another run saved: its moments, with this run's own settings (a population's differ)."""
        settings = [
            {name: group[name] for name in self.named if name in group} for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


@torch.no_grad()
def finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether all numbers are."""
    norms = torch._foreach_norm([tensor.detach() for tensor in tensors])
    return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())


def synchronise_buffers(tensors: Iterator[torch.Tensor] | Iterable[torch.Tensor], world: World) -> None:
    """Make buffers equal on all ranks: the mean of floating ones (running statistics), rank 0's of the others."""
    if world.size == 1:
        return
    for tensor in tensors:
        if tensor.is_floating_point():
            world.sum(tensor.detach()).div_(world.size)
        else:
            world.broadcast([tensor])
