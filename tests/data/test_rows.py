"""Random access by `row_id`: one ranged read of exactly the image's bytes, whatever the size of the shard."""

import hashlib
import io
from typing import ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mapsto.core.artifact import Artifact
from mapsto.core.storage import Storage
from mapsto.data.dataset import ShardFile, SplitIndex
from mapsto.data.rows import RECORD, Rows, with_index
from mapsto.data.shards import shard_schema, write_shard

COLUMNS = ("caption",)


class Counted(MemoryFileSystem):
    """Keeps the ranges that were read: (bytes, from where); None for a whole file."""

    protocol = "counted"
    asked: ClassVar[list[tuple[int, int] | None]] = []

    def cat_file(self, path, start=None, end=None, **kwargs):
        self.asked.append(None if start is None else (end - start, start))
        return super().cat_file(path, start, end, **kwargs)


@pytest.fixture(autouse=True)
def file_system():
    fsspec.register_implementation("counted", Counted, clobber=True)
    Counted.asked.clear()


def images(ids) -> list[bytes]:
    """Random bytes of very different sizes, some of them equal, some empty."""
    rng = np.random.default_rng(3)
    made = [rng.bytes(int(rng.integers(0, 3000))) for _ in ids]
    made[5], made[6] = made[4], b""
    return made


def shard(artifact: Artifact, name: str, ids: np.ndarray, group: int) -> tuple[ShardFile, dict[int, bytes]]:
    pictures = images(ids)
    rows = {
        "image": pictures, "row_id": ids, "label": ids % 3, "content_sha256": ["0"] * len(ids), "width": [1] * len(ids),
        "height": [1] * len(ids), "format": ["jpeg"] * len(ids), "source": [f"{k}.jpg" for k in ids],
        "caption": [f"number {k}" for k in ids],
    }  # fmt: skip
    table = pa.table(rows).cast(shard_schema(COLUMNS))
    tables = (table.slice(start, group) for start in range(0, len(ids), group))
    entry = write_shard(artifact, f"shards/{name}.parquet", table.schema, tables)
    return ShardFile.of(entry, artifact.path(entry["path"])), dict(zip(ids.tolist(), pictures, strict=True))


@pytest.fixture
def rows():
    artifact = Artifact("counted://set", Storage(retries=0))
    order = np.random.default_rng(1).permutation(300)
    a, of_a = shard(artifact, "train-0", order[order < 180], 64)
    b, of_b = shard(artifact, "train-1", order[order >= 180], 50)
    Counted.asked.clear()
    return Rows([SplitIndex("train", (a, b), artifact.storage)]), of_a | of_b, (a, b), artifact


def test_an_image_is_one_ranged_read_of_its_own_bytes(rows):
    found, truth, _, _ = rows
    ranges = []
    for row_id, image in truth.items():
        Counted.asked.clear()
        assert found.image(row_id) == image
        ranges.append([each[0] for each in Counted.asked if each is not None])
    first = [each for each in ranges if len(each) == 2]
    assert len(first) == 2 and {each[0] for each in first} == {
        180 * RECORD.itemsize,
        120 * RECORD.itemsize,
    }  # the indexes
    assert all(each == [len(truth[row])] for row, each in zip(truth, ranges, strict=True) if len(each) == 1)
    assert {len(each) for each in ranges} == {1, 2}


def test_samples_come_in_the_order_asked_for(rows):
    found, truth, _, _ = rows
    samples = found.samples([250, 3, 179], ["image", "caption"])
    assert [s["row_id"] for s in samples] == [250, 3, 179]
    assert [s["caption"] for s in samples] == ["number 250", "number 3", "number 179"]
    assert [s["image"] for s in samples] == [truth[k] for k in (250, 3, 179)]
    assert set(samples[0]) == {"image", "caption", "row_id"}


def test_a_row_has_a_place_that_reads_no_column(rows):
    found, _, files, artifact = rows
    for row_id in (0, 3, 178, 250):
        shard, place = found.place(row_id)
        table = pq.read_table(io.BytesIO(artifact.storage.read(files[shard].uri)), columns=["row_id"])
        assert table["row_id"][place].as_py() == row_id
    Counted.asked.clear()
    assert found.place(7) and Counted.asked == []  # the indexes are there
    with pytest.raises(KeyError):
        found.place(300)


def test_an_unknown_row_reads_no_image(rows):
    found, _, _, _ = rows
    with pytest.raises(KeyError, match="no row with id 300 in train"):
        found.image(300)
    assert Counted.asked == []  # no shard has such ids


def test_a_shard_without_index_is_read_by_its_ids(rows):
    _, truth, (a, _), artifact = rows
    plain = ShardFile(a.uri, a.rows, a.groups, a.bytes)
    found = Rows([SplitIndex("train", (plain,), artifact.storage)])
    assert found.image(17) == truth[17] and found.samples([99], ["image"])[0]["image"] == truth[99]
    with pytest.raises(KeyError):
        found.image(250)


def test_other_readers_see_the_same_parquet(rows):
    _, truth, (a, _), artifact = rows
    data = artifact.storage.read(a.uri)
    assert hashlib.sha256(data).hexdigest() == a.sha256 and len(data) == a.bytes
    table = pq.read_table(io.BytesIO(data))
    assert dict(zip(table["row_id"].to_pylist(), table["image"].to_pylist(), strict=True)) == {
        k: v for k, v in truth.items() if k < 180
    }
    assert ShardFile.of(a.entry(), a.uri) == a


def test_the_index_says_where_the_bytes_lie():
    ids = np.array([7, 2, 9])
    table = pa.table({"image": pa.array([b"ab", b"", b"ab"], pa.binary()), "row_id": ids})
    sink = io.BytesIO()
    pq.write_table(table, sink, use_dictionary=False, compression="NONE")
    data, said = with_index(pa.py_buffer(sink.getvalue()))
    start, size = said["index"]
    records = np.frombuffer(data[start : start + size], RECORD)
    assert said["ids"] == [2, 9] and records["row_id"].tolist() == [2, 7, 9]
    assert [data[r["offset"] : r["offset"] + r["size"]] for r in records] == [b"", b"ab", b"ab"]
    assert records["offset"][1] != records["offset"][2]
