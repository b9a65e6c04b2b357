"""A data set as an artifact: a manifest (`dataset.json`) and Parquet shards that hold the images' encoded bytes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..core.artifact import Artifact, digest
from ..core.errors import UserError, nearest
from ..core.sample import DatasetInfo, Sample
from ..core.storage import Storage, join

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Read = TypeVar("Read")
MANIFEST = "dataset.json"
ROWS_PER_DRAWN_GROUP = 16


def content_digest(manifest: Mapping[str, Any]) -> str:
    """What a data set holds, as an artifact's digest: its classes and its shards' hashes, in the manifest's order."""
    content = [file["sha256"].encode() for split in manifest["splits"].values() for file in split["files"]]
    return digest(repr(tuple(manifest["classes"])).encode(), *content)


@dataclass(frozen=True)
class ShardFile:
    """One Parquet file of a split. Files are immutable: the same URI always holds the same bytes."""

    uri: str
    rows: int
    groups: tuple[int, ...]
    """Rows of each row group, in file order."""
    bytes: int
    sha256: str = ""
    ids: tuple[int, int] | None = None
    """Least and greatest `row_id`; None in data sets from before there was an index."""
    index: tuple[int, int] | None = None
    """Offset and size of the row index in the file (`rows.RECORD`)."""

    @staticmethod
    def of(entry: Mapping[str, Any], uri: str) -> ShardFile:
        """From its entry in a manifest."""
        places = {name: tuple(entry[name]) for name in ("ids", "index") if name in entry}
        return ShardFile(uri, entry["rows"], tuple(entry["groups"]), entry["bytes"], entry["sha256"], **places)

    def entry(self) -> dict[str, Any]:
        """Its entry in the manifest of another version, by its URI."""
        places = {"ids": self.ids, "index": self.index}
        return {
            "path": self.uri, "rows": self.rows, "groups": list(self.groups), "bytes": self.bytes, "sha256": self.sha256,
        } | {name: list(value) for name, value in places.items() if value is not None}  # fmt: skip


def starts(groups: np.ndarray) -> np.ndarray:
    """Rows of every row group → the row number at which each begins, and the number of rows at the end: G+1 int64."""
    return np.concatenate([[0], np.cumsum(groups)]).astype(np.int64)


@dataclass(frozen=True)
class SplitIndex:
    """Where the rows of one split lie. Small and picklable; row number i is the i-th in file and row-group order."""

    name: str
    files: tuple[ShardFile, ...]
    storage: Storage

    @cached_property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @cached_property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @cached_property
    def groups(self) -> np.ndarray:
        """Rows of every row group over all files, int64."""
        return np.array([rows for file in self.files for rows in file.groups], np.int64)

    @cached_property
    def starts(self) -> np.ndarray:
        return starts(self.groups)

    @cached_property
    def places(self) -> np.ndarray:
        """Row group number → (file, row group in the file): G×2 int64."""
        pairs = [(f, g) for f, file in enumerate(self.files) for g in range(len(file.groups))]
        return np.array(pairs, np.int64).reshape(-1, 2)

    def group(self, number: int) -> tuple[ShardFile, int]:
        """The file of a row group, and the group's number in it."""
        file, group = self.places[number]
        return self.files[file], int(group)

    def __getstate__(self) -> dict[str, Any]:  # without the cached properties
        return {"name": self.name, "files": self.files, "storage": self.storage}


