"""In which order a split's rows are drawn: pure functions of (seed, epoch), the same in every process."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np

from ..core.artifact import digest
from ..core.errors import UserError
from ..core.task import Sampling, Stream
from .dataset import SplitIndex, starts
from .strata import strata

WINDOW_BYTES = 256 * 2**20
"""Row groups of about so many encoded bytes are shuffled together; a smaller split is shuffled as a whole."""


@dataclass(frozen=True, eq=False)
class StreamPlan:
    """What the order of one stream depends on. Equal content means equal, so that processes can cache by it."""

    name: str
    groups: np.ndarray
    """Rows of every row group of the split, int64."""
    bytes: int
    """Size of the split's files."""
    sampling: Sampling = "shuffled"
    partners: int = 0
    ratio: float = 1.0
    strata: np.ndarray | None = None
    """Stratum of every row, int16 or int32; None: all rows are drawn alike."""
    weights: np.ndarray | None = None
    """Weight of every stratum, float64."""
    together: int = 1
    """Of `identities`: rows of one stratum that follow each other, as far as there are so many."""
    pairs: bool = False
    """Whether a step's rows are cut into microbatches between pairs only."""
    window_bytes: int = field(default=WINDOW_BYTES, kw_only=True)

    @staticmethod
    def of(name: str, stream: Stream, index: SplitIndex) -> StreamPlan:
        """Raises UserError for a split without rows, and for classes or weights that its sampling cannot use."""
        if index.rows == 0:
            raise UserError(f"split '{index.name}' of data.{stream.role} has no images")
        found = strata(stream, index) or (None, None)
        drawn = stream.sampling, stream.partners, stream.ratio
        return StreamPlan(name, index.groups, index.bytes, *drawn, *found, stream.together, stream.pairs)

    @cached_property
    def rows(self) -> int:
        """Rows of the split."""
        return int(self.groups.sum())

    @cached_property
    def length(self) -> int:
        """Draws of an epoch: as many as rows that can be drawn. (Of `poisson`, on average.)"""
        return self.rows if self.strata is None or self.weights is None else int((self.weights > 0)[self.strata].sum())

    @cached_property
    def window_rows(self) -> float:
        """Of a window, about."""
        return self.window_bytes / max(self.bytes, 1) * self.rows

    @cached_property
    def group_weights(self) -> np.ndarray:
        """Sum of the weights of every row group's rows, float64."""
        pairs = itertools.pairwise(self.starts)
        return np.array([self.row_weights(np.arange(a, b)).sum() for a, b in pairs], np.float64)

    def drawable(self, numbers: np.ndarray) -> np.ndarray:
        """The n-th of the rows that can be drawn, for n from 0 to length - 1."""
        return numbers if self.strata is None else self._drawable[numbers]

    @cached_property
    def _drawable(self) -> np.ndarray:
        assert self.strata is not None and self.weights is not None
        return np.flatnonzero((self.weights > 0)[self.strata])

    def row_weights(self, rows: np.ndarray) -> np.ndarray:
        assert self.strata is not None and self.weights is not None
        return self.weights[self.strata[rows]]

    @cached_property
    def starts(self) -> np.ndarray:
        return starts(self.groups)

    @cached_property
    def stream_key(self) -> int:
        """Keeps the randomness of several streams over the same rows apart."""
        return self.key_of(self.name)

    @staticmethod
    def key_of(name: str) -> int:
        return zlib.crc32(name.encode())

    @cached_property
    def key(self) -> str:
        parts = (
            self.name,
            self.bytes,
            self.sampling,
            self.partners,
            self.ratio,
            self.together,
            self.pairs,
            self.window_bytes,
        )
        arrays = [a.tobytes() for a in (self.groups, self.strata, self.weights) if a is not None]
        return digest(*arrays, repr(parts).encode())

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StreamPlan) and self.key == other.key

    def __reduce__(self) -> tuple[object, ...]:  # without the cached properties
        return _restore, (
            self.name,
            self.groups,
            self.bytes,
            self.sampling,
            self.partners,
            self.ratio,
            self.strata,
            self.weights,
            self.together,
            self.pairs,
            self.window_bytes,
        )


