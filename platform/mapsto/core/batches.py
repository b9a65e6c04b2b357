"""Samples → a batch of arrays, and a batch's rows and ragged pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .sample import Batch, Sample

LARGE_BYTES = 1 << 16
"""Of an array that is worth a place of its own in the batch from the start."""


class Together:
    """Lays the large arrays of `count` samples side by side as they come, while each is in the processor's cache, so that
    `stack` joins them without a copy. Names whose arrays differ in shape are left as they are."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._homes: dict[str, np.ndarray | None] = {}

    def put(self, k: int, sample: Sample) -> Sample:
        """The k-th sample, its large arrays as views of where they lie now."""
        for name, value in sample.items():
            if not isinstance(value, np.ndarray) or value.nbytes < LARGE_BYTES:
                continue
            if name not in self._homes:
                self._homes[name] = np.empty((self._count, *value.shape), value.dtype)
            home = self._homes[name]
            if home is None or home.shape[1:] != value.shape or home.dtype != value.dtype:
                self._homes[name] = None
                continue
            home[k] = value
            sample[name] = home[k]
        return sample


def _home(values: Sequence[np.ndarray]) -> np.ndarray | None:
    """The array whose rows the values are, all of them and in order; None where there is none."""
    home = values[0].base
    if not isinstance(home, np.ndarray) or not home.flags.c_contiguous or len(home) != len(values):
        return None
    for value, row in zip(values, home, strict=True):
        same = value.base is home and _place(value) == _place(row)
        if not same or (value.dtype, value.shape, value.strides) != (row.dtype, row.shape, row.strides):
            return None
    return home


def _place(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def stack(samples: Sequence[Sample], ragged: Sequence[str] = ()) -> Batch:
    """Samples of equal names and shapes to one array per name; numbers become int64 or float32.

    Names in `ragged` may differ in length: their values are laid end to end in one buffer, and `<name>_offsets` (N+1
    int64) says where each row's begin and end.
    """
    batch: Batch = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name in ragged:
            array = np.concatenate(values)
            batch[f"{name}_offsets"] = np.cumsum([0, *map(len, values)], dtype=np.int64)
        else:
            array = _stacked(values)
        batch[name] = array.astype(np.float32) if array.dtype == np.float64 else array
    return batch


def _stacked(values: Sequence[Any]) -> np.ndarray:
    if not isinstance(values[0], np.ndarray):
        return np.asarray(values)
    home = _home(values)
    return np.stack(values) if home is None else home


def pieces(batch: Batch, name: str) -> list[Any]:
    """A ragged name's values by row, N views of its buffer (numpy arrays or tensors)."""
    offsets = batch[f"{name}_offsets"].tolist()
    return [batch[name][start:stop] for start, stop in pairwise(offsets)]


def rows(batch: Batch, keep: Iterable[int] | np.ndarray) -> Batch:
    """The given rows of a batch whose arrays (or tensors) have N rows each, or are ragged."""
    index = np.asarray(keep)
    index = index if index.size else np.empty(0, np.int64)
    out: Batch = {}
    for name, value in batch.items():
        if f"{name}_offsets" in batch:
            offsets = np.array(batch[f"{name}_offsets"].tolist())
            starts, stops = offsets[:-1][index], offsets[1:][index]
            out[name] = _joined([value[:0], *(value[a:b] for a, b in zip(starts, stops, strict=True))])
            ends = np.concatenate([[0], np.cumsum(stops - starts)])
            kept = batch[f"{name}_offsets"]
            out[f"{name}_offsets"] = ends if isinstance(kept, np.ndarray) else kept.new_tensor(ends)
        elif name.removesuffix("_offsets") not in batch or not name.endswith("_offsets"):
            out[name] = value[index]
    return out


def _joined(parts: Sequence[Any]) -> Any:
    """Arrays, or tensors, end to end."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(list(parts))
