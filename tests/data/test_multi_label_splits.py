"""Splits of rows of several classes: each class's share beside iterative stratification's, which has all rows at hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mapsto.core.storage import Storage
from mapsto.data.chunks import cut, read_chunk
from mapsto.data.sources.item import Reference
from mapsto.data.splits import MultiLabel

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


@pytest.mark.parametrize("seed", range(4))
def test_a_period_in_the_rows_of_an_archive_is_none_in_a_split(tmp_path, seed):
    """Ten cameras by turns in an archive, whose members come in their order: no split has one camera alone."""
    given = [
        Reference(f"{k}", how="range", offset=k, size=9, columns={"labels": ["indoor", "chair"]}) for k in range(500)
    ]
    listed = cut(given, Storage(), str(tmp_path), {"val": 0.1, "test": 0.1}, seed, None)
    cameras: dict[str, Counter] = {}
    for number in range(listed.chunks):
        name, _, found = read_chunk(Storage(), str(tmp_path), number)
        cameras.setdefault(name, Counter()).update(int(reference.name) % 10 for reference in found)
    for name in ("val", "test"):
        assert cameras[name].total() == 50 and len(cameras[name]) >= 7 and max(cameras[name].values()) <= 20


def test_any_row_may_come_to_val(tmp_path):
    seen: Counter[int] = Counter()
    for seed in range(200):
        chooser = MultiLabel({"a": 40, "b": 40}, 40, 0.1, 0.1, seed)
        reference = Reference("x", columns={"labels": ["a", "b"]})
        seen.update(k for k in range(40) if chooser.split(reference) == "val")
    assert seen.total() == 200 * 4 and all(sum(seen[k] for k in range(r, 40, 10)) for r in range(10))


@pytest.mark.parametrize(
    ("rows", "most"),
    [
        ([[f"{k}-{tag}" for tag in range(10)] for k in range(200)], 1),
        ([["c", f"{k}-a", f"{k}-b"] for k in range(50)], 2),
        ([[str(tag) for tag in np.random.default_rng(k).choice(500, 20, replace=False)] for k in range(250)], 4),
        ([[*{str(tag) for tag in np.random.default_rng(k).zipf(1.5, 6)}] for k in range(500)], 6),
    ],
)
def test_the_whole_has_its_share_however_many_classes_are_rare(rows, most):
    """No class's share, a row or two at most, may leave the whole without its own; and not all at the end of the listing."""
    counts = Counter(name for row in rows for name in row)
    chooser = MultiLabel(counts, len(rows), 0.1, 0.1, 0)
    where = [chooser.split(Reference("x", columns={"labels": row})) for row in rows]
    wanted = len(rows) // 10
    assert where.count("val") == where.count("test") == wanted
    got = Counter((name, split) for row, split in zip(rows, where, strict=True) for name in row)
    assert max(abs(got[name, split] - n / 10) for name, n in counts.items() for split in ("val", "test")) <= most
    first = where[: len(rows) // 2]
    assert all(0.25 * wanted <= first.count(split) <= 0.75 * wanted for split in ("val", "test"))


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (0.3, 0.7), (1, 0), (0, 1), (0, 0), (0.499, 0.499)])
@pytest.mark.parametrize("rows", [1, 3, 5])
def test_shares_that_leave_train_little_or_nothing(val, test, rows):
    chooser = MultiLabel({"a": rows, "b": rows}, rows, val, test, 0)
    where = Counter(chooser.split(Reference("x", columns={"labels": ["a", "b"]})) for _ in range(rows))
    assert abs(where["val"] - val * rows) < 1 and abs(where["test"] - test * rows) < 1
    assert not where["train"] or val + test < 1
