"""The training loop: follows a run's items, whatever their descent, and hands each epoch's record on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..core.item import Item
from ..core.sample import Batch
from ..core.task import Context
from .batches import to_device
from .ema import Ema
from .evaluate import Evaluation
from .phases import PhaseTrainer, Sums, synchronise_buffers
from .schedules import Plateau, factor
from .world import World

if TYPE_CHECKING:
    from ..config.schema import TrainConfig
    from ..core.task import Task

Record = dict[str, float]
"""One epoch: `epoch` (from 1), `step`, `train/loss` and other `train/*`, `lr`, `images_per_s`, `data_wait` (share of
the training time in which no batch was there), `seconds`, and, when it was evaluated, `val/*`; `time` (seconds since 1970)."""


@dataclass(frozen=True)
class Epoch:
    """What `on_epoch` is handed after each epoch, on every rank."""

    record: Record
    epochs: int
    score: float | None
    """The task's primary metric on `val`, when this epoch was evaluated."""
    state: Callable[[], dict[str, Any]]
    """The state from which fit goes on after this epoch; equal on all ranks."""

    @property
    def number(self) -> int:
        return int(self.record["epoch"])

    @property
    def last(self) -> bool:
        return self.number == self.epochs


def fit(
    task: Task,
    model: nn.Module,
    config: TrainConfig,
    items: Iterable[tuple[Item, Batch]],
    world: World,
    steps_per_epoch: int,
    resume: dict[str, Any] | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Record]:
    """Train `model`, in place, to the end of the run and return the records of all its epochs, resumed ones included.

    `items`: this rank's microbatches of numpy arrays in order, from the beginning of the first epoch that `resume` (an
    Epoch's state) has not finished. At the end the model holds the weights to keep (the averaged ones with EMA).
    """
    trainer = _Fit(task, model, config, _Timed(items), world, steps_per_epoch)
    trainer.start(resume)
    while trainer.epoch < config.epochs:
        on_epoch(trainer.run_epoch())
    trainer.keep_average()
    return trainer.history


class _Timed:
    """An iterator that adds up the seconds spent waiting for the next item, and lets one look at it."""

    def __init__(self, items: Iterable[tuple[Item, Batch]]) -> None:
        self.items: Iterator[tuple[Item, Batch]] = iter(items)
        self.waited = 0.0
        self.ahead: tuple[Item, Batch] | None = None

    def peek(self) -> tuple[Item, Batch]:
        if self.ahead is None:
            self.ahead = self.next()
        return self.ahead

    def next(self) -> tuple[Item, Batch]:
        if self.ahead is not None:
            found, self.ahead = self.ahead, None
            return found
        start = time.perf_counter()
        try:
            return next(self.items)
        except StopIteration:
            raise RuntimeError("the data ended before the run did: the loader and the engine disagree") from None
        finally:
            self.waited += time.perf_counter() - start


