"""The plan of a run: which rows make up microbatch g. Pure: a position is one integer, and that is all a checkpoint
holds. See core/item.py for the order of microbatches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from ..core.errors import UserError
from ..core.item import Item
from ..core.sample import Split
from ..core.task import Stream
from .dataset import SplitIndex
from .order import Order, StreamPlan, generator, order, poisson

if TYPE_CHECKING:
    from ..config.schema import TrainConfig

Descent = Literal["mini_batch", "stochastic", "full_batch"]
FIELDS = ("rows", "epochs", "draw", "valid", "partners")
SINGLE_ROW_EVALUATION = 256
"""Rows of an evaluation microbatch where training's hold one (stochastic descent)."""


@dataclass(frozen=True, eq=False)
class Draws:
    """The rows of one stream in one microbatch, N of them."""

    rows: np.ndarray
    """Row numbers in the split, int64."""
    epochs: np.ndarray
    """The stream's own epoch of each draw, int64: with the row and the draw it keys the draw's randomness."""
    draw: np.ndarray
    """How often the row was drawn before in that epoch (of Poisson sampling, the step in it), int64."""
    valid: np.ndarray
    """False marks padding, bool."""
    partners: np.ndarray
    """N×partners row numbers, int64."""

    def __len__(self) -> int:
        return len(self.rows)


