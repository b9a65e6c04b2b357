"""Which split each row of a listing goes to: drawn by class, by several classes, or by whole groups, as the rows pass.

Each holds a few numbers for every class or group, whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..core.sample import Split
from .sources.item import Reference


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
    """Splits in one pass where rows have several classes: a row goes where it leaves the classes' shares least uneven, by the sum of
    squares over the share, each class weighing 1 / √rows, and all rows together as one (minimization: Pocock and Simon, Sequential
    Treatment Assignment with Balancing for Prognostic Factors in the Controlled Clinical Trial, Biometrics 31, 1975).

    Shares come out as even as by iterative stratification (Sechidis et al., On the Stratification of Multi-Label Data, 2011), which needs
    all rows at hand.
    """

    def __init__(self, counts: Mapping[str, int], rows: int, val: float, test: float, seed: int) -> None:
        """`counts`: class → rows of it, and "" → rows of none; `rows`: in all."""
        shares: dict[Split, float] = {"train": 1 - val - test, "val": val, "test": test}
        self._shares = {split: share for split, share in shares.items() if share > 1e-9}
        sizes: dict[str | None, int] = {**counts, None: rows}
        self._left = rows
        self._due = [k for k, share in enumerate(self._shares.values()) if round(share * rows)]
        """Splits that have no row yet, and whose share is one at least."""
        self._weight = {name: size**-0.5 for name, size in sizes.items() if size}
        phases = np.random.default_rng([seed, 1]).uniform(-0.25, 0.25, (len(self._weight), len(self._shares)))
        phases -= phases.mean(1, keepdims=True)
        self._lacks = dict(zip(self._weight, phases.tolist(), strict=True))
        """Class → rows that each split should have more of it by now."""

    def split(self, reference: Reference) -> Split:
        if (own := _own(reference)) is not None:
            return own
        names = (*classes_of(reference), None)
        weights = [self._weight[name] for name in names]
        lacks = [self._lacks[name] for name in names]
        total = sum(weights)
        gains = []
        for k, share in enumerate(self._shares.values()):
            for each in lacks:
                each[k] += share
            gains.append((2 * sum(w * each[k] for w, each in zip(weights, lacks, strict=True)) - total) / share)
        free = self._due if self._left <= len(self._due) else range(len(gains))
        best = max(free, key=gains.__getitem__)
        for each in lacks:
            each[best] -= 1
        self._left -= 1
        self._due = [k for k in self._due if k != best]
        return list(self._shares)[best]


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
