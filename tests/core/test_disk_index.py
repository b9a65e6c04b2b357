"""Names on disk against a dictionary of them in memory; and that memory does not grow with their number."""

import subprocess
import sys
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapsto.core import disk_index, local
from mapsto.core.disk_index import DiskIndex
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage

WORDS = st.text(st.characters(codec=None, exclude_characters="\0"), max_size=4) | st.sampled_from(
    ["a", "b", "\udcff", "ä", "𝄞"]
)


@given(st.lists(st.tuples(WORDS, WORDS, st.integers(0, 2**40))), WORDS)
def test_it_finds_sorts_and_notes_as_a_dictionary_does(entries, other):
    index, held = DiskIndex(), defaultdict(list)
    for half in (entries[::2], entries[1::2]):
        index.extend(half)
        for entry in half:
            held[entry[0]].append(entry)
    ordered = entries[::2] + entries[1::2]
    assert list(index) == ordered and len(index) == len(entries)
    assert list(index.by_key()) == sorted(ordered, key=lambda entry: entry[0].encode("utf-8", "surrogatepass"))
    for key in (*held, other):
        assert index.of(key) == held.get(key, []) and index.count(key) == len(held.get(key, []))
    for key in list(held)[::2]:
        index.use(key)
    for entry in (entry for key in list(held)[1::2] for entry in held[key][:1]):
        index.use(entry[0], entry[1])
    used = set(list(held)[::2])
    first = {(key, held[key][0][1]) for key in list(held)[1::2]}
    left = [entry for entry in ordered if entry[0] not in used and entry[:2] not in first]
    assert sorted(index.unused()) == sorted(left)


def test_a_large_folder_is_sorted_on_disk_as_a_small_one_is_in_memory(tmp_path, monkeypatch):
    for k in range(60):
        Storage().write(f"{tmp_path}/{k % 7}{'/x' * (k % 3)}/{k}", b"x" * k)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder").symlink_to(tmp_path / "0")
    whole = list(Storage().walk(str(tmp_path)))
    assert sorted(whole) == sorted(
        (str(path), path.stat().st_size if path.exists() else 0)
        for path in tmp_path.rglob("*")
        if path.is_symlink() or path.is_file()
    )
    for held in (1, 3, 10):
        monkeypatch.setattr(local, "HELD", held)
        assert list(Storage().walk(str(tmp_path))) == whole
        assert list(Storage().walk(f"file://{tmp_path}")) == [(f"file://{uri}", size) for uri, size in whole]


def test_a_full_disk_is_one_line(monkeypatch):
    monkeypatch.setattr(disk_index, "CACHE_KIB", 10)
    index = DiskIndex()
    index._db.execute("PRAGMA max_page_count = 4")
    with pytest.raises(UserError, match=r"no room for an index of names .*; set TMPDIR to a larger disk$"):
        index.extend((str(k), "x" * 100, 0) for k in range(1000))


GROWTH = """
import resource, sys
from mapsto.core.disk_index import DiskIndex
index = DiskIndex()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
index.extend((f"{k:012d}", f"images/train/{k:012d}.jpg", 1000) for k in range(int(sys.argv[1])))
assert index.count("000000000007") == 1
assert sum(1 for _ in index.by_key()) == sum(1 for _ in index) == int(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_names():
    done = subprocess.run([sys.executable, "-c", GROWTH, "400000"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3 * disk_index.CACHE_KIB  # the names alone are 50 MiB as Python's strings
