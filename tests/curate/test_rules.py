"""Which of several copies stays, and how a rule about copies scores: on facts made by hand, values by hand."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from mapsto.core.sample import SPLITS
from mapsto.curate.duplicates import NO_PAIRS, Pairs
from mapsto.curate.facts import Facts, bits
from mapsto.curate.quality import MEASURES
from mapsto.curate.rules import RULES, Seen, Setting, Verdict, judge, same_pixels, with_near

GOOD = {"contrast": 0.5, "dark": 0.9, "bright": 0.5, "sharpness": 0.5, "entropy": 0.9, "colour": 0.5}


def facts(rows: list[tuple], **measures: dict[int, float]) -> Facts:
    """Rows of (split, label, picture): equal pictures have equal bytes."""
    n = len(rows)
    values = np.tile([GOOD[name] for name in MEASURES], (n, 1)).astype(np.float32)
    for name, given in measures.items():
        for row, value in given.items():
            values[row, MEASURES.index(name)] = value
    split, label, picture = zip(*rows, strict=True)
    seen = np.array([f"{name:>16}" for name in picture], "S16")
    none, side = np.full(n, -1, np.int64), np.full(n, 64)
    return Facts(
        np.arange(n), np.zeros(n, np.int32), np.arange(n, dtype=np.int32), np.array([SPLITS.index(s) for s in split], np.uint8),
        np.array(label), none, seen, seen, side, side, values, np.zeros(n, np.float32), np.zeros(n, np.int32), none.astype(np.int16),
        np.zeros((n, 1), np.uint8), np.zeros(n, bool),
        np.zeros(n, np.uint8), ("jpeg",),
    )  # fmt: skip


def judged(found: Facts, near: dict[tuple[str, str], float] | None = None, **rules: tuple[str, float]) -> Verdict:
    """The rules that are named, alone. `near`: (picture, picture) -> agreement."""
    equal = same_pixels(found)
    number = {name.decode().strip(): int(group) for name, group in zip(found.content, equal, strict=True)}
    sides = [sorted((number[a], number[b])) for a, b in near or {}]
    first, second = np.array(sides, np.int64).reshape(-1, 2).T
    pairs = Pairs(first, second, np.array(list((near or {}).values()), np.float32), np.zeros(len(sides), bool), 0)
    together = with_near(equal, pairs)
    settings = {name: Setting(*rules.get(name, ("off", rule.threshold))) for name, rule in RULES.items()}
    return judge(Seen(found, equal, together, pairs, together), settings)


def told(verdict: Verdict, rule: str) -> list[tuple[int, int, float]]:
    """(row, the row that it is about, score)."""
    found = verdict.found[rule]
    scores = [round(float(score), 3) for score in found.scores]
    return list(zip(found.rows.tolist(), found.others.tolist(), scores, strict=True))


def gone(verdict: Verdict) -> dict[int, str]:
    return {k: list(RULES)[number] for k, number in enumerate(verdict.dropped.tolist()) if number >= 0}


EXACT = {"exact_duplicate": ("quarantine", 1.0)}


def test_of_two_equal_ones_in_train_one_goes_wherever_a_third_lies():
    rows = facts([("train", 0, "a"), ("train", 0, "a"), ("test", 0, "a"), ("val", 0, "b"), ("train", 0, "b")])
    verdict = judged(rows, **EXACT, leakage=("report", 0.8))
    assert told(verdict, "exact_duplicate") == [(1, 0, 1)] and gone(verdict) == {1: "exact_duplicate"}
    assert told(verdict, "leakage") == [(0, 2, 1), (1, 2, 1), (4, 3, 1)]


def test_near_ones_in_train_are_found_wherever_a_third_lies():
    rows = facts([("train", 0, "a"), ("train", 0, "b"), ("test", 0, "c")])
    verdict = judged(rows, {("a", "b"): 0.9, ("a", "c"): 0.85, ("b", "c"): 0.95}, near_duplicate=("quarantine", 0.8))
    assert told(verdict, "near_duplicate") == [(1, 0, 0.9)] and gone(verdict) == {1: "near_duplicate"}


def test_the_copy_that_stays_is_one_that_no_other_rule_sends_away():
    rows = facts([("train", 0, "a"), ("train", 0, "b"), ("train", 1, "c")], sharpness={0: 0.01})
    rules = {"near_duplicate": ("quarantine", 0.8), "blurred": ("quarantine", 0.08)}
    verdict = judged(rows, {("a", "b"): 0.9}, **rules)
    assert gone(verdict) == {0: "near_duplicate"} and told(verdict, "near_duplicate") == [(0, 1, 0.9)]
    both = judged(
        facts([("train", 0, "a"), ("train", 0, "b")], sharpness={0: 0.01, 1: 0.02}), {("a", "b"): 0.9}, **rules
    )
    assert gone(both) == {0: "blurred", 1: "near_duplicate"}  # each is one that goes


@pytest.mark.parametrize("policy", ["quarantine", "report"])
def test_the_labelled_one_of_equal_ones_stays(policy):
    rows = facts([("train", -1, "a"), ("train", 3, "a"), ("train", 1, "b")])
    verdict = judged(rows, **EXACT, missing_label=(policy, 0.0))
    assert gone(verdict) == {0: "exact_duplicate"} and told(verdict, "exact_duplicate") == [(0, 1, 1)]


def test_a_copy_of_a_test_image_that_goes_is_no_leak():
    rows = facts([("test", 0, "a"), ("train", 0, "b"), ("test", 0, "c")], sharpness={0: 0.01})
    rules = {"leakage": ("quarantine", 0.8), "blurred": ("quarantine", 0.08)}
    assert gone(judged(rows, {("a", "b"): 0.9}, **rules)) == {0: "blurred"}
    verdict = judged(rows, {("a", "b"): 0.9, ("b", "c"): 0.85}, **rules)
    assert gone(verdict) == {0: "blurred", 1: "leakage"} and told(verdict, "leakage") == [(1, 2, 0.85)]


def test_a_leak_counts_by_its_agreement_across_splits():
    """Row 1 agrees to 0.97 with its neighbour in train, and to 0.81 with the test image."""
    rows = facts([("test", 0, "t"), ("train", 0, "a"), ("train", 0, "b"), ("val", 0, "v")])
    near = {("t", "a"): 0.81, ("a", "b"): 0.97, ("b", "v"): 0.96, ("t", "v"): 0.82}
    rules = {"near_duplicate": ("report", 0.8)}
    verdict = judged(rows, near, leakage=("quarantine", 0.95), **rules)
    assert told(verdict, "leakage") == [(2, 3, 0.96)]
    verdict = judged(rows, near, leakage=("quarantine", 0.8), **rules)
    assert told(verdict, "leakage") == [(1, 0, 0.81), (2, 3, 0.96), (3, 0, 0.82)]


def test_near_ones_count_by_their_agreement_within_the_split():
    """What two images of another split's would link is not near within this one, and what stays agrees to the threshold."""
    rows = facts([("train", 0, "a"), ("train", 0, "b"), ("test", 0, "t"), ("train", 0, "c"), ("train", 0, "c")])
    near = {("a", "b"): 0.81, ("a", "t"): 0.97, ("b", "t"): 0.97, ("b", "c"): 0.82}
    verdict = judged(rows, near, near_duplicate=("quarantine", 0.95), leakage=("report", 0.8))
    assert told(verdict, "near_duplicate") == []
    verdict = judged(rows, near, near_duplicate=("quarantine", 0.8), **EXACT)
    assert gone(verdict) == {1: "near_duplicate", 3: "near_duplicate", 4: "exact_duplicate"}


