"""Verification by folds, as Labeled Faces in the Wild has it (Huang et al., 2007; Huang & Learned-Miller, Labeled Faces in
the Wild: Updates and New Reporting Procedures, 2014): a threshold chosen on nine folds decides the tenth."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError

FOLDS = 10
Fold = tuple[np.ndarray, np.ndarray]
"""Scores, and whether each pair is of one identity."""


@dataclass(frozen=True)
class Pairs:
    """A list of pairs: per fold, M×3 int64 of two pictures' keys and whether they are of one person."""

    uri: str
    folds: tuple[np.ndarray, ...]


def parse_pairs(text: str, uri: str) -> Pairs:
    """LFW's pairs.txt (`folds pairs`, then per fold so many of one person, `name i j`, and of two, `name i other j`) and
    pairsDevTest.txt (`pairs` alone: no folds, so that people are parted into ten). UserError with the line of a mistake."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines or len(lines[0]) > 2 or not all(v.isdecimal() and int(v) for v in lines[0]):
        raise UserError(f"{uri}:1: a list of pairs begins with the number of folds and of pairs, or of pairs")
    count, each = (int(v) for v in (lines[0] if len(lines[0]) == 2 else ["1", *lines[0]]))
    if len(lines) - 1 != 2 * count * each:
        raise UserError(f"{uri}: {len(lines) - 1} pairs, its first line says {2 * count * each}")
    rows, people = [], []
    for number, words in enumerate(lines[1:], 2):
        same = len(words) == 3
        expected = (number - 2) // each % 2 == 0
        if len(words) not in (3, 4) or same != expected or not all(w.isdecimal() for w in (words[1], words[-1])):
            form = "name i j" if expected else "name i other j"
            raise UserError(f"{uri}:{number}: '{' '.join(words)}' is no pair; here it is `{form}`")
        people.append((words[0], words[0 if same else 2]))
        rows.append((picture_key(people[-1][0], words[1]), picture_key(people[-1][1], words[-1]), same))
    keys = np.array(rows, np.int64)
    return Pairs(uri, tuple(np.split(keys, count)) if count > 1 else tuple(keys[part] for part in apart(people)))


def apart(people: Sequence[tuple[str, str]]) -> list[list[int]]:
    """The numbers of the pairs in up to ten folds, no person in two of them; `people`: the two of each pair, often one twice.
    People whom a chain of pairs joins stay together; such groups go, the largest first, to the fold where the pairs of
    one person or those of two, whichever are more, are then fewest. Fewer folds where there are fewer groups."""
    leader: dict[str, str] = {}

    def first(person: str) -> str:
        while (above := leader.setdefault(person, person)) != person:
            leader[person] = leader[above]
            person = above
        return person

    for one, other in people:
        leader[first(other)] = first(one)
    groups: dict[str, list[int]] = {}
    for number, (one, _) in enumerate(people):
        groups.setdefault(first(one), []).append(number)
    folds: list[list[int]] = [[] for _ in range(min(FOLDS, len(groups)))]
    held = np.zeros((len(folds), 2), np.int64)
    for numbers in sorted(groups.values(), key=len, reverse=True):
        same = sum(people[number][0] == people[number][1] for number in numbers)
        kinds = np.array([same, len(numbers) - same])
        fold = min(range(len(folds)), key=lambda k: (int((held[k] + kinds).max()), len(folds[k]), k))
        held[fold] += kinds
        folds[fold] += numbers
    return [sorted(fold) for fold in folds]


def picture_key(person: str, number: int | str) -> int:
    """An int64 of a person's numbered picture: equal for equal names, and in practice only for those."""
    return text_key(f"{person}/{int(number)}")


def file_key(name: str) -> int:
    """The same from a file's name, `<person>_<number>.<ending>`; -1 for another name."""
    found = re.fullmatch(r"(.+)_(\d+)\.\w+", name.rsplit("/", 1)[-1])
    return picture_key(found[1], found[2]) if found else -1


def text_key(text: str) -> int:
    """The first 63 bits of a text's SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def listed_folds(embedding: np.ndarray, picture: np.ndarray, pairs: Pairs) -> tuple[list[Fold], int]:
    """The folds of a list, as far as their pictures are here, and how many of its pairs name one that is not."""
    place = {int(key): row for row, key in enumerate(picture)}
    folds, missing = [], 0
    for rows in pairs.folds:
        found = np.array([(place.get(a, -1), place.get(b, -1), same) for a, b, same in rows.tolist()]).reshape(-1, 3)
        there = (found[:, :2] >= 0).all(1)
        missing += int((~there).sum())
        left, right, same = found[there].T
        if len(left):
            folds.append(((embedding[left] * embedding[right]).sum(1), same.astype(bool)))
    return folds, missing


def drawn_folds(embedding: np.ndarray, identity: np.ndarray) -> list[Fold]:
    """Up to ten folds of identities drawn apart, each with all its pairs of one identity and at most as many of two,
    spread evenly over the fold's; fewer folds where identities are few, none below four of them."""
    names = np.unique(identity)
    count = min(FOLDS, len(names) // 2)
    if count < 2:
        return []
    order = np.random.default_rng(0).permutation(names)
    folds = []
    for k in range(count):
        rows = np.flatnonzero(np.isin(identity, order[k::count]))
        a, b = np.triu_indices(len(rows), 1)
        same = identity[rows[a]] == identity[rows[b]]
        others = np.flatnonzero(~same)
        keep = others[np.linspace(0, len(others) - 1, min(len(others), int(same.sum()))).astype(int)]
        chosen = np.concatenate([np.flatnonzero(same), keep])
        if len(chosen):
            left, right = rows[a[chosen]], rows[b[chosen]]
            folds.append(((embedding[left] * embedding[right]).sum(1), same[chosen]))
    return folds if len(folds) > 1 else []


def fold_accuracies(folds: Sequence[Fold]) -> np.ndarray:
    """Each fold's accuracy with the threshold that is best on the others; a single fold's with its own best."""
    out = []
    for k, (scores, same) in enumerate(folds):
        others = [fold for j, fold in enumerate(folds) if j != k] or [folds[k]]
        threshold = best_threshold(*(np.concatenate(parts) for parts in zip(*others, strict=True)))
        out.append(((scores >= threshold) == same).mean())
    return np.array(out)


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The score from which on saying `same` is right most often; the middle of the gap below it, the lowest of equals."""
    order = np.argsort(scores, kind="stable")
    ordered, truth = scores[order].astype(np.float64), same[order]
    starts = np.concatenate([[True], ordered[1:] > ordered[:-1]])  # a threshold cannot part equal scores
    right = np.concatenate([[0], np.cumsum(~truth)]) + np.concatenate([np.cumsum(truth[::-1])[::-1], [0]])
    places = np.concatenate([np.flatnonzero(starts), [len(ordered)]])
    place = int(places[np.argmax(right[places])])
    if place in (0, len(ordered)):
        return -np.inf if place == 0 else np.inf
    return float((ordered[place - 1] + ordered[place]) / 2)


def interval(accuracies: np.ndarray) -> tuple[float, tuple[float, float]] | None:
    """The standard error of the folds' mean, and the mean's 95 % interval by Student's t; None for fewer than two folds."""
    count = len(accuracies)
    if count < 2:
        return None
    from scipy.stats import t

    error = float(accuracies.std(ddof=1) / math.sqrt(count))
    mean, reach = float(accuracies.mean()), float(t.ppf(0.975, count - 1)) * error
    return error, (mean - reach, mean + reach)
