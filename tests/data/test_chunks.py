"""Listings cut into chunks: exact stratified splits, every reference once."""

import itertools
import json
from collections import Counter
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.data import chunks
from mapsto.data.chunks import cut, ordered_classes, read_chunk
from mapsto.data.sources.item import Reference
from mapsto.data.splits import Chooser, Grouped


def references(counts, split=None):
    return [
        Reference(f"{name}/{k}", f"{name}/{k}", size=1000, label=name, split=split)
        for name, n in counts.items()
        for k in range(n)
    ]


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 60), min_size=1),
    st.sampled_from([0.0, 0.1, 0.25]),
    st.sampled_from([0.0, 0.1, 0.4]),
    st.integers(0, 99),
)
def test_every_class_gives_its_share_and_the_whole_its_own(counts, val, test, seed):
    chooser = Chooser(counts, val, test, seed)
    got = Counter((r.label, chooser.split(r)) for r in references(counts))
    rows = sum(counts.values())
    assert sum(n for (_, s), n in got.items() if s != "train") == round((val + test) * rows)
    for name, n in counts.items():
        held = got[name, "val"] + got[name, "test"]
        assert abs(held - (val + test) * n) <= 1
        assert abs(got[name, "val"] - val * n) <= 1.5


def test_splits_that_the_source_gives_are_kept_and_not_drawn_again(tmp_path):
    store = Storage()
    listed = cut(
        [*references({"a": 50, "b": 50}, "train"), *references({"a": 20}, "test")],
        store,
        str(tmp_path),
        {"val": 0.1, "test": 0.5},
        0,
        None,
    )
    assert listed.given == ("test", "train") and listed.rows == 120
    got = Counter()
    for number in range(listed.chunks):
        split, _, found = read_chunk(store, str(tmp_path), number)
        got[split] += len(found)
    assert got == {"train": 90, "val": 10, "test": 20}


def test_every_reference_once_with_ids_in_a_row_and_the_same_for_a_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 7)
    monkeypatch.setattr(chunks, "SHUFFLE_ROWS", 20)
    store, wanted = Storage(), references({"a": 40, "b": 33})
    runs = []
    for folder, seed in (("one", 1), ("again", 1), ("other", 2)):
        listed = cut(wanted, store, str(tmp_path / folder), {"val": 0.2}, seed, None)
        runs.append([read_chunk(store, str(tmp_path / folder), n) for n in range(listed.chunks)])
    assert runs[0] == runs[1] != runs[2]
    first = 0
    for _, start, found in runs[0]:
        assert start == first and len(found) <= 7
        first += len(found)
    assert sorted(r.name for _, _, found in runs[0] for r in found) == sorted(r.name for r in wanted)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=12, max_size=40), st.integers(0, 99))
def test_no_group_straddles_two_splits(sizes, seed):
    people = [
        Reference(f"{k}/{i}", f"{k}/{i}", label="face", columns={"identity": f"person {k}"})
        for k, size in enumerate(sizes)
        for i in range(size)
    ]
    chooser = Grouped(Counter(r.columns["identity"] for r in people), 0.2, 0.2, seed, "identity")
    of: dict[str, set[str]] = {}
    got = Counter()
    for each in people:
        of.setdefault(each.columns["identity"], set()).add(chooser.split(each))
        got[chooser.split(each)] += 1
    assert all(len(found) == 1 for found in of.values())
    for split in ("val", "test"):
        assert abs(got[split] - 0.2 * len(people)) <= 6  # half of the largest group


def test_groups_reach_the_chunks_and_a_column_that_is_not_there_is_told(tmp_path):
    people = [
        Reference(f"{k}-{i}", f"{k}-{i}", size=9, columns={"identity": str(k)}) for k in range(20) for i in range(5)
    ]
    listed = cut(people, Storage(), str(tmp_path / "a"), {"val": 0.2, "test": 0.2}, 0, None, "identity")
    where: dict[str, set[str]] = {}
    for number in range(listed.chunks):
        split, _, found = read_chunk(Storage(), str(tmp_path / "a"), number)
        for each in found:
            where.setdefault(each.columns["identity"], set()).add(split)
    assert Counter(next(iter(s)) for s in where.values()) == {"train": 12, "val": 4, "test": 4}
    assert all(len(s) == 1 for s in where.values())
    with pytest.raises(UserError, match="no row has the column identity"):
        cut(references({"a": 5}), Storage(), str(tmp_path / "b"), {"val": 0.2}, 0, None, "identity")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=9), st.integers(1, 300), st.integers(0, 99))