@dataclass(frozen=True)
class Dataset:
    """A complete data set artifact, opened: `Dataset.open(artifact)`."""

    artifact: Artifact
    manifest: dict[str, Any]
    fingerprint: str

    @staticmethod
    def open(artifact: Artifact) -> Dataset:
        """Raises UserError when the artifact is not complete or is no data set."""
        meta = artifact.meta()
        if not artifact.storage.exists(artifact.path(MANIFEST)):
            raise UserError(f"{artifact.uri}: not a data set ({MANIFEST} is missing); `mapsto ingest` makes one")
        return Dataset(artifact, artifact.read_json(MANIFEST), f"{meta['fingerprint']}:{meta['digest']}")

    def info(self) -> DatasetInfo:
        m = self.manifest
        return DatasetInfo(
            uri=self.artifact.uri,
            fingerprint=self.fingerprint,
            classes=tuple(m["classes"]),
            rows={name: split["rows"] for name, split in m["splits"].items()},
            columns=tuple(m["columns"]),
            mean=tuple(m["mean"]),
            std=tuple(m["std"]),
            counts=m["counts"],
            mask_pixels=m.get("mask_pixels", {}),
            values=m.get("values", {}),
        )

    def split(self, name: str) -> SplitIndex:
        """The index of one split; UserError for a split that the data set lacks."""
        splits = self.manifest["splits"]
        if name not in splits:
            raise UserError(f"{self.artifact.uri}: no split '{name}'{nearest(name, splits)}")
        files = tuple(ShardFile.of(entry, self._uri(entry["path"])) for entry in splits[name]["files"])
        return SplitIndex(name, files, self.artifact.storage)

    def read(
        self, split: str, columns: Sequence[str] | None = None, limit: int | None = None, seed: int | None = None
    ) -> list[Sample]:
        """Rows as samples (`image` as encoded bytes), for calibration and reports; `row_id` always comes along.

        With a seed: `limit` rows at random, up to 16 from each of enough row groups drawn at random, in an order that
        the seed fixes. Without: the first `limit` rows. Columns that the data set lacks raise UserError.
        """
        index = self.split(split)
        wanted = self._columns(columns)
        return list(_drawn(index, wanted, limit, seed) if seed is not None else _first(index, wanted, limit))

    def _columns(self, columns: Sequence[str] | None) -> list[str]:
        have = self.manifest["columns"]
        missing = [c for c in columns or () if c not in have]
        if missing:
            raise UserError(f"{self.artifact.uri}: no column '{missing[0]}'{nearest(missing[0], have)}")
        return list(dict.fromkeys([*(columns if columns is not None else have), "row_id"]))

    def _uri(self, path: str) -> str:
        return path if "://" in path or path.startswith("/") else join(self.artifact.uri, path)


def read_group(index: SplitIndex, number: int, columns: Sequence[str]) -> pa.Table:
    """Read one row group's columns (those that the file has) as an Arrow table.

    Raises UserError, with the shard's URI, for one that is gone, cut short, damaged or not the manifest's."""
    file, group = index.group(number)

    def read() -> pa.Table:
        with opened(index, file) as parquet:
            have = set(parquet.schema_arrow.names)
            table = parquet.read_row_group(group, columns=[c for c in columns if c in have])
        if file.ids is not None and "row_id" in table.column_names and len(table):
            ids = table["row_id"].to_numpy()
            if ids.min() < file.ids[0] or ids.max() > file.ids[1]:
                raise UserError(
                    f"{file.uri}: holds row_id {ids.min()} to {ids.max()} where the data set's manifest has "
                    f"{file.ids[0]} to {file.ids[1]}: replaced"
                )
        return table

    return whole(index, file, read)


@contextmanager
def opened(index: SplitIndex, file: ShardFile) -> Generator[pq.ParquetFile]:
    """A shard, whose pages' checksums are verified as they are read. Raises UserError for another one than the manifest's."""
    import pyarrow.parquet as pq

    filesystem, path = index.storage.arrow(file.uri)
    with (
        filesystem.open_input_file(path) as source,
        pq.ParquetFile(source, pre_buffer=True, page_checksum_verification=True) as parquet,
    ):
        found = [parquet.metadata.row_group(k).num_rows for k in range(parquet.num_row_groups)]
        if found != list(file.groups):
            raise UserError(f"{file.uri}: {sum(found)} rows where the data set's manifest has {file.rows}: replaced")
        if (size := source.size()) != file.bytes:
            raise UserError(f"{file.uri}: {size} bytes where the data set's manifest has {file.bytes}: replaced")
        yield parquet


def whole(index: SplitIndex, file: ShardFile, read: Callable[[], Read]) -> Read:
    """What `read` reads of a shard, once its store answers. Raises UserError, with its URI, for a damaged one."""
    import pyarrow as pa

    try:
        return index.storage.retry(file.uri, read)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{file.uri}: cut short or damaged, no whole Parquet file ({str(error).splitlines()[0]})"
        ) from error


def _first(index: SplitIndex, columns: list[str], limit: int | None) -> Iterator[Sample]:
    left = index.rows if limit is None else limit
    for number in range(len(index.groups)):
        if left <= 0:
            return
        rows = read_group(index, number, columns).slice(0, left).to_pylist()
        left -= len(rows)
        yield from rows


def _drawn(index: SplitIndex, columns: list[str], limit: int | None, seed: int) -> Iterator[Sample]:
    rng = np.random.default_rng(seed)
    left = index.rows if limit is None else min(limit, index.rows)
    order = rng.permutation(len(index.groups))
    for visited, number in enumerate(order):
        if left <= 0:
            return
        # The share grows when the groups still to come could not fill the rest with 16 rows each.
        later = int(np.minimum(index.groups[order[visited + 1 :]], ROWS_PER_DRAWN_GROUP).sum())
        size = int(index.groups[number])
        take = min(size, left, max(ROWS_PER_DRAWN_GROUP, left - later))
        picked = rng.choice(size, take, replace=False)
        left -= take
        yield from read_group(index, int(number), columns).take(picked).to_pylist()
