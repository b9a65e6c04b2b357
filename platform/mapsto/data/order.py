"""In which order a split's rows are drawn: pure functions of (seed, epoch), the same in every process."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from ..core.artifact import digest
from ..core.errors import UserError
from ..core.task import Stream
from .dataset import SplitIndex

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
    sampling: Literal["shuffled", "sequential"] = "shuffled"
    partners: int = 0
    ratio: float = 1.0
    window_bytes: int = field(default=WINDOW_BYTES, kw_only=True)

    @staticmethod
    def of(name: str, stream: Stream, index: SplitIndex) -> StreamPlan:
        """Raises UserError for a split without rows."""
        if index.rows == 0:
            raise UserError(f"split '{index.name}' of data.{stream.role} has no images")
        return StreamPlan(name, index.groups, index.bytes, stream.sampling, stream.partners, stream.ratio)

    @cached_property
    def rows(self) -> int:
        return int(self.groups.sum())

    @cached_property
    def starts(self) -> np.ndarray:
        """Row number at which each row group begins, and the number of rows at the end: G+1 int64."""
        return np.concatenate([[0], np.cumsum(self.groups)]).astype(np.int64)

    @cached_property
    def stream_key(self) -> int:
        """Keeps the randomness of several streams over the same rows apart."""
        return self.key_of(self.name)

    @staticmethod
    def key_of(name: str) -> int:
        return zlib.crc32(name.encode())

    @cached_property
    def key(self) -> str:
        parts = (self.name, self.bytes, self.sampling, self.partners, self.ratio, self.window_bytes)
        return digest(np.ascontiguousarray(self.groups).tobytes(), repr(parts).encode())

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
            self.window_bytes,
        )


def _restore(*values: object) -> StreamPlan:
    return StreamPlan(*values[:-1], window_bytes=values[-1])  # type: ignore


@dataclass(frozen=True, eq=False)
class Order:
    """One epoch's order: every row number of the split exactly once.

    Row groups are permuted, then cut into windows of about `window_bytes`; the rows within a window are permuted. A
    window's rows are computed when they are asked for, so an order over 10^8 rows costs its row groups only.
    """

    plan: StreamPlan
    seed: int
    epoch: int
    groups: np.ndarray
    """The row groups in this epoch's order."""
    edges: np.ndarray
    """Positions at which windows begin, and the number of rows at the end."""
    firsts: np.ndarray
    """Where in `groups` each window begins, and the number of groups at the end."""

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The row numbers at positions start..stop-1, int64."""
        parts = []
        window = int(np.searchsorted(self.edges, start, side="right")) - 1
        while start < stop:
            low, high = int(self.edges[window]), int(self.edges[window + 1])
            parts.append(_window(self, window)[start - low : min(stop, high) - low])
            start, window = min(stop, high), window + 1
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def partners(self, position: int) -> np.ndarray:
        """`plan.partners` row numbers for the draw at a position, from the same window, with replacement."""
        window = int(np.searchsorted(self.edges, position, side="right")) - 1
        rng = generator(self.seed, self.plan.stream_key, self.epoch, position, 2)
        return rng.choice(_window(self, window), self.plan.partners)

    def __hash__(self) -> int:
        return hash((self.plan, self.seed, self.epoch))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Order) and (self.plan, self.seed, self.epoch) == (other.plan, other.seed, other.epoch)


@lru_cache(maxsize=16)
def order(plan: StreamPlan, seed: int, epoch: int) -> Order:
    """The order of an epoch; cached per process."""
    count = len(plan.groups)
    groups = np.arange(count)
    if plan.sampling == "shuffled":
        groups = generator(seed, plan.stream_key, epoch, 0, 0).permutation(count)
    share = plan.window_bytes / max(plan.bytes, 1) * plan.rows  # rows to a window
    before = np.cumsum(plan.groups[groups]) - plan.groups[groups]
    # A window takes at least one whole group; a split smaller than a window is one window.
    window = np.zeros(count, np.int64) if share >= plan.rows else np.floor(before / max(share, 1)).astype(np.int64)
    firsts = np.append(np.flatnonzero(np.diff(window, prepend=-1)), count)
    edges = np.append(before, plan.rows)[firsts]
    return Order(plan, seed, epoch, groups, edges, firsts)


@lru_cache(maxsize=32)
def _window(order: Order, window: int) -> np.ndarray:
    plan = order.plan
    picked = order.groups[order.firsts[window] : order.firsts[window + 1]]
    rows = np.concatenate([np.arange(plan.starts[g], plan.starts[g + 1]) for g in picked])
    if plan.sampling == "shuffled":
        rows = generator(order.seed, plan.stream_key, order.epoch, window, 1).permutation(rows)
    rows.setflags(write=False)
    return rows


def generator(seed: int, stream: int, a: int, b: int, c: int) -> np.random.Generator:
    """A generator of its own for every (seed, stream, a, b, c), by the counter of Philox (Salmon et al., Parallel
    Random Numbers: As Easy as 1, 2, 3, SC 2011). `c` tells purposes apart; draws of pixels use c >= 1000."""
    bits = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=np.array([0, c, b, a], np.uint64))
    return np.random.Generator(bits)
