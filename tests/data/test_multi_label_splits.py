"""Splits of rows of several classes: each class's share beside iterative stratification's, which has all rows at hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mapsto.core.storage import Storage
from mapsto.data.chunks import cut, read_chunk
from mapsto.data.sources.item import Reference

SHARES = {"val": 0.1, "test": 0.2}
SPLITS = ("val", "test", "train")


def drawn(rows: int, classes: int, seed: int) -> list[set[int]]:
    """Sets of classes, 2 in the mean, the k-th as 1/k as frequent as the first."""
    rng = np.random.default_rng(seed)
    odds = 1 / np.arange(1, classes + 1)
    sizes = np.minimum(rng.poisson(2, rows), classes)
    return [set(rng.choice(classes, n, replace=False, p=odds / odds.sum()).tolist()) for n in sizes]


def split(rows: list[set[int]], column: str, folder, seed: int = 0) -> list[str]:
    """Each row's split. Without a column a row's one class is its label."""
    names = [[str(c) for c in row] for row in rows]
    given = [
        Reference(f"{k}", size=9, columns={column: row}) if column else Reference(f"{k}", size=9, label=row[0])
        for k, row in enumerate(names)
    ]
    listed = cut(given, Storage(), str(folder), SHARES, seed, None)
    where = {}
    for number in range(listed.chunks):
        name, _, found = read_chunk(Storage(), str(folder), number)
        where |= {int(reference.name): name for reference in found}
    return [where[k] for k in range(len(rows))]


def off(rows: list[set[int]], where: list[str]) -> np.ndarray:
    """By how many rows each class, and all rows, miss their share, for val and for test."""
    sizes, got = Counter(), Counter()
    for row, name in zip(rows, where, strict=True):
        sizes.update([*row, None])
        got.update((k, name) for k in [*row, None])
    return np.array([abs(got[k, name] - share * n) for k, n in sizes.items() for name, share in SHARES.items()])


def iterative(rows: list[set[int]]) -> list[str]:
    """Sechidis, Tsoumakas and Vlahavas, On the Stratification of Multi-Label Data (2011), algorithm 1."""
    shares = [*SHARES.values(), 1 - sum(SHARES.values())]
    left, where = Counter(k for row in rows for k in row), [""] * len(rows)
    wanted = {k: [share * n for share in shares] for k, n in left.items()} | {
        None: [share * len(rows) for share in shares]
    }
    while rest := [k for k, name in enumerate(where) if not name]:
        rarest = min((k for k in left if left[k]), key=lambda k: left[k], default=None)
        for k in rest:
            if rarest is None or rarest in rows[k]:
                s = max(range(3), key=lambda s: (wanted[rarest][s], wanted[None][s]))
                where[k] = SPLITS[s]
                left.subtract(rows[k])
                for each in (*rows[k], None):
                    wanted[each][s] -= 1
    return where


@pytest.mark.parametrize(("rows", "classes"), [(300, 3), (600, 14), (1500, 60)])
@pytest.mark.parametrize("column", ["labels", "box_labels"])
def test_every_class_has_its_share_as_by_iterative_stratification(tmp_path, rows, classes, column):
    given = drawn(rows, classes, seed=rows)
    ours, theirs = off(given, split(given, column, tmp_path)), off(given, iterative(given))
    by_chance = off(given, np.random.default_rng(0).choice(SPLITS, rows, p=[0.1, 0.2, 0.7]).tolist())
    assert ours.max() <= 3 and ours.mean() <= theirs.mean() + 0.3 and ours.mean() < by_chance.mean() / 2


def test_another_seed_gives_other_splits_as_even(tmp_path):
    given = drawn(400, 10, seed=1)
    first, again, other = (split(given, "labels", tmp_path / str(k), seed) for k, seed in enumerate((0, 0, 1)))
    assert first == again != other and off(given, other).max() <= 3


def test_one_class_a_row_in_a_list_is_drawn_as_a_label(tmp_path):
    given = [{k % 7} for k in range(350)]
    assert off(given, split(given, "labels", tmp_path / "lists")).max() <= 1
    assert split(given, "labels", tmp_path / "lists") == split(given, "", tmp_path / "labels")


def test_an_empty_label_is_none_beside_lists(tmp_path):
    """The listing's file, which is read a second time, does not keep it."""
    given = [Reference(f"{k}", size=9, label="", columns={"labels": ["a", "b"][: k % 3]}) for k in range(30)]
    assert cut(given, Storage(), str(tmp_path), SHARES, 0, None).rows == 30


@pytest.mark.parametrize("seed", range(8))
def test_a_split_whose_share_is_a_row_has_one(tmp_path, seed):
    assert {"val", "test"} <= set(split([{0, 1}] * 6, "labels", tmp_path, seed))
