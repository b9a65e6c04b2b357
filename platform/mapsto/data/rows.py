"""Random access by `row_id`: a shard says where each of its rows lies, so that an image takes one ranged read.

The index lies in the Parquet file itself, between its last row group and its footer, where other readers do not look (Parquet
places its own page indexes there: https://parquet.apache.org/docs/file-format/pageindex/). The manifest says where it begins.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.sample import Sample
from .dataset import ShardFile, SplitIndex, read_group

if TYPE_CHECKING:
    import pyarrow as pa

RECORD = np.dtype([("row_id", "<i8"), ("group", "<i4"), ("place", "<i4"), ("offset", "<i8"), ("size", "<i8")])
"""A row: its id, row group and place in that, and where its image's bytes lie in the file (-1: not known)."""
_FOOTER = 8
"""Bytes after the footer: its length, and a magic word."""


def with_index(shard: pa.Buffer) -> tuple[bytes, dict[str, list[int]]]:
    """A shard's bytes with its row index in them, and what the manifest says of it: `ids`, the least and the greatest `row_id`;
    `index`, its offset and size. Images must be stored plainly, uncompressed, as `write_shard` does."""
    records = _located(shard)
    data = memoryview(shard).cast("B")
    at = len(data) - _FOOTER - int.from_bytes(data[-_FOOTER:-4], "little")
    block = records.tobytes()
    said = {"ids": [int(records["row_id"][0]), int(records["row_id"][-1])], "index": [at, len(block)]}
    return b"".join((data[:at], block, data[at:])), said


def _located(shard: pa.Buffer) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts, data = [], memoryview(shard).cast("B")
    with pq.ParquetFile(pa.BufferReader(shard)) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["row_id", "image"])
            part = np.zeros(table.num_rows, RECORD)
            part["row_id"], part["group"], part["place"] = table["row_id"].to_numpy(), group, np.arange(len(part))
            about = file.metadata.row_group(group)
            columns = (about.column(k) for k in range(about.num_columns))
            at = next(each for each in columns if each.path_in_schema == "image").data_page_offset
            for place, image in enumerate(table["image"].to_pylist()):
                at = _place(data, image, at)
                part["offset"][place], part["size"][place] = at, len(image)
                at += len(image)
            parts.append(part)
    return np.sort(np.concatenate(parts), order="row_id")


def _place(data: memoryview, image: bytes, at: int) -> int:
    """Where an image's bytes begin, from `at` on: PLAIN writes their length before them, and a page's header before its first."""
    length = struct.pack("<I", len(image))
    while data[at : at + 4] != length or bytes(data[at + 4 : at + 4 + len(image)]) != image:
        at += 1
        if at >= len(data):
            raise ValueError("an image that is not where Parquet's PLAIN encoding has it")
    return at + 4


class Rows:
    """The rows of some splits by their ids. A shard's index is read when a row of it is first asked for, and kept."""

    def __init__(self, splits: Sequence[SplitIndex]) -> None:
        self._files = [(split, number, file) for split in splits for number, file in enumerate(split.files)]
        self._records: dict[str, np.ndarray] = {}

    def image(self, row_id: int) -> bytes:
        """A row's encoded image, by one ranged read. Raises KeyError for an id that no shard holds."""
        return self._image(*self._find(row_id))

    def place(self, row_id: int) -> tuple[int, int]:
        """The number of a row's shard, counted over all splits in their order, and of the row in that. Raises KeyError for an id
        that no shard holds."""
        _, _, file, record = self._find(row_id)
        shard = next(k for k, (_, _, each) in enumerate(self._files) if each.uri == file.uri)
        return shard, sum(file.groups[: record["group"]]) + int(record["place"])

    def samples(self, row_ids: Sequence[int], columns: Sequence[str]) -> list[Sample]:
        """Rows in the given order; `row_id` always comes along. Raises KeyError for an id that no shard holds."""
        small = [name for name in dict.fromkeys([*columns, "row_id"]) if name != "image"]
        groups: dict[tuple[str, int, int], list[Sample]] = {}
        out = []
        for row_id in row_ids:
            split, number, file, record = self._find(int(row_id))
            key = (split.name, number, int(record["group"]))
            if key not in groups:
                before = sum(len(f.groups) for f in split.files[:number])
                groups[key] = read_group(split, before + key[2], small).to_pylist()
            sample = dict(groups[key][record["place"]])
            if "image" in columns:
                sample["image"] = self._image(split, number, file, record)
            out.append(sample)
        return out

    def _image(self, split: SplitIndex, number: int, file: ShardFile, record: np.void) -> bytes:
        start, size = int(record["offset"]), int(record["size"])
        if start >= 0:
            return split.storage.read_range(file.uri, start, start + size)
        before = sum(len(f.groups) for f in split.files[:number])
        return read_group(split, before + int(record["group"]), ["image"])["image"][int(record["place"])].as_py()

    def _find(self, row_id: int) -> tuple[SplitIndex, int, ShardFile, np.void]:
        for split, number, file in self._files:
            if file.ids is None or file.ids[0] <= row_id <= file.ids[1]:
                records = self._index(split, number, file)
                at = int(np.searchsorted(records["row_id"], row_id))
                if at < len(records) and records["row_id"][at] == row_id:
                    return split, number, file, records[at]
        raise KeyError(f"no row with id {row_id} in {', '.join(dict.fromkeys(s.name for s, _, _ in self._files))}")

    def _index(self, split: SplitIndex, number: int, file: ShardFile) -> np.ndarray:
        if file.uri not in self._records:
            if file.index is not None:
                start, size = file.index
                found = np.frombuffer(split.storage.read_range(file.uri, start, start + size), RECORD)
            else:
                found = np.sort(np.concatenate(list(_scanned(split, number, file))), order="row_id")
            self._records[file.uri] = found
        return self._records[file.uri]


def _scanned(split: SplitIndex, number: int, file: ShardFile) -> Iterator[np.ndarray]:
    """The records of a shard that has no index, from its column of ids; where the images lie is not known."""
    before = sum(len(f.groups) for f in split.files[:number])
    for group, rows in enumerate(file.groups):
        part: Any = np.zeros(rows, RECORD)
        part["row_id"] = read_group(split, before + group, ["row_id"])["row_id"].to_numpy()
        part["group"], part["place"], part["offset"] = group, np.arange(rows), -1
        yield part