def _restore(*values: object) -> StreamPlan:
    return StreamPlan(*values[:-1], window_bytes=values[-1])  # type: ignore


@dataclass(frozen=True, eq=False)
class Order:
    """One epoch's order: every row number of the split exactly once, or, where rows have weights, as often as they say.

    Row groups are permuted, then cut into windows of about `window_bytes`; the rows within a window are permuted. A
    window's rows are computed when they are asked for, so an order over 10^8 rows costs its row groups only.

    Weights: the rows, in an order drawn for the epoch, lie end to end, each as long as its weight; `length` ticks at
    even distances, the first one at random, fall on them, and a row is drawn once for each tick on it (systematic
    sampling; Madow, On the Theory of Systematic Sampling II, 1949). So its expected number of draws is exactly its
    share of the weights, and the number itself is that, rounded down or up.
    """

    plan: StreamPlan
    seed: int
    epoch: int
    groups: np.ndarray
    """The row groups in this epoch's order."""
    edges: np.ndarray
    """Positions at which windows begin, and the number of draws at the end."""
    firsts: np.ndarray
    """Where in `groups` each window begins, and the number of groups at the end."""
    weights: np.ndarray | None = None
    """Sum of the weights before each group, in this order, and of all."""
    first_tick: float = 0.0

    def draws(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The row numbers at positions start..stop-1, and which draw of its row in the epoch each is: int64."""
        rows, numbers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        window = int(np.searchsorted(self.edges, start, side="right")) - 1
        while start < stop:
            low, high = int(self.edges[window]), int(self.edges[window + 1])
            found = _window(self, window)
            rows.append(found[0][start - low : min(stop, high) - low])
            numbers.append(found[1][start - low : min(stop, high) - low])
            start, window = min(stop, high), window + 1
        return np.concatenate(rows), np.concatenate(numbers)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The row numbers at positions start..stop-1, int64."""
        return self.draws(start, stop)[0]

    def partners(self, position: int) -> np.ndarray:
        """`plan.partners` row numbers for the draw at a position, from the same window, with replacement."""
        window = int(np.searchsorted(self.edges, position, side="right")) - 1
        rng = generator(self.seed, self.plan.stream_key, self.epoch, position, 2)
        return rng.choice(_window(self, window)[0], self.plan.partners)

    def ticks(self, weights: np.ndarray) -> np.ndarray:
        """How many ticks fall before each sum of weights, int64."""
        assert self.weights is not None
        return np.ceil(weights * (self.plan.length / self.weights[-1]) - self.first_tick).astype(np.int64)

    def __hash__(self) -> int:
        return hash((self.plan, self.seed, self.epoch))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Order) and (self.plan, self.seed, self.epoch) == (other.plan, other.seed, other.epoch)


@lru_cache(maxsize=16)
def order(plan: StreamPlan, seed: int, epoch: int) -> Order:
    """The order of an epoch; cached per process."""
    count = len(plan.groups)
    groups = np.arange(count)
    if plan.sampling != "sequential":
        groups = generator(seed, plan.stream_key, epoch, 0, 0).permutation(count)
    share = plan.window_rows
    before = np.cumsum(plan.groups[groups]) - plan.groups[groups]
    # A window takes at least one whole group; a split smaller than a window is one window.
    window = np.zeros(count, np.int64) if share >= plan.rows else np.floor(before / max(share, 1)).astype(np.int64)
    firsts = np.append(np.flatnonzero(np.diff(window, prepend=-1)), count)
    if plan.strata is None:
        return Order(plan, seed, epoch, groups, np.append(before, plan.rows)[firsts], firsts)
    weights = np.concatenate([[0.0], np.cumsum(plan.group_weights[groups])])
    # On a grid, so that sums of equal weights, whole numbers, are never so near a tick that rounding decides.
    tick = (generator(seed, plan.stream_key, epoch, 0, 3).integers(2**20) + 0.5) / 2**20
    drawn = Order(plan, seed, epoch, groups, before, firsts, weights, tick)
    return replace(drawn, edges=drawn.ticks(weights)[firsts])


