"""The training loop: follows a run's items, whatever their descent, and hands each epoch's record on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..core.errors import UserError
from ..core.item import Item
from ..core.sample import Batch
from ..core.task import Context
from .batches import stager, to_device
from .ema import Ema
from .evaluate import Evaluation
from .freezing import Frozen
from .items import Ended, Timed
from .phases import PhaseTrainer, finite, synchronise_buffers
from .prepare import prepared
from .progress import Progress, forget_held
from .schedules import Plateau, factor
from .stopping import EarlyStop
from .swa import Swa
from .trouble import deterministic, memory
from .world import World

if TYPE_CHECKING:
    from ..config.training import TrainConfig
    from ..core.task import Task

Record = dict[str, float]
"""One epoch: `epoch` (from 1), `step`, `train/loss` and other `train/*`, `lr`, `images_per_s`, `data_wait` (share of
the training time in which no batch was there to compute), `step_seconds`, `seconds`, with fp16 `loss_scale`, and, when it was
evaluated, `val/*`; `time` (seconds since 1970)."""

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Epoch:
    """What `on_epoch` is handed after each epoch, on every rank."""

    record: Record
    last: bool
    """Of the run, or the one after which it was stopped early."""
    score: float | None
    """The task's primary metric on `val`, when this epoch was evaluated."""
    state: Callable[[], dict[str, Any]]
    """The state from which fit goes on after this epoch; equal on all ranks."""

    @property
    def number(self) -> int:
        return int(self.record["epoch"])


@dataclass(frozen=True)
class Midway:
    """What `on_notice` is handed between two steps of an epoch, on every rank."""

    epoch: int
    """Whole epochs done."""
    step: int
    """Optimizer steps done, over all epochs."""
    state: Callable[[], dict[str, Any]]
    """The state from which fit goes on after this step. Rank 0's is the one to save: it has all ranks' running statistics."""
    asked: bool = False
    """Some rank was asked."""


def fit(
    task: Task,
    model: nn.Module,
    config: TrainConfig,
    items: Iterable[tuple[Item, Batch]],
    world: World,
    steps_per_epoch: int,
    resume: dict[str, Any] | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    notice: Callable[[], bool] = lambda: False,
    on_notice: Callable[[Midway], None] = lambda midway: None,
    asked: Callable[[], bool] = lambda: False,
) -> list[Record]:
    """Train `model`, in place, to the end of the run and return the records of all its epochs, resumed ones included.

    `items`: this rank's microbatches of numpy arrays in order, from where `resume` (an Epoch's state, or a Midway's) stands:
    `resume["epoch"]` whole epochs, and `resume["within"]` steps of the next; with SWA from some steps earlier, whose rows are
    only remembered, so that batch norm's statistics are those of a run that was not cut off.

    `notice` (the machine is about to be taken away) is asked after every step, of an epoch's last one once its record is
    made, and answers alike on all ranks; `asked` is asked in every step, and answers for this rank: the ranks tell each
    other. When either is true, `on_notice` is called on all ranks, which may save the state, and may raise to end
    the run. At the end the model holds the weights to keep: the averaged ones with EMA or SWA, those of the best
    evaluation with early stopping. Raises UserError for a loss or weights that are not finite, and for what device or
    model cannot do.
    """
    forget_held()
    with deterministic(config.deterministic), memory():
        timed = Timed(items, stager(world.device))
        trainer = _Fit(task, model, config, timed, world, steps_per_epoch, notice, on_notice, asked)
        trainer.start(resume)
        while not trainer.ended:
            on_epoch(trainer.run_epoch())
            if not trainer.ended:
                trainer.heed()
        trainer.items.close()
        trainer.keep()
    return trainer.history


