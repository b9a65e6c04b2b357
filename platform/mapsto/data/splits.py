"""Which split each row of a listing goes to: drawn by class, by several classes, or by whole groups, as the rows pass.

Each holds a few numbers for every class or group, whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from math import exp

import numpy as np

from ..core.sample import Split
from .sources.item import Reference

LEAN = 3.0
"""By how much the log odds of a split grow with a row that it lacks of each of a row's classes."""


class Chooser:
    """Exact stratified splits in one pass: each class gives its share, to within one image, and the whole its own.

    Selection sampling (Knuth, The Art of Computer Programming 3.4.2, algorithm S) per class; the rest of a class's
    rounding is carried to the next one.
    """

    def __init__(self, counts: Mapping[str, int], val: float, test: float, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 1])
        self._left = dict(counts)
        self._need: dict[str, list[int]] = {}
        share = val / (val + test) if val + test else 0.0
        total = held = 0
        for name in sorted(counts):
            before, total = total, total + counts[name]
            out = round((val + test) * total) - round((val + test) * before)
            held_before, held = held, held + out
            to_val = round(share * held) - round(share * held_before)
            self._need[name] = [to_val, out - to_val]

    def split(self, reference: Reference) -> Split:
        if (own := _own(reference)) is not None:
            return own
        (name,) = classes_of(reference)
        left = self._left[name]
        self._left[name] = left - 1
        return _drawn(self._rng, self._need[name], left)


def _drawn(rng: np.random.Generator, need: list[int], left: int) -> Split:
    """The split of one of the `left` rows that are still to come; `need`: of them for val and for test, reduced by it."""
    place = rng.random() * left
    if place < need[0]:
        need[0] -= 1
        return "val"
    if place < need[0] + need[1]:
        need[1] -= 1
        return "test"
    return "train"


class MultiLabel:
    """Splits in one pass where rows have several classes: the whole has its share exactly, each class to within a few rows.

    Drawn as by selection sampling, with odds that lean to where the row's classes lack rows, each class weighing 1 / √rows, and all rows
    together as one more (minimization with its random element: Pocock and Simon, Sequential Treatment Assignment with Balancing for
    Prognostic Factors in the Controlled Clinical Trial, Biometrics 31, 1975), so that a period in the rows' order is none in a split's.
    Shares come out about as even as by iterative stratification (Sechidis et al., On the Stratification of Multi-Label Data, 2011), which
    needs all rows at hand.
    """

    def __init__(self, counts: Mapping[str, int], rows: int, val: float, test: float, seed: int) -> None:
        """`counts`: class → rows of it, and "" → rows of none; `rows`: in all."""
        self._rng = np.random.default_rng([seed, 1])
        self._shares: dict[Split, float] = {"train": 1 - val - test, "val": val, "test": test}
        to_val = round(val * rows)
        to_test = min(round(test * rows), rows - to_val) if self._shares["train"] > 1e-9 else rows - to_val
        self._need = [rows - to_val - to_test, to_val, to_test]
        """Rows that are still to come to each split."""
        sizes: dict[str | None, int] = {**counts, None: rows}
        self._weight = {name: size**-0.5 for name, size in sizes.items() if size}
        self._lacks = {name: [0.0] * len(self._shares) for name in self._weight}
        """Class → rows that each split should have more of it by now."""

    def split(self, reference: Reference) -> Split:
        if (own := _own(reference)) is not None:
            return own
        names = (*classes_of(reference), None)
        weights = [self._weight[name] for name in names]
        lacks = [self._lacks[name] for name in names]
        lack = [
            sum(w * x for w, x in zip(weights, each, strict=True)) / sum(weights) for each in zip(*lacks, strict=True)
        ]
        most = max(x for x, need in zip(lack, self._need, strict=True) if need)
        odds = [need * exp(LEAN * min(x - most, 0)) for x, need in zip(lack, self._need, strict=True)]
        place = self._rng.random() * sum(odds)
        drawn = next((k for k, end in enumerate(accumulate(odds)) if place < end), odds.index(max(odds)))
        for each in lacks:
            for k, share in enumerate(self._shares.values()):
                each[k] += share - (k == drawn)
        self._need[drawn] -= 1
        return list(self._shares)[drawn]


class Grouped:
    """Splits that no group straddles: whole groups in random order go to test, then val, until its share of the rows is
    reached as nearly as groups allow. Rows of no group are drawn one by one, and make up for what the groups could not reach."""

    def __init__(
        self, counts: Mapping[str, int], val: float, test: float, seed: int, column: str, single: int = 0
    ) -> None:
        """`counts`: group → rows; `single`: rows of no group."""
        self._column = column
        self._of: dict[str, Split] = {}
        self._rng = np.random.default_rng([seed, 1])
        rows = sum(counts.values())
        left: dict[Split, float] = {"test": test * rows, "val": val * rows}
        names = sorted(counts)
        for k in self._rng.permutation(len(names)):
            size = counts[names[k]]
            for split in left:
                if left[split] >= size / 2:
                    left[split] -= size
                    self._of[names[k]] = split
                    break
        to_val = min(single, max(0, round(val * single + left["val"])))
        self._need = [to_val, min(single - to_val, max(0, round(test * single + left["test"])))]
        self._single = single

    def split(self, reference: Reference) -> Split:
        if (own := _own(reference)) is not None:
            return own
        member = member_of(reference, self._column)
        if member is not None:
            return self._of.get(member, "train")
        self._single -= 1
        return _drawn(self._rng, self._need, self._single + 1)


def classes_of(reference: Reference) -> list[str]:
    """The classes that a row is drawn by: its label, or else those of its list of labels, or of its boxes; "" stands for none."""
    if reference.label:
        return [reference.label]
    found = reference.columns.get("labels") or reference.columns.get("box_labels") or ()
    return sorted({str(name) for name in found}) or [""]


def _own(reference: Reference) -> Split | None:
    """The split that is not drawn: the source's own to evaluate on, and train for a row that is refused."""
    if reference.split in ("val", "test"):
        return reference.split
    return "train" if reference.reason else None


def member_of(reference: Reference, column: str) -> str | None:
    """The group of a reference; None where it has none."""
    value = reference.label if column == "label" else reference.columns.get(column)
    return None if value is None else str(value)
