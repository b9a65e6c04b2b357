"""What crosses Ray Data: a few microbatches of one worker as one row of plain bytes, which is a block of its own.

A block costs Ray's coordinator, the raylet and the trainer the same whatever it holds, so several small microbatches
share one. Its columns are bytes of one type, whatever the arrays are: Ray compares the schemas of all blocks, and one
that never changes is cheap. No array is copied to be put in, or to be taken out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.sample import Batch

if TYPE_CHECKING:
    import pyarrow as pa

HEAD = "microbatches"
"""Column of what the others are: for each microbatch its number, and for each of its arrays name, dtype and shape."""
BLOCK_BYTES = 48 << 20
"""Of a block, about: Ray Data's own aim at up to 128 MiB."""
STORE_PARTS = 64
"""Of a node's object store, at most so large a part is a block of several: some ten are under way, and none is to be spilled."""
MOST = 16
"""Microbatches in a block."""
SINGLE_ROUNDS = 3
"""Blocks of each worker that hold one microbatch, at the beginning: the first step does not wait for more. Ray's iterator
gives the first once it has those that it prefetches, two, and one more."""
LEAST_ROUNDS = 16
"""Blocks of each worker, where there are as many microbatches: the cluster's CPUs share the work by blocks."""


@dataclass(frozen=True)
class Deal:
    """Which microbatches each block holds: blocks go to the `world` workers in turn, and worker r's microbatches are
    those whose number is r modulo `world`, from `start` to before `stop` (both multiples of `world`)."""

    start: int
    stop: int
    world: int
    together: int
    """Microbatches in a block, but for the first blocks and the last ones."""

    @staticmethod
    def of(
        start: int, stop: int, world: int, size: int, share: int = 1, store: float = 2.0**62, near: int = MOST
    ) -> Deal:
        """`size`: bytes of a microbatch, about; 0: unknown, each is then a block of its own. `share`: how many take
        what goes to one worker. `store`: bytes of the smallest node's object store. `near`: a worker's microbatches that
        lie near each other in the order."""
        each = (stop - start) // (world * share)
        fit = min(BLOCK_BYTES, store // STORE_PARTS) // size if size else 1
        return Deal(start, stop, world, int(np.clip(min(fit, near, each // LEAST_ROUNDS), 1, MOST)))

    def __len__(self) -> int:
        """Blocks."""
        each = self._each
        return self.world * (min(each, SINGLE_ROUNDS) + -(-max(0, each - SINGLE_ROUNDS) // self.together))

    def numbers(self, block: int) -> range:
        """The microbatches of a block."""
        turn, rank = divmod(block, self.world)
        first, end = (min(self._before(t), self._each) for t in (turn, turn + 1))
        return range(self.start + first * self.world + rank, self.start + end * self.world, self.world)

    @property
    def _each(self) -> int:
        return (self.stop - self.start) // self.world

    def _before(self, turn: int) -> int:
        return min(turn, SINGLE_ROUNDS) + max(0, turn - SINGLE_ROUNDS) * self.together


def closed(batches: Iterable[tuple[int, Batch]]) -> pa.Table:
    """(microbatch number, batch of arrays) → one row. Raises TypeError for a value that is no array."""
    import pyarrow as pa

    head: list[Any] = []
    columns: dict[str, Any] = {}
    for k, (g, batch) in enumerate(batches):
        arrays = {name: _array(name, value) for name, value in batch.items()}
        head.append([g, [[name, array.dtype.str, array.shape] for name, array in arrays.items()]])
        columns |= {f"{k} {name}": _one(array.reshape(-1).view(np.uint8)) for name, array in arrays.items()}
    return pa.table({HEAD: pa.array([json.dumps(head)]), **columns})


def opened(row: pa.Table) -> Iterator[tuple[int, Batch]]:
    """One row of Ray Data's, in its pyarrow format → (microbatch number, batch of views of it)."""
    for k, (g, arrays) in enumerate(json.loads(row.column(HEAD)[0].as_py())):
        batch = {}
        for name, dtype, shape in arrays:
            batch[name] = _bytes(row.column(f"{k} {name}").chunk(0)).view(dtype).reshape(shape)
        yield g, batch


def _one(array: np.ndarray) -> pa.Array:
    """Its bytes as the one value of a column, where they lie."""
    import pyarrow as pa

    ends = np.array([0, len(array)], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(ends), pa.py_buffer(array)])


def _bytes(column: pa.Array) -> np.ndarray:
    """The one value of a column, where it lies; Arrow's own scalar would be a copy."""
    _, ends, held = column.buffers()
    first, last = np.frombuffer(ends, np.int64)[column.offset : column.offset + 2]
    return np.frombuffer(held, np.uint8)[first:last]


def _array(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(
            f"collate() gave '{name}' as Python objects; a batch holds arrays (ragged: a buffer and offsets)"
        )
    return np.ascontiguousarray(array).reshape(array.shape)  # the former makes a row of a number