class _Fit:
    def __init__(
        self,
        task: Task,
        model: nn.Module,
        config: TrainConfig,
        items: Timed,
        world: World,
        steps_per_epoch: int,
        notice: Callable[[], bool],
        on_notice: Callable[[Midway], None],
        asked: Callable[[], bool],
    ) -> None:
        self.task, self.config, self.items, self.world = task, config, items, world
        self.notice, self.on_notice, self.asked = notice, on_notice, asked
        self.ranks: list[dict[str, torch.Tensor]] = []
        """On rank 0, between two steps: every rank's running statistics. At an epoch's end they are equal."""
        self.everyone_asked = False
        """What `asked` answered on any rank, in this step."""
        self.model = prepared(model, config, world)
        self.steps_per_epoch, self.steps = steps_per_epoch, steps_per_epoch * config.epochs
        self.epoch = self.step = 0
        self.lr = 0.0
        """The first phase's, in the step that was taken last."""
        self.history: list[Record] = []
        self.evaluation = Evaluation(task, world)
        self.factor = factor(config.schedule, steps_per_epoch, self.steps)
        mode, schedule = self.evaluation.metrics.mode, config.schedule
        self.plateau = Plateau(schedule, mode) if schedule.kind == "plateau" else None
        self.early_stop = EarlyStop(config.early_stop, mode) if config.early_stop else None

    @property
    def ended(self) -> bool:
        return self.epoch >= self.config.epochs or (self.early_stop is not None and self.early_stop.stopped)

    def autocast(self) -> torch.autocast:
        dtype = AUTOCAST.get(self.config.precision, torch.bfloat16)
        return torch.autocast(self.world.device.type, dtype, enabled=self.config.precision in AUTOCAST)

    def start(self, resume: dict[str, Any] | None) -> None:
        """Set the weights (from the state, or by the task on rank 0 where none are given), then wrap them."""
        if resume is not None:
            self.model.load_state_dict(resume["model"])
            self.epoch, self.step, self.history = resume["epoch"], resume["step"], list(resume["history"])
        elif self.config.init is None:
            _, batch = self.items.peek()  # on every rank: the loader's start is a rendezvous
            if self.world.rank == 0:
                self.task.initialise(self.model, to_device(batch, self.world.device))
        self.world.broadcast([*self.model.parameters(), *self.model.buffers()])
        self.ema = Ema(self.model, self.config.ema) if self.config.ema else None
        self.swa = Swa(self.model, self.config.swa) if self.config.swa else None
        self.frozen = Frozen(self.model, self.config.init)  # thawed by run_epoch, where it is time
        self.phases = [
            PhaseTrainer(phase, self.model, self.config, self.world, self.autocast, self.frozen.until)
            for phase in (self.task.phases(self.model) if self.config.epochs else ())
        ]
        self.progress = Progress([phase.phase.name for phase in self.phases])
        if resume is not None:
            self._load(resume)

    def _load(self, state: dict[str, Any]) -> None:
        for phase in self.phases:
            phase.load(state["optimizers"][phase.phase.name])
        if self.ema:
            self.ema.load(state["ema"]["steps"], state["ema"]["tensors"])
        for name in ("swa", "plateau", "early_stop"):
            if (held := getattr(self, name)) is not None:
                held.load(state[name])
        if state["within"]:
            self.progress.load(state["progress"])
        if ranks := state["ranks"]:
            same = len(ranks) == self.world.size  # else each takes their mean, as at an epoch's end
            for name, value in self._running().items():
                with torch.no_grad():
                    value.copy_(ranks[self.world.rank][name] if same else torch.stack([r[name] for r in ranks]).mean(0))

    def state(self) -> dict[str, Any]:
        """Needs no generator's state: each step seeds its own (see _context)."""
        parts = {name: getattr(self, name) for name in ("ema", "swa", "plateau", "early_stop")}
        return {
            "epoch": self.epoch,
            "step": self.step,
            "within": self.progress.steps,
            "progress": self.progress.state(),
            "history": self.history,
            "model": self.model.state_dict(),
            "ranks": self.ranks,
            "optimizers": {phase.phase.name: phase.state() for phase in self.phases},
            **{name: part.state() if part is not None else None for name, part in parts.items()},
        }

    def run_epoch(self) -> Epoch:
        for phase in self.phases:
            phase.thaw(self.frozen.names(self.epoch))
        self.model.train()
        self.frozen.quiet(self.epoch)
        self._train()
        for phase in (each.phase for each in self.phases):
            if phase.uncounted and not self.progress.tallies[phase.name].count:
                raise UserError(f"train: epoch {self.epoch + 1} taught nothing: {phase.uncounted}")
        record = {"epoch": float(self.epoch + 1), "step": float(self.step), "lr": self.lr, **self.progress.record()}
        if self.config.precision == "fp16" and self.phases:
            record["loss_scale"] = self.phases[0].scaler.get_scale()
        self._check()
        if self.swa and self.swa.config.active(self.epoch, self.config.epochs):
            self.swa.update(self.model)
        score = self._evaluate(record)
        record["time"] = time.time()
        self.epoch += 1
        self.history.append(record)
        self.progress = Progress(list(self.progress.tallies))
        return Epoch(record, self.ended, score, self.state)

    def heed(self) -> None:
        """Let a notice, or what a rank was asked for, be acted on. Raises UserError for weights that are not finite, which are
        not to be saved."""
        noticed, asked, self.everyone_asked = self.notice(), self.everyone_asked, False
        if noticed or asked:
            self._check()
            self.ranks = self.world.gather_objects({n: v.detach().cpu() for n, v in self._running().items()})
            self.on_notice(Midway(self.epoch, self.step, self.state, asked))
            self.ranks = []

    def _check(self) -> None:
        """Raises UserError where the weights are not finite after the step that was taken last; asked on all ranks."""
        if finite(self.model.parameters()):
            return
        for phase in self.phases:
            phase.check(self.step - 1, self.epoch, self.lr)
        raise UserError(
            f"train: the weights are not finite after step {self.step} (epoch {self.epoch + 1}), lr {self.lr:.4g}; lower "
            "train.optimizer.lr, or set train.clip"
        )

    def _train(self) -> None:
        """The epoch's steps, or those that are left of it."""
        progress = self.progress
        if self.swa:
            self.swa.recent.clear()  # batch norm's statistics are of one epoch's rows
            while self.items.peek()[0].step < self.step:  # trained on before the run was resumed
                self.swa.keep(self.items.next()[1])
        progress.seconds += self.items.waited  # for the first batch, which was looked at already
        while progress.steps < self.steps_per_epoch:
            start = time.perf_counter()
            self._step()
            progress.steps += 1
            progress.seconds += time.perf_counter() - start
            progress.waited += self.items.take_waited()
            if progress.steps < self.steps_per_epoch:
                self.heed()

    def _step(self) -> None:
        """One optimizer step of every phase that is due."""
        due = [i for i, phase in enumerate(self.phases) if self.step % phase.phase.every == 0]
        taken: Iterable[tuple[Item, Batch]] = self._taken()
        if len(due) != 1:
            taken = [(item, self.items.staged(batch)) for item, batch in taken]  # several phases read the same batches
        scale = self._scale()
        for i in due:
            phase = self.phases[i]
            sums = phase.step(self._micros(taken, i == due[-1]), self._context(i), scale, self.asked)
            self.progress.tallies[phase.phase.name].add(sums)
            self.everyone_asked |= sums.asked
        if self.ema:
            self.ema.update(self.model)
        self.step += 1
        self.lr = self.phases[0].lr * scale if self.phases else 0.0

    def _scale(self) -> float:
        """The learning rate's factor in this step."""
        swa = self.swa
        if swa and swa.config.lr is not None and swa.config.active(self.epoch, self.config.epochs):
            return swa.config.lr
        return self.factor(self.step) * (self.plateau.factor if self.plateau else 1.0)

    def _micros(self, taken: Iterable[tuple[Item, Batch]], last: bool) -> Iterator[tuple[Batch, bool]]:
        """A phase's microbatches. `last`: once the device has one to compute for the last phase, the next begins its way there."""
        for item, batch in taken:
            yield batch, item.ends_step
            if last:
                self.items.stage_next(item)

    def _taken(self) -> Iterator[tuple[Item, Batch]]:
        swa = self.swa if self.swa and self.swa.config.active(self.epoch, self.config.epochs) else None
        while True:
            item, batch = self.items.next()
            assert (item.split, item.epoch, item.step) == ("train", self.epoch, self.step), (item, self.step)
            if swa:
                swa.keep(batch)
            yield item, batch
            if item.ends_step:
                return

    def _context(self, phase: int) -> Context:
        """Also seeds torch's own generator (dropout), so that a resumed run draws the same numbers."""
        sequence = np.random.SeedSequence([self.config.seed, self.step, self.world.rank, phase])
        own, general = (int(word) for word in sequence.generate_state(2, np.uint64) >> np.uint64(1))
        alike = np.random.SeedSequence([self.config.seed, self.step, phase]).generate_state(1, np.uint32)
        torch.manual_seed(general)
        generator = torch.Generator().manual_seed(own)  # the CPU's: the same numbers on any device
        world = self.world
        return Context(
            self.step, self.epoch, self.steps, generator, world.rank, world.size, world.gather, int(alike[0])
        )

    def _evaluate(self, record: Record) -> float | None:
        """Run this epoch's evaluation when its items come next, and add `val/*` to the record."""
        self._synchronise()
        if not self._evaluated(self.epoch):
            if self.swa and self.epoch + 1 == self.config.epochs:  # before the last checkpoint
                with self.swa.applied(self.model):
                    self._measure_norms()
            return None
        start, self.model = time.perf_counter(), self.model.eval()
        averaging = self.ema or (self.swa if self.swa and self.swa.count else None)
        with averaging.applied(self.model) if averaging else nullcontext():
            self._measure_norms()
            self._evaluate_items()
            values = self.evaluation.compute()
            score = values.get(self.evaluation.metrics.primary)
            if self.early_stop and score is not None:
                self.early_stop.update(score, self.model.state_dict())
        record |= {f"val/{name}": value for name, value in values.items()}
        record["val_seconds"] = time.perf_counter() - start
        self.items.waited = 0.0
        if self.plateau and score is not None and math.isfinite(score):
            self.plateau.update(score)
        return score

    def _synchronise(self) -> None:
        """Running statistics, and their averages, as the mean over the ranks."""
        others = [value for value in self.model.buffers() if not value.is_floating_point()]
        synchronise_buffers([*self._running().values(), *others], self.world)

    def _running(self) -> dict[str, torch.Tensor]:
        """The model's floating buffers, and their averages: what each rank has of its own between two epochs' ends."""
        floating = {n: value for n, value in self.model.named_buffers() if value.is_floating_point()}
        averaged = self.ema.tensors if self.ema else {}
        return {**floating, **{f"average of {n}": averaged[n] for n in floating if n in averaged}}

    def _measure_norms(self) -> None:
        if self.swa and self.swa.count and self.swa.recent:
            self.swa.measure(self.task, self.model, self.world, self.autocast, self.frozen.norms(self.epoch))
            self.swa.norms = {name: value.detach().clone() for name, value in self.model.named_buffers()}

    def _evaluated(self, epoch: int) -> bool:
        """Whether the run has `val` items after this epoch: the next item says so."""
        due = (epoch + 1) % self.config.evaluate_every == 0 or epoch + 1 == self.config.epochs
        if not due:
            return False
        try:
            found = self.items.peek()[0].split == "val"
        except Ended:
            if epoch + 1 == self.config.epochs:
                return False  # the last epoch of a data set without `val`
            raise
        if not found and (self.early_stop or self.plateau):
            what = "early_stop: the data has no rows in `val`, by which to stop"
            if not self.early_stop:
                what = "schedule: the data has no rows in `val`, by which plateau would know one"
            raise UserError(f"train.{what}; set data.<role>.splits.val")
        return found

    def _evaluate_items(self) -> None:
        while True:
            item, batch = self.items.next()
            assert (item.split, item.epoch) == ("val", self.epoch), (item, self.epoch)
            self.evaluation.add(self.model, batch, self.autocast())
            if item.ends_epoch:
                return

    def keep(self) -> None:
        """Leave in the model the weights that the run is for."""
        if self.early_stop and self.early_stop.weights:
            self.model.load_state_dict(self.early_stop.weights)
        elif self.ema:
            self.ema.copy_to(self.model)
        elif self.swa and self.swa.count:
            self.swa.copy_to(self.model)
            if self.swa.norms is None:
                self._measure_norms()
            else:  # measured under these weights already, and saved with them
                self.model.load_state_dict(self.swa.norms, strict=False)
        self.model.eval()
