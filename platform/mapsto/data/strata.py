"""How often each row of a split is drawn: a small integer per row (its stratum) and a weight per stratum.

What `balanced`, `weighted` and `identities` sampling and a `share` of the rows need to know of them; read from one small column, once
in a process, so that no process holds more than two or four bytes a row.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import UserError
from ..core.metrics.folds import text_key
from ..core.task import Stream
from .dataset import ShardFile, SplitIndex, opened, whole

if TYPE_CHECKING:
    import pyarrow as pa

READERS = 16

Strata = tuple[np.ndarray, np.ndarray]
"""(rows int16 or int32, weight per stratum float64); a weight of 0 leaves a row out."""


def strata(stream: Stream, index: SplitIndex) -> Strata | None:
    """None where every row is drawn alike. Raises UserError for a column that is not there, rows without a class, and
    weights that do not fit."""
    where = f"split '{index.name}' of data.{stream.role}"
    if not 0 < stream.share <= 1:
        raise UserError(f"{where}: a share of {stream.share} of its rows; it must be above 0 and at most 1")
    found: Strata | None = None
    if stream.sampling == "balanced":
        found = _rarest(index, stream.by, stream.share, where)
        if found is None:
            found = _balanced(_column(index, stream.by), stream.share, where, stream.by)
    elif stream.sampling == "weighted":
        found = _weighted(_column(index, stream.by), stream.weights, where, stream.by)
    elif stream.sampling == "identities":
        names, inverse = np.unique(_column(index, stream.by, words=True), return_inverse=True)
        found = _small(inverse, len(names)), np.ones(len(names))
    if stream.share == 1:
        return found
    chosen = part(index.rows, stream.share)
    if found is None:
        return chosen.astype(np.int16), np.array([0.0, 1.0])
    rows, weights = found
    if not (weights > 0)[rows[chosen]].any():
        raise UserError(f"{where}: every row in its share of {stream.share} has weight 0; take a larger share")
    return _small(np.where(chosen, rows, len(weights)), len(weights) + 1), np.append(weights, 0.0)


def part(rows: int, share: float) -> np.ndarray:
    """N bool: round(share · rows) of the rows, at least one, always the same; a larger share contains a smaller one."""
    lots = np.random.default_rng(0).random(rows, np.float32)
    count = max(1, round(share * rows))
    order = np.argsort(lots, kind="stable")[:count]
    chosen = np.zeros(rows, bool)
    chosen[order] = True
    return chosen


def _balanced(classes: np.ndarray, share: float, where: str, by: str) -> Strata:
    if classes.dtype.kind not in "iu":
        raise UserError(f"{where}: balanced sampling needs class ids, and {by} is {classes.dtype}")
    if len(classes) and classes.min() < 0:
        raise UserError(f"{where}: {int((classes < 0).sum())} rows have no {by}, which balanced sampling needs of each")
    counted = classes if share == 1 else classes[part(len(classes), share)]
    counts = np.bincount(counted, minlength=int(classes.max()) + 1)
    weights = np.divide(1.0, counts, out=np.zeros(len(counts)), where=counts > 0)
    return _small(classes, len(weights)), weights


@lru_cache(maxsize=4)
def _rarest(index: SplitIndex, by: str, share: float, where: str) -> Strata | None:
    """Of a column of lists of class ids: a row weighs as its rarest class, which weighs √(rows that hold the commonest class /
    rows that hold it), and 1 where it holds none (repeat factors whose threshold is the commonest class's share; Gupta et
    al., LVIS, arXiv 1908.03195). None for a column of another type."""
    import pyarrow as pa

    kind = _values(index.files[0], index, by).type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return None
    with ThreadPoolExecutor(READERS) as pool:
        files = list(pool.map(lambda file: _values(file, index, by), index.files))
    lengths = np.concatenate([values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False) for values in files])
    inner = [values.flatten() for values in files]
    if any(ids.null_count or not (pa.types.is_integer(ids.type) or pa.types.is_null(ids.type)) for ids in inner):
        raise UserError(f"{where}: balanced sampling needs class ids, and {by} is {kind}")
    rows = np.repeat(np.arange(len(lengths)), lengths)
    ids = np.concatenate([values.to_numpy(zero_copy_only=False).astype(np.int64) for values in inner])
    if not len(ids):
        return np.zeros(len(lengths), np.int16), np.ones(1)
    if ids.min() < 0:
        raise UserError(
            f"{where}: {len(np.unique(rows[ids < 0]))} rows hold a negative id in {by}; balanced sampling needs class ids, from 0"
        )
    counted = np.ones(len(lengths), bool) if share == 1 else part(len(lengths), share)
    held = np.unique(np.stack([rows, ids], 1)[counted[rows]], axis=0)
    counts = np.bincount(held[:, 1], minlength=int(ids.max()) + 1)
    factors = np.sqrt(np.divide(counts.max(), counts, out=np.ones(len(counts)), where=counts > 0))
    order = np.argsort(factors, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    rarest = np.zeros(len(lengths), np.int64)
    np.maximum.at(rarest, rows, rank[ids])
    return _small(rarest, len(order) + 1), np.concatenate([[1.0], factors[order]])


def _weighted(values: np.ndarray, weights: tuple[float, ...], where: str, by: str) -> Strata:
    if not weights:
        table, inverse = np.unique(values.astype(np.float64), return_inverse=True)
    else:
        table, inverse = np.array(weights, np.float64), values
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= len(table):
            raise UserError(
                f"{where}: {by} holds {values.min()} to {values.max()}, and there are {len(table)} weights, for class "
                f"ids 0 to {len(table) - 1}"
            )
    used = table[np.unique(inverse)]
    if not np.isfinite(used).all() or used.min() < 0 or used.max() <= 0:
        raise UserError(
            f"{where}: weights of {used.min():g} to {used.max():g}; they must be finite, not negative, and not all 0"
        )
    return _small(inverse, len(table)), table


def _small(values: np.ndarray, count: int) -> np.ndarray:
    return np.ascontiguousarray(values, np.int16 if count <= 2**15 else np.int32)


@lru_cache(maxsize=4)
def _column(index: SplitIndex, name: str, words: bool = False) -> np.ndarray:
    with ThreadPoolExecutor(READERS) as pool:
        return np.concatenate(list(pool.map(lambda file: _file_column(file, index, name, words), index.files)))


def _file_column(file: ShardFile, index: SplitIndex, column: str, words: bool) -> np.ndarray:
    """One column of a file, whole; its numbers as small as they go. With `words` text is welcome: an int64 that is equal for
    equal text."""
    import pyarrow as pa

    values = _values(file, index, column)
    if words and not values.null_count and pa.types.is_string(values.type):
        return np.array([text_key(text) for text in values.to_pylist()], np.int64)
    if values.null_count or not _is_number(values.type):
        raise UserError(
            f"{file.uri}: column {column} must be a number{' or text' if words else ''} in every row; it is {values.type}"
        )
    array = values.to_numpy(zero_copy_only=False)
    return array.astype(np.int32) if array.dtype.kind in "iu" else array.astype(np.float32)


def _values(file: ShardFile, index: SplitIndex, column: str) -> pa.Array:
    """One column of a file, whole, as it is stored."""

    def read() -> pa.ChunkedArray:
        with opened(index, file) as parquet:
            if column not in parquet.schema_arrow.names:
                raise UserError(f"{file.uri}: no column {column}, by which its rows are to be drawn")
            return parquet.read(columns=[column]).column(column)

    return whole(index, file, read).combine_chunks()


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind) or pa.types.is_floating(kind)