class _Fit:
    def __init__(
        self,
        task: Task,
        model: nn.Module,
        config: TrainConfig,
        items: _Timed,
        world: World,
        steps_per_epoch: int,
    ) -> None:
        self.task, self.config, self.items, self.world = task, config, items, world
        self.model = model.to(world.device)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.steps_per_epoch, self.steps = (
            steps_per_epoch,
            steps_per_epoch * config.epochs,
        )
        self.epoch = self.step = 0
        self.history: list[Record] = []
        self.evaluation = Evaluation(task, world)
        self.factor = factor(config.schedule, steps_per_epoch, self.steps)
        schedule = config.schedule
        self.plateau = Plateau(schedule, self.evaluation.metrics.mode) if schedule.kind == "plateau" else None

    def autocast(self) -> torch.autocast:
        return torch.autocast(
            self.world.device.type,
            torch.bfloat16,
            enabled=self.config.precision == "bf16",
        )

    def start(self, resume: dict[str, Any] | None) -> None:
        """Set the weights (from the state, or by the task on rank 0), then wrap them."""
        if resume is not None:
            self.model.load_state_dict(resume["model"])
        else:
            _, batch = self.items.peek()  # on every rank: the loader's start is a rendezvous
            if self.world.rank == 0:
                self.task.initialise(self.model, to_device(batch, self.world.device))
        self.world.broadcast([*self.model.parameters(), *self.model.buffers()])
        self.ema = Ema(self.model, self.config.ema) if self.config.ema else None
        self.phases = [
            PhaseTrainer(phase, self.model, self.config, self.world, self.autocast)
            for phase in self.task.phases(self.model)
        ]
        if resume is not None:
            self._load(resume)

    def _load(self, state: dict[str, Any]) -> None:
        self.epoch, self.step, self.history = (
            state["epoch"],
            state["step"],
            list(state["history"]),
        )
        for phase in self.phases:
            phase.load(state["optimizers"][phase.phase.name])
        if self.ema:
            self.ema.load(state["ema"]["steps"], state["ema"]["tensors"])
        if self.plateau:
            self.plateau.load(state["plateau"])

    def state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "step": self.step,
            "history": self.history,
            "model": self.model.state_dict(),
            "optimizers": {phase.phase.name: phase.state() for phase in self.phases},
            "ema": self.ema.state() if self.ema else None,
            "plateau": self.plateau.state() if self.plateau else None,
        }

    def run_epoch(self) -> Epoch:
        start, self.items.waited = time.perf_counter(), 0.0
        self.model.train()
        tallies = [_Tally() for _ in self.phases]
        lr = 0.0
        for _ in range(self.steps_per_epoch):
            lr = self._step(tallies)
        seconds = time.perf_counter() - start
        record = {"epoch": float(self.epoch + 1), "step": float(self.step), "lr": lr}
        for phase, tally in zip(self.phases, tallies, strict=True):
            prefix = "train/" if len(self.phases) == 1 else f"train/{phase.phase.name}/"
            record |= {prefix + name: value for name, value in tally.means().items()}
        rows = max(tally.rows for tally in tallies)
        record |= {
            "images_per_s": rows / seconds,
            "data_wait": min(1.0, self.items.waited / seconds),
            "seconds": seconds,
        }
        score = self._evaluate(record)
        record["time"] = time.time()
        self.epoch += 1
        self.history.append(record)
        return Epoch(record, self.config.epochs, score, self.state)

    def _step(self, tallies: list[_Tally]) -> float:
        """One optimizer step of every phase that is due; returns the first phase's learning rate."""
        due = [i for i, phase in enumerate(self.phases) if self.step % phase.phase.every == 0]
        micros: Iterable[tuple[Batch, bool]] = self._micros()
        if len(due) != 1:
            micros = list(micros)  # several phases read the same batches
        scale = self.factor(self.step) * (self.plateau.factor if self.plateau else 1.0)
        for i in due:
            tallies[i].add(self.phases[i].step(micros, self._context(i), scale))
        if self.ema:
            self.ema.update(self.model)
        self.step += 1
        return self.phases[0].lrs[0] * scale

    def _micros(self) -> Iterator[tuple[Batch, bool]]:
        while True:
            item, batch = self.items.next()
            assert (item.split, item.epoch, item.step) == (
                "train",
                self.epoch,
                self.step,
            ), (item, self.epoch, self.step)
            yield batch, item.ends_step
            if item.ends_step:
                return

    def _context(self, phase: int) -> Context:
        """Also seeds torch's own generator (dropout), so that a resumed run draws the same numbers."""
        sequence = np.random.SeedSequence([self.config.seed, self.step, self.world.rank, phase])
        own, general = (int(word) for word in sequence.generate_state(2, np.uint64) >> np.uint64(1))
        torch.manual_seed(general)
        generator = torch.Generator().manual_seed(own)  # the CPU's: the same numbers on any device
        return Context(
            self.step,
            self.epoch,
            self.steps,
            generator,
            self.world.rank,
            self.world.size,
            self.world.gather,
        )

    def _evaluate(self, record: Record) -> float | None:
        """Run this epoch's evaluation when its items come next, and add `val/*` to the record."""
        averaged = self.ema.tensors if self.ema else {}
        synchronise_buffers(
            [
                *self.model.buffers(),
                *(averaged[n] for n, _ in self.model.named_buffers() if n in averaged),
            ],
            self.world,
        )
        if not self._evaluated(self.epoch):
            return None
        start, self.model = time.perf_counter(), self.model.eval()
        if self.ema:
            with self.ema.applied(self.model):
                self._evaluate_items()
        else:
            self._evaluate_items()
        values = self.evaluation.compute()
        record |= {f"val/{name}": value for name, value in values.items()}
        record["val_seconds"] = time.perf_counter() - start
        score = values.get(self.evaluation.metrics.primary)
        if self.plateau and score is not None and math.isfinite(score):
            self.plateau.update(score)
        return score

    def _evaluated(self, epoch: int) -> bool:
        """Whether the run has `val` items after this epoch: the next item says so."""
        due = (epoch + 1) % self.config.evaluate_every == 0 or epoch + 1 == self.config.epochs
        if not due:
            return False
        try:
            return self.items.peek()[0].split == "val"
        except RuntimeError:
            if epoch + 1 == self.config.epochs:
                return False  # the last epoch of a data set without `val`
            raise

    def _evaluate_items(self) -> None:
        while True:
            item, batch = self.items.next()
            assert (item.split, item.epoch) == ("val", self.epoch), (item, self.epoch)
            self.evaluation.add(self.model, batch, self.autocast())
            if item.ends_epoch:
                return

    def keep_average(self) -> None:
        if self.ema:
            self.model.load_state_dict({**self.model.state_dict(), **self.ema.tensors})
        self.model.eval()


class _Tally:
    """An epoch's sums over its steps."""

    def __init__(self) -> None:
        self.count, self.rows, self.sums = 0.0, 0, dict[str, float]()

    def add(self, step: Sums) -> None:
        self.count += step.count
        self.rows += step.rows
        for name, value in step.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: value / max(self.count, 1.0) for name, value in self.sums.items()}