class Plan(Protocol):
    """What the loader follows: numbered microbatches."""

    @property
    def seed(self) -> int: ...

    def __len__(self) -> int: ...

    def item(self, g: int) -> Item: ...

    def draws(self, g: int) -> Mapping[str, Draws]: ...

    @property
    def largest(self) -> Mapping[str, int]:
        """Stream name → its rows in the largest microbatch, about."""
        ...

    @property
    def window_rows(self) -> float:
        """Of the first stream's windows."""
        ...


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass over a split in a fixed order: microbatches of `size` rows, the last one padded, and wholly invalid
    ones added to a multiple of `world`. Further streams run along, from their beginning."""

    streams: tuple[StreamPlan, ...]
    size: int
    world: int = 1
    seed: int = 0
    split: Split = "test"

    def __post_init__(self) -> None:
        wrong = [s.sampling for s in self.streams if s.sampling == "poisson"]
        wrong += [s.sampling for s in self.streams[:1] if s.sampling not in ("sequential", "shuffled")]
        if wrong:
            raise ValueError(f"a pass over '{self.split}' takes every row once; its stream's sampling is {wrong[0]}")

    def __len__(self) -> int:
        return _ceil(_ceil(self.streams[0].length, self.size), self.world) * self.world

    def item(self, g: int) -> Item:
        return Item(self.split, 0, 0, g, ends_epoch=g >= len(self) - self.world)

    @property
    def largest(self) -> dict[str, int]:
        return {stream.name: self._size(stream) for stream in self.streams}

    @property
    def window_rows(self) -> float:
        return self.streams[0].window_rows

    def _size(self, stream: StreamPlan) -> int:
        return self.size if stream is self.streams[0] else max(1, round(stream.ratio * self.size))

    def draws(self, g: int) -> dict[str, Draws]:
        first = self.streams[0]
        start, stop = min(g * self.size, first.length), min((g + 1) * self.size, first.length)
        out = {first.name: _padded(_epoch_draws(order(first, self.seed, 0), start, stop), self.size, first)}
        for stream in self.streams[1:]:
            size = self._size(stream)
            found = _endless_draws(stream, self.seed, g * size, (g + 1) * size)
            out[stream.name] = found if stop > start else _void(found)
        return out


@dataclass(frozen=True, eq=False)
class Run:
    """A training run as one sequence of microbatches; worker r of `world` takes those whose number is r modulo world.

    The first stream of `train` sets what an epoch is; others run along in their own, endless epochs. The composition
    of an optimizer step's global batch does not depend on `world` or `accumulate`.
    """

    train: tuple[StreamPlan, ...]
    val: tuple[StreamPlan, ...] = ()
    """Empty: no evaluation."""
    seed: int = 0
    batch_size: int = 256
    world: int = 1
    accumulate: int = 1
    drop_last: bool = False
    epochs: int = 1
    evaluate_every: int = 1
    descent: Descent = "mini_batch"

    @staticmethod
    def of(
        train: Mapping[str, tuple[Stream, SplitIndex]],
        val: Mapping[str, tuple[Stream, SplitIndex]] | None,
        config: TrainConfig,
        world: int,
    ) -> Run:
        """The run of a recipe. `val` without rows in its first split means no evaluation."""

        def plans(streams: Mapping[str, tuple[Stream, SplitIndex]]) -> tuple[StreamPlan, ...]:
            return tuple(StreamPlan.of(name, stream, index) for name, (stream, index) in streams.items())

        evaluated = bool(val) and next(iter(val.values()))[1].rows > 0
        return Run(
            plans(train),
            plans(val) if val and evaluated else (),
            config.seed,
            config.batch_size,
            world,
            config.accumulate,
            config.drop_last,
            config.epochs,
            config.evaluate_every,
            config.descent,
        )

    def __post_init__(self) -> None:
        if self.steps_per_epoch == 0:
            raise UserError(
                f"train.batch_size {self.batch_size} is larger than the {self.train[0].length} training images and "
                "train.drop_last drops what is left: no step remains"
            )

    @cached_property
    def step_rows(self) -> int:
        """Rows of a full optimizer step's global batch."""
        return {"mini_batch": self.batch_size, "stochastic": 1, "full_batch": self.train[0].length}[self.descent]

    @cached_property
    def parts(self) -> int:
        """Microbatches per optimizer step, k."""
        if self.descent == "full_batch":
            most = max(2, self.batch_size // 2 * 2) if self.train[0].pairs else self.batch_size
            return _ceil(_ceil(self.train[0].length, most), self.world) * self.world
        return self.world * (self.accumulate if self.descent == "mini_batch" else 1)

    @cached_property
    def least_rows(self) -> int:
        """Rows that each worker has in every step but an epoch's last one, at least."""
        first = self.train[0]
        if first.sampling == "poisson":
            return 0
        together = 2 if first.pairs else 1
        return self.step_rows // together // self.parts * together * (self.parts // self.world)

    @cached_property
    def steps_per_epoch(self) -> int:
        rows = self.train[0].length
        return rows // self.step_rows if self.drop_last else _ceil(rows, self.step_rows)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @cached_property
    def evaluation(self) -> Pass | None:
        """The pass over `val`: the same rows in the same order and with the same randomness every time, in microbatches no
        larger than training's, so that where training fits, this does. They are the smaller the more workers there are:
        a model's output of a row then differs in its last bits, as the weights do, whose gradients were summed in another
        order. One size for all worlds would give a worker of many times its training rows at once, and no equal number."""
        if not self.val:
            return None
        per_pass = {"mini_batch": _ceil(self.batch_size, self.parts), "stochastic": SINGLE_ROW_EVALUATION}
        size = min(per_pass.get(self.descent, self.batch_size), _ceil(self.val[0].length, self.world))
        return Pass(self.val, max(1, size), self.world, self.seed, "val")

    @cached_property
    def largest(self) -> dict[str, int]:
        """The evaluation's among them."""
        measured = {} if self.evaluation is None else self.evaluation.largest
        trained = {stream.name: _ceil(self._sizes(stream)[0], self.parts) for stream in self.train}
        return {name: max(trained.get(name, 0), measured.get(name, 0)) for name in trained | measured}

    @property
    def window_rows(self) -> float:
        return self.train[0].window_rows

    def __len__(self) -> int:
        return self._start(self.epochs)

    def start_of(self, epoch: int, step: int = 0) -> int:
        """The first microbatch of a step of an epoch; `step` = steps_per_epoch is where its evaluation begins."""
        return self._start(epoch) + step * self.parts

    def item(self, g: int) -> Item:
        epoch, within = self._locate(g)
        training = self.steps_per_epoch * self.parts
        if within >= training:
            micro = within - training
            last = micro >= len(self.evaluation or ()) - self.world
            return Item("val", epoch, (epoch + 1) * self.steps_per_epoch, micro, ends_epoch=last)
        step, micro = divmod(within, self.parts)
        ends_step = micro >= self.parts - self.world
        ends_epoch = ends_step and step == self.steps_per_epoch - 1 and not self._evaluated(epoch)
        return Item("train", epoch, epoch * self.steps_per_epoch + step, micro, ends_step, ends_epoch)

    def draws(self, g: int) -> dict[str, Draws]:
        """Stream name → its rows in microbatch g. A microbatch that would be empty holds one invalid row."""
        epoch, within = self._locate(g)
        training = self.steps_per_epoch * self.parts
        if within >= training:
            assert self.evaluation is not None
            return self.evaluation.draws(within - training)
        step, micro = divmod(within, self.parts)
        out = {}
        for k, stream in enumerate(self.train):
            size, last = self._sizes(stream)
            if stream.sampling == "poisson":
                found = _part(_poisson_draws(stream, self.seed, epoch, step, size), micro, self.parts, stream.pairs)
                out[stream.name] = _padded(found, 1, stream)
                continue
            count = last if step == self.steps_per_epoch - 1 else size
            low, high = _bounds(count, micro, self.parts, stream.pairs)
            if k == 0:
                base = step * size
                found = _epoch_draws(order(stream, self.seed, epoch), base + low, base + high)
            else:
                base = epoch * ((self.steps_per_epoch - 1) * size + last) + step * size
                found = _endless_draws(stream, self.seed, base + low, base + high)
            out[stream.name] = _padded(found, 1, stream)
        return out

    def _sizes(self, stream: StreamPlan) -> tuple[int, int]:
        """A stream's rows in a full step and in an epoch's last step."""
        rows = self.train[0].length
        last = self.step_rows if self.drop_last else rows - (self.steps_per_epoch - 1) * self.step_rows
        if stream is self.train[0]:
            return self.step_rows, last
        return max(1, round(stream.ratio * self.step_rows)), max(1, round(stream.ratio * last))

    def _evaluated(self, epoch: int) -> bool:
        return bool(self.val) and ((epoch + 1) % self.evaluate_every == 0 or epoch == self.epochs - 1)

    def _start(self, epoch: int) -> int:
        evaluations = 0
        if self.evaluation is not None:
            evaluations = epoch // self.evaluate_every
            if epoch == self.epochs and self.epochs % self.evaluate_every:
                evaluations += 1
        return epoch * self.steps_per_epoch * self.parts + evaluations * len(self.evaluation or ())

    def _locate(self, g: int) -> tuple[int, int]:
        """The epoch of a microbatch, and its number within that epoch."""
        if not 0 <= g < len(self):
            raise IndexError(f"microbatch {g} of a run of {len(self)}")
        training = self.steps_per_epoch * self.parts
        cycle, rest = divmod(g, self.evaluate_every * training + len(self.evaluation or ()))
        epoch = min(cycle * self.evaluate_every + min(rest // training, self.evaluate_every - 1), self.epochs - 1)
        return epoch, g - self._start(epoch)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _bounds(count: int, micro: int, parts: int, pairs: bool) -> tuple[int, int]:
    """The rows of a step that its microbatch `micro` of `parts` takes."""
    return _cut(count, micro, parts, pairs), _cut(count, micro + 1, parts, pairs)


def _cut(count: int, micro: int, parts: int, pairs: bool) -> int:
    if not pairs:
        return micro * count // parts
    each, more = divmod(count // 2, parts)  # whole pairs, the larger pieces first: no rank always gets the smaller ones
    place = 2 * (micro * each + min(micro, more))
    return place if micro == 0 or place < count - 1 else count  # an odd one out stays with the last pair


def _epoch_draws(order: Order, start: int, stop: int) -> Draws:
    rows, numbers = order.draws(start, stop)
    n = len(rows)
    partners = np.empty((n, order.plan.partners), np.int64)
    for k in range(n if order.plan.partners else 0):
        partners[k] = order.partners(start + k)
    return Draws(rows, np.full(n, order.epoch, np.int64), numbers, np.ones(n, bool), partners)


@lru_cache(maxsize=8)
def _poisson_draws(stream: StreamPlan, seed: int, epoch: int, step: int, size: int) -> Draws:
    """All rows of one step, which on average are `size`. A row may be in several steps of an epoch, each its draw."""
    rows = poisson(stream, seed, epoch, step, size / stream.length)
    n = len(rows)
    rng = generator(seed, stream.stream_key, epoch, step, 6)
    partners = stream.drawable(rng.integers(0, stream.length, (n, stream.partners)))
    return Draws(rows, np.full(n, epoch, np.int64), np.full(n, step, np.int64), np.ones(n, bool), partners)


def _part(draws: Draws, micro: int, parts: int, pairs: bool) -> Draws:
    low, high = _bounds(len(draws), micro, parts, pairs)
    return Draws(*(getattr(draws, name)[low:high] for name in FIELDS))


def _endless_draws(stream: StreamPlan, seed: int, start: int, stop: int) -> Draws:
    """Positions in the concatenation of a stream's own epochs."""
    parts = []
    while start < stop:
        cycle, within = divmod(start, stream.length)
        upto = min(stream.length, within + stop - start)
        parts.append(_epoch_draws(order(stream, seed, cycle), within, upto))
        start += upto - within
    return _joined(parts) if parts else _epoch_draws(order(stream, seed, 0), 0, 0)


def _joined(parts: list[Draws]) -> Draws:
    return Draws(*(np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS))


def _padded(draws: Draws, size: int, stream: StreamPlan) -> Draws:
    """At least `size` rows: the first one (where there is none, the stream's first) again, marked invalid."""
    missing = size - len(draws)
    if missing <= 0:
        return draws
    row = draws.rows[0] if len(draws) else stream.drawable(np.zeros(1, np.int64))[0]
    zeros = np.zeros(missing, np.int64)
    partners = np.full((missing, draws.partners.shape[1]), row, np.int64)
    return _joined([draws, Draws(np.full(missing, row, np.int64), zeros, zeros, np.zeros(missing, bool), partners)])


def _void(draws: Draws) -> Draws:
    return Draws(draws.rows, draws.epochs, draws.draw, np.zeros(len(draws), bool), draws.partners)