def test_rows_of_no_group_reach_the_share_that_groups_cannot(sizes, single, seed):
    chooser = Grouped({str(k): size for k, size in enumerate(sizes)}, 0.2, 0.1, seed, "identity", single)
    rows = [Reference(f"{k}-{i}", columns={"identity": str(k)}) for k, size in enumerate(sizes) for i in range(size)]
    rows += [Reference(f"nobody {k}") for k in range(single)]
    got = Counter(chooser.split(each) for each in rows)
    for split, share in (("val", 0.2), ("test", 0.1)):
        enough = share * single > 15  # half of the largest group
        assert abs(got[split] - share * len(rows)) <= (1 if enough else 1 + max(sizes, default=0) / 2)


def test_names_of_rows_without_a_group_are_not_counted(tmp_path, monkeypatch):
    seen: list[dict[str, int]] = []

    class Spied(Grouped):
        def __init__(self, counts, *rest):
            seen.append(dict(counts))
            super().__init__(counts, *rest)

    monkeypatch.setattr(chunks, "Grouped", Spied)
    rows = [Reference(f"{k}", size=9, columns={"identity": "ann"} if k < 3 else {}) for k in range(50)]
    cut(rows, Storage(), str(tmp_path), {"val": 0.2}, 0, None, "identity")
    assert seen == [{"ann": 3}]


def test_groups_that_the_source_s_own_splits_part_are_counted(tmp_path):
    """Person 0 is in its test and its val, person 1 in its test and in what is drawn; row x is nobody's, and row y is refused."""
    people = [
        Reference(f"{k}-{i}", f"{k}-{i}", size=9, columns={"identity": str(k)}, split=split)
        for k, splits in enumerate(
            (("test", "val"), ("test", "train"), ("test", "test"), ("train", "train"), (None, None))
        )
        for i, split in enumerate(splits)
    ]
    people += [Reference(name, name, size=9, split=split) for name, split in (("x", "test"), ("x", "train"))]
    people.append(Reference("y", columns={"identity": "3"}, split="test", reason="a link"))
    listed = cut(people, Storage(), str(tmp_path / "a"), {}, 0, None, "identity")
    assert (listed.groups, listed.straddling) == (5, 2)
    assert chunks.Listed.of(json.loads(json.dumps(asdict(listed)))) == listed
    listed = cut(people, Storage(), str(tmp_path / "b"), {}, 0, None)
    assert (listed.groups, listed.straddling) == (0, 0)


def test_a_limit_takes_from_the_whole_listing(tmp_path):
    listed = cut(references({"a": 100, "b": 100, "c": 100}), Storage(), str(tmp_path), {}, 0, 60)
    found = [r for n in range(listed.chunks) for r in read_chunk(Storage(), str(tmp_path), n)[2]]
    assert len(found) == 60 and min(Counter(r.label for r in found).values()) > 8


def test_classes_are_in_the_order_of_their_names():
    assert ordered_classes(["10", "9", "2"]) == ("2", "9", "10")
    assert ordered_classes(["b", "10", "a"]) == ("10", "a", "b")
    for names in itertools.permutations(("1", "01", "2", "001")):  # a set gives them in any order
        assert ordered_classes(names) == ("001", "01", "1", "2")
    assert ordered_classes(["9" * 5000, "1"]) == ("1", "9" * 5000)


def test_the_classes_that_a_source_declares_come_first_in_its_order(tmp_path):
    listed = cut(
        references({"b": 1, "z": 1, "a": 1}), Storage(), str(tmp_path), {}, 0, None, declared=("z", "none", "b")
    )
    assert listed.classes == ("z", "none", "b", "a")
