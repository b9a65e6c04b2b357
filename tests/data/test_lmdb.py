"""LMDB environments written by the LMDB library itself, read by byte ranges."""

from __future__ import annotations

import struct
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapsto.core.codecs import encode
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.data.reading import fetch
from mapsto.data.sources import detect, listing
from mapsto.data.sources.lmdb import entries

STORE = Storage(retries=0)


def environment(folder: Path, values: dict[bytes, bytes]) -> Path:
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**25) as env, env.begin(write=True) as out:
        for key, value in values.items():
            out.put(key, value)
    return folder / "data.mdb"


def some(count: int, seed: int = 0) -> dict[bytes, bytes]:
    """Random keys of any bytes, values within a page and over several."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([0, 1, 300, 2000, 5000, 20_000], count)
    return {rng.bytes(int(rng.integers(1, 90))): rng.bytes(int(size)) for size in sizes}


def test_every_key_and_value_is_what_the_library_reads(tmp_path):
    file = environment(tmp_path / "e", some(900))
    with lmdb.open(str(file.parent)) as env:
        with env.begin(write=True) as out:  # a second state of the tree, with pages freed and reused
            for key in list(out.cursor().iternext(values=False))[::3]:
                out.delete(key)
            for key, value in some(200, seed=1).items():
                out.put(key, value)
        assert env.stat()["depth"] >= 2
        with env.begin() as txn:
            wanted = [(bytes(key), bytes(value)) for key, value in txn.cursor()]
    data = file.read_bytes()
    found = list(entries(str(file), len(data), STORE))
    assert [(key, data[at : at + size]) for key, at, size, _ in found] == wanted


def test_lsuns_folders_give_label_and_split(tmp_path):
    pictures = {f"{k:04x}".encode(): encode(np.full((8, 9, 3), k, np.uint8), "webp") for k in range(3)}
    for folder in ("church_outdoor_train_lmdb", "church_outdoor_val_lmdb", "test_lmdb", "val/cat"):
        environment(tmp_path / folder, pictures)
    (tmp_path / "notes.txt").write_text("x")
    assert detect(str(tmp_path), STORE)[0] == "lmdb"
    references = list(listing("lmdb", str(tmp_path), STORE, ""))
    seen = {(r.uri.removeprefix(f"{tmp_path}/"), r.label, r.split) for r in references if not r.reason}
    assert seen == {
        ("church_outdoor_train_lmdb/data.mdb", "church_outdoor", "train"),
        ("church_outdoor_val_lmdb/data.mdb", "church_outdoor", "val"),
        ("test_lmdb/data.mdb", None, "test"),
        ("val/cat/data.mdb", "cat", "val"),
    }
    assert [r.reason for r in references if r.reason] == ["not an LMDB environment's data.mdb"]
    got = {r.name.rsplit("!")[1]: data for r, data in fetch(references, STORE) if not r.reason}
    assert got == {key.decode(): value for key, value in pictures.items()}
    one = list(listing("lmdb", str(tmp_path / "church_outdoor_val_lmdb/data.mdb"), STORE, ""))
    assert {(r.label, r.split) for r in one} == {("church_outdoor", "val")} and len(one) == 3


def test_an_empty_one_and_named_databases(tmp_path):
    file = environment(tmp_path / "e", {})
    assert list(entries(str(file), file.stat().st_size, STORE)) == []
    with lmdb.open(str(tmp_path / "n"), map_size=2**20, max_dbs=2) as env:
        inner = env.open_db(b"inner")
        with env.begin(write=True) as out:
            out.put(b"a", b"1", db=inner)
            out.put(b"b", b"2")
    found = list(entries(str(tmp_path / "n/data.mdb"), (tmp_path / "n/data.mdb").stat().st_size, STORE))
    assert [(key, bool(reason)) for key, _, _, reason in found] == [(b"b", False), (b"inner", True)]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda data: data[:100], "not LMDB's"),
        (lambda data: b"", "not LMDB's"),
        (lambda data: b"no database at all" * 500, "not LMDB's"),
        (lambda data: data[:16] + data[16:20][::-1] + data[20:], "another kind of machine"),
        (lambda data: data[:12] + data[16:20] + data[16:], "another kind of machine"),
        (lambda data: data.replace(data[16:24], data[16:20] + struct.pack("<I", 2)), "version 2 of LMDB's file format"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, broken, says):
    file = environment(tmp_path / "e", some(300))
    file.write_bytes(broken(file.read_bytes()))
    with pytest.raises(UserError, match=says) as told:
        list(listing("lmdb", str(file.parent), STORE, ""))
    assert "\n" not in str(told.value) and str(file) in str(told.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    return environment(tmp_path_factory.mktemp("lmdb") / "e", some(300)).read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 63), st.integers(0, 255)), max_size=30))
def test_no_damage_to_its_pages_is_worse_than_an_error(whole, tmp_path_factory, damage):
    """The library, which trusts its pages, would end the process."""
    data = bytearray(whole)
    for page, place, value in damage:
        data[(2 + page % (len(data) // 4096 - 2)) * 4096 + place] = value
    file = tmp_path_factory.mktemp("damaged") / "data.mdb"
    file.write_bytes(data)
    try:
        found = list(entries(str(file), len(data), STORE))
    except UserError:
        return
    assert len(found) == 300 or any(reason for *_, reason in found)
    assert all(0 <= at <= at + size <= len(data) for _, at, size, _ in found)