def test_a_repair_moves_to_the_split_of_a_copy_that_stays():
    rows = facts([("test", 0, "a"), ("val", 0, "b"), ("train", 0, "c")], sharpness={0: 0.01})
    near = {("a", "b"): 0.9, ("b", "c"): 0.9, ("a", "c"): 0.9}
    verdict = judged(rows, near, leakage=("repair", 0.8), blurred=("quarantine", 0.08))
    assert gone(verdict) == {0: "blurred"} and [SPLITS[k] for k in verdict.split] == ["test", "val", "val"]


def holding(found: Facts, classes: list[list[int] | None], listed: bool) -> Facts:
    """The classes of each row's `labels` (None: it has none), or of its boxes."""
    present = np.stack([bits(ids or [], 12) for ids in classes])
    return replace(found, present=present, listed=np.array([listed and ids is not None for ids in classes]))


def test_near_images_under_different_labels_are_told():
    rows = facts([("train", 0, "a"), ("train", 0, "b"), ("val", 1, "c"), ("train", 2, "d")])
    near = {("a", "b"): 0.9, ("b", "c"): 0.9}
    verdict = judged(rows, near, conflicting_labels=("report", 0.0))
    assert told(verdict, "conflicting_labels") == [(0, 2, 0.333), (1, 2, 0.333), (2, -1, 0.333)]
    assert judged(rows, near, conflicting_labels=("repair", 0.0)).label.tolist() == [0, 0, 0, 2]
    assert told(judged(rows, conflicting_labels=("report", 0.0)), "conflicting_labels") == []


def test_lists_of_labels_conflict_where_they_differ():
    rows = facts([("train", -1, name) for name in ("a", "a", "b", "b", "c", "c")])
    rows = holding(rows, [[0, 9], [9, 0], [0], [0, 1], [3], None], listed=True)
    verdict = judged(rows, conflicting_labels=("repair", 0.0), missing_label=("report", 0.0))
    assert told(verdict, "conflicting_labels") == [(2, -1, 0.5), (3, 2, 0.5)]
    assert gone(verdict) == {2: "conflicting_labels", 3: "conflicting_labels"}
    assert told(verdict, "missing_label") == [(5, -1, 1)]


def test_rare_classes_of_many_rows_and_classes_are_told_in_little_memory():
    """30,000 rows of 2,000 classes: 60 MB with a byte for each of them."""
    many, classes = 30_000, 2_000
    rows = facts([("train", -1, str(k)) for k in range(many)])
    present = np.zeros((many, classes // 8), np.uint8)
    present[np.arange(many), np.arange(many) % (classes // 8)] = 0b10000000
    present[-1, 0] = 0b01000000  # class 1, of which there is one
    tracemalloc.start()
    found = RULES["class_imbalance"].find(
        Seen(replace(rows, present=present), *[rows.row_id] * 2, NO_PAIRS, rows.row_id), 50
    )
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.rows.tolist(), found.scores.tolist()) == ([many - 1], [120.0]) and held < 120e6


@pytest.mark.parametrize("listed", [True, False])
def test_rare_classes_of_lists_and_of_boxes_are_told(listed):
    """Class 0 in 6 training rows, class 11 in one of them, class 5 in 2, beside it in the val row."""
    rows = facts([("train", -1, f"{k}") for k in range(7)] + [("val", -1, "v")])
    rows = holding(rows, [[0], [0, 0], [0], [0], [0, 5], [0, 11], [5], [11]], listed)
    verdict = judged(rows, class_imbalance=("report", 2.5))
    assert told(verdict, "class_imbalance") == [(4, -1, 3.0), (5, -1, 6.0), (6, -1, 3.0)]
    assert told(judged(rows, class_imbalance=("report", 3.0)), "class_imbalance") == [(5, -1, 6.0)]