@lru_cache(maxsize=32)
def _window(order: Order, window: int) -> tuple[np.ndarray, np.ndarray]:
    """A window's rows in their order, and which draw of its row each is."""
    plan = order.plan
    places = range(int(order.firsts[window]), int(order.firsts[window + 1]))
    found = [_group(order, place) for place in places]
    rows, numbers = (np.concatenate([part[k] for part in found]) for k in (0, 1))
    if plan.sampling != "sequential":
        mixed = generator(order.seed, plan.stream_key, order.epoch, window, 1).permutation(len(rows))
        rows, numbers = rows[mixed], numbers[mixed]
    if plan.sampling == "identities" and plan.strata is not None:
        beside = _together(
            plan.strata[rows], plan.together, generator(order.seed, plan.stream_key, order.epoch, window, 7)
        )
        rows, numbers = rows[beside], numbers[beside]
    rows.setflags(write=False)
    numbers.setflags(write=False)
    return rows, numbers


def _together(strata: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """The order that lays up to `most` rows of a stratum after each other: each stratum's rows, as they come, are cut into
    pieces of so many and a rest, and the pieces permuted."""
    by = np.argsort(strata, kind="stable")
    starts = np.flatnonzero(np.diff(strata[by], prepend=-1))
    within = np.arange(len(by)) - np.repeat(starts, np.diff(starts, append=len(by)))
    piece = np.cumsum(within % most == 0) - 1
    lots = rng.permutation(int(piece[-1]) + 1 if len(piece) else 0)
    return by[np.argsort(lots[piece], kind="stable")]


def _group(order: Order, place: int) -> tuple[np.ndarray, np.ndarray]:
    """The draws of the group at a place of the epoch's order, row by row."""
    plan, group = order.plan, int(order.groups[place])
    rows = np.arange(plan.starts[group], plan.starts[group + 1])
    if order.weights is None:
        return rows, np.zeros(len(rows), np.int64)
    rows = rows[plan.row_weights(rows) > 0]
    if plan.sampling != "sequential":
        rows = generator(order.seed, plan.stream_key, order.epoch, group, 4).permutation(rows)
    low, high = order.weights[place : place + 2]
    ends = np.minimum(low + np.cumsum(plan.row_weights(rows)), high)
    ends[-1:] = high  # whatever rounding says: the groups' ticks were counted so
    counts = np.diff(order.ticks(np.concatenate([[low], ends])))
    numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(rows, counts), numbers


def poisson(plan: StreamPlan, seed: int, epoch: int, step: int, rate: float) -> np.ndarray:
    """The rows of one step, int64, in random order: each row by itself with probability `rate`; possibly none."""
    rng = generator(seed, plan.stream_key, epoch, step, 5)
    # As many as heads among so many coins, then which ones: the same law, at the cost of those drawn.
    return plan.drawable(rng.choice(plan.length, rng.binomial(plan.length, min(1.0, rate)), replace=False))


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """Of how rows are drawn: another one means that the same seed and position give other rows. NumPy does not promise that its
    generators' methods draw alike in all its versions, and neither do we of ours."""
    groups, few = np.array([5, 9, 2, 8, 8], np.int64), np.array([0.0, 0.5, 3.0])
    strata = np.arange(int(groups.sum()), dtype=np.int16) % 3
    drawn = [repr((WINDOW_BYTES,)).encode()]
    for sampling, weights in (("shuffled", None), ("weighted", few), ("identities", few)):
        of = None if weights is None else strata
        plan = StreamPlan("", groups, 100 * len(strata), sampling, 2, strata=of, weights=weights, window_bytes=1500)
        epoch = order(plan, 3, 1)
        drawn += [part.tobytes() for part in epoch.draws(0, plan.length)] + [epoch.partners(4).tobytes()]
        drawn.append(poisson(plan, 3, 1, 2, 0.3).tobytes())
    return digest(*drawn)


def generator(seed: int, stream: int, a: int, b: int, c: int) -> np.random.Generator:
    """A generator of its own for every (seed, stream, a, b, c), by the counter of Philox (Salmon et al., Parallel
    Random Numbers: As Easy as 1, 2, 3, SC 2011). `c` tells purposes apart; draws of pixels use c >= 1000."""
    bits = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=np.array([0, c, b, a], np.uint64))
    return np.random.Generator(bits)
