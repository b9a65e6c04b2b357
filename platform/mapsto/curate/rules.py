"""The rules of `mapsto clean`: each finds rows, gives each a score, and says which other row it is about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..core.sample import SPLITS
from .duplicates import SAME, Pairs, groups
from .facts import NO_IDENTITY, Facts

NONE = -1
AT_ONCE = 2**23
"""Rows times classes that are looked at together: bounds the memory, 9 bytes for each."""
SPLIT_ORDER = ("test", "val", "train")
"""Of copies in several splits, those of the first of these stay: what is measured on is not thinned out."""


@dataclass(frozen=True)
class Found:
    """Rows (indices into the facts), how bad each is in the rule's own unit, the row it is about (-1: none), and the label
    that it should have (-1: none known)."""

    rows: np.ndarray
    scores: np.ndarray
    others: np.ndarray
    labels: np.ndarray

    @staticmethod
    def of(
        rows: np.ndarray, scores: np.ndarray, others: np.ndarray | None = None, labels: np.ndarray | None = None
    ) -> Found:
        none = np.full(len(rows), NONE, np.int64)
        return Found(
            rows.astype(np.int64),
            np.asarray(scores, np.float32),
            none if others is None else others,
            none if labels is None else labels,
        )


@dataclass(frozen=True)
class Seen:
    """What rules look at: the facts, who shows the same as whom, and how many classes a mask may name."""

    facts: Facts
    equal: np.ndarray
    """Group number of each row: equal bytes or equal pixels."""
    near: np.ndarray
    """Group number of each row: equal, or near duplicates through others."""
    pairs: Pairs
    """Near duplicates, by their numbers in `equal`."""
    together: np.ndarray
    """Group number of each row: what must lie in one split: near duplicates, and rows that share an identity or a label where the
    splits are grouped by it."""
    mask_classes: int | None = None
    expects_labels: bool = True
    predictions: np.ndarray | None = None
    """N×classes float32 out-of-sample probabilities; NaN where a row has none."""
    away: np.ndarray | None = None
    """N bool: rows that rules asked before send to quarantine."""

    @property
    def gone(self) -> np.ndarray:
        return np.zeros(len(self.facts), bool) if self.away is None else self.away


@dataclass(frozen=True)
class Rule:
    about: str
    """What is found; `{t}` is the threshold."""
    find: Callable[[Seen, float], Found]
    threshold: float
    policy: str = "report"
    repairs: str = ""
    """What the policy `repair` does; empty: it has none."""


def same_pixels(facts: Facts) -> np.ndarray:
    """Group numbers by equal bytes or equal pixels."""
    first, second = [], []
    for column in (facts.content, facts.pixels):
        _, group = np.unique(column, return_inverse=True)
        order = np.argsort(group, kind="stable")
        linked = group[order][1:] == group[order][:-1]
        first.append(order[:-1][linked])
        second.append(order[1:][linked])
    return groups(len(facts), np.concatenate(first), np.concatenate(second))


def with_near(equal: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Near groups from pairs of equal groups."""
    return groups(int(equal.max(initial=-1)) + 1, pairs.first, pairs.second)[equal]


def kept_together(near: np.ndarray, facts: Facts, column: str | None) -> np.ndarray:
    """Group numbers: rows that `near` or a column (`identity`, `label`; None for none) connects, directly or through others."""
    if column is None:
        return near
    values = facts.identity if column == "identity" else facts.label
    rows = np.flatnonzero(values != NO_IDENTITY)  # a label's -1 is none, too
    named, group = np.unique(values[rows], return_inverse=True)
    near_count = int(near.max(initial=-1)) + 1
    return groups(near_count + len(named), near[rows], near_count + group)[near]


def heads_of(group: np.ndarray) -> np.ndarray:
    """The first row of each group, by group number."""
    return np.unique(group, return_index=True)[1]


def _outside(name: str, low: bool) -> Callable[[Seen, float], Found]:
    def find(seen: Seen, threshold: float) -> Found:
        values = seen.facts.measured(name)
        rows = np.flatnonzero(values < threshold if low else values > threshold)
        return Found.of(rows, values[rows])

    return find


def _too_small(seen: Seen, threshold: float) -> Found:
    side = np.minimum(seen.facts.width, seen.facts.height)
    rows = np.flatnonzero(side < threshold)
    return Found.of(rows, side[rows])


def _extreme_shape(seen: Seen, threshold: float) -> Found:
    f = seen.facts
    ratio = np.maximum(f.width, f.height) / np.maximum(np.minimum(f.width, f.height), 1)
    rows = np.flatnonzero(ratio > threshold)
    return Found.of(rows, ratio[rows])


def _odd_mode(seen: Seen, threshold: float) -> Found:
    """Grey among colour, or colour among grey: the score is the share of the data set that is like it."""
    grey = seen.facts.measured("colour") < 1 / 255
    share = np.where(grey, grey.mean(), 1 - grey.mean()) if len(grey) else np.zeros(0)
    rows = np.flatnonzero(share < threshold)
    return Found.of(rows, share[rows])


def _keeper(seen: Seen, group: np.ndarray) -> np.ndarray:
    """For each row, the row of its group that stays: one that no rule sends away before any that goes, then by split, then one
    with a label, then by order."""
    f = seen.facts
    rank = np.array([SPLIT_ORDER.index(name) for name in SPLITS])[f.split]
    order = np.lexsort((np.arange(len(group)), f.label < 0, rank, seen.gone, group))
    head = np.concatenate([[True], group[order][1:] != group[order][:-1]])[: len(order)]
    first = order[head]
    return first[np.searchsorted(group[first], group)]


def _in_split(seen: Seen) -> np.ndarray:
    """Group number of each row: equal ones of one split."""
    return seen.equal.astype(np.int64) * len(SPLITS) + seen.facts.split


def _exact_duplicate(seen: Seen, threshold: float) -> Found:
    keeper = _keeper(seen, _in_split(seen))
    rows = np.flatnonzero(keeper != np.arange(len(keeper)))
    rows = rows if threshold <= 1 else rows[:0]
    return Found.of(rows, np.ones(len(rows)), keeper[rows])


def _near_duplicate(seen: Seen, threshold: float) -> Found:
    """Of rows of one split that pairs of at least `threshold` connect, all but one; equal ones are another rule's. The score is
    the best agreement within the split."""
    pairs, own = seen.pairs.at_least(threshold), _in_split(seen)
    there = np.zeros((seen.equal.max(initial=-1) + 1, len(SPLITS)), bool)
    there[seen.equal, seen.facts.split] = True
    best, links = np.zeros(there.size, np.float32), []
    for split in range(len(SPLITS)):
        both = there[pairs.first, split] & there[pairs.second, split]
        first, second = (side[both] * len(SPLITS) + split for side in (pairs.first, pairs.second))
        for side in (first, second):
            np.maximum.at(best, side, pairs.score[both])
        links.append((first, second))
    first, second = (np.concatenate(side) for side in zip(*links, strict=True))
    keeper, every = _keeper(seen, groups(there.size, first, second)[own]), np.arange(len(own))
    rows = np.flatnonzero((keeper != every) & (_keeper(seen, own) == every))
    return Found.of(rows, best[own[rows]], keeper[rows])


def _leakage(seen: Seen, threshold: float) -> Found:
    """Rows that agree with one that stays, in a split that goes before theirs; the score is the best such agreement."""
    f, pairs = seen.facts, seen.pairs.at_least(threshold)
    count = int(seen.equal.max(initial=-1)) + 1
    stays = np.flatnonzero(~seen.gone)[::-1]
    head = np.full((count, len(SPLITS)), NONE, np.int64)
    head[seen.equal[stays], f.split[stays]] = stays  # of several the first, which is written last
    one, other = np.concatenate([pairs.first, pairs.second]), np.concatenate([pairs.second, pairs.first])
    score, equal = np.tile(pairs.score, 2), np.arange(count if threshold <= 1 else 0)
    order = np.argsort(score, kind="stable")  # the best is written last, and equal ones after all
    one, other = np.concatenate([one[order], equal]), np.concatenate([other[order], equal])
    score = np.concatenate([score[order], np.ones(len(equal), np.float32)])
    best, about = np.zeros(head.shape, np.float32), np.full(head.shape, NONE, np.int64)
    for k, name in enumerate(SPLIT_ORDER):
        split = SPLITS.index(name)
        for before in SPLIT_ORDER[:k]:
            row = head[other, SPLITS.index(before)]
            has = row != NONE
            here, found = np.full(count, -np.inf, np.float32), np.full(count, NONE, np.int64)
            here[one[has]], found[one[has]] = score[has], row[has]
            better = (found != NONE) & ((about[:, split] == NONE) | (here > best[:, split]))
            best[better, split], about[better, split] = here[better], found[better]
    best, about = best[seen.equal, f.split], about[seen.equal, f.split]
    rows = np.flatnonzero(about != NONE)
    return Found.of(rows, best[rows], about[rows])


def _conflicting_labels(seen: Seen, threshold: float) -> Found:
    """Images of one cluster of equal and near ones that have several labels, or lists of labels; the score is the share of the
    cluster's that are not the commonest. There is no label for a list."""
    f = seen.facts
    label, lists = f.label.copy(), int(f.label.max(initial=0)) + 1
    if f.listed.any():
        label[f.listed] = lists + np.unique(f.present[f.listed], axis=0, return_inverse=True)[1].reshape(-1)
    best, share, many = _votes(seen.near, label)
    rows = np.flatnonzero((many > 1) & (label >= 0) & (1 - share > threshold))
    others = _keeper(seen, seen.near)[rows]
    best = np.where(best < lists, best, NONE)
    return Found.of(rows, (1 - share)[rows], np.where(others == rows, NONE, others), best[rows])


def _missing_label(seen: Seen, threshold: float) -> Found:
    """Rows without label in a data set of labels; the label is that of a duplicate, where one has it."""
    f = seen.facts
    has = (f.label >= 0) | f.listed
    if not seen.expects_labels or not has.any():
        return Found.of(np.zeros(0, np.int64), np.zeros(0))
    best, _, _ = _votes(seen.near, f.label)
    rows = np.flatnonzero(~has)
    return Found.of(rows, np.ones(len(rows)), None, best[rows])


def _votes(group: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per row, over its group's rows that have a label: the commonest one (-1 at a tie or without any), its share, and how many
    different ones there are."""
    has = label >= 0
    pairs, count = np.unique(np.stack([group[has], label[has]]), axis=1, return_counts=True)
    size = int(group.max(initial=-1)) + 1
    total, kinds, most = np.zeros(size), np.zeros(size, np.int64), np.zeros(size)
    np.add.at(total, pairs[0], count)
    np.add.at(kinds, pairs[0], 1)
    np.maximum.at(most, pairs[0], count)
    ties = np.zeros(size, np.int64)
    top = count == most[pairs[0]]
    np.add.at(ties, pairs[0][top], 1)
    best = np.full(size, NONE, np.int64)
    best[pairs[0][top]] = pairs[1][top]
    best[ties > 1] = NONE
    return best[group], (most / np.maximum(total, 1))[group], kinds[group]


def _boxes_outside(seen: Seen, threshold: float) -> Found:
    rows = np.flatnonzero(seen.facts.outside > threshold)
    return Found.of(rows, seen.facts.outside[rows])


def _boxes_without_area(seen: Seen, threshold: float) -> Found:
    rows = np.flatnonzero(seen.facts.left_out > threshold)
    return Found.of(rows, seen.facts.left_out[rows])


def _mask_ids(seen: Seen, threshold: float) -> Found:
    if seen.mask_classes is None:
        return Found.of(np.zeros(0, np.int64), np.zeros(0))
    rows = np.flatnonzero(seen.facts.largest_id >= seen.mask_classes)
    return Found.of(rows, seen.facts.largest_id[rows])


def _class_imbalance(seen: Seen, threshold: float) -> Found:
    """The training rows of a class that the largest one outnumbers; the score is by how much. A row counts once for each class of its
    label, its list of labels or its boxes."""
    f = seen.facts
    train = f.split == SPLITS.index("train")
    rows = np.flatnonzero((f.label >= 0) & train)
    labels, score = f.label[rows], np.zeros(len(f))
    score[rows] = _outnumbered(np.bincount(labels))[labels]
    several = np.flatnonzero(f.present.any(1) & train)
    rows_at_once = max(1, AT_ONCE // (8 * f.present.shape[1]))
    parts = np.array_split(several, -(-len(several) // rows_at_once) or 1)
    ratio = _outnumbered(sum(np.unpackbits(f.present[some], axis=1).sum(0, dtype=np.int64) for some in parts))
    for some in parts:
        score[some] = np.maximum(score[some], (np.unpackbits(f.present[some], axis=1) * ratio).max(1, initial=0))
    found = np.flatnonzero(score > threshold)
    return Found.of(found, score[found])


def _outnumbered(counts: np.ndarray) -> np.ndarray:
    """By how much the largest class outnumbers each, from the rows of each."""
    return counts.max(initial=0) / np.maximum(counts, 1)


def _label_errors(seen: Seen, threshold: float) -> Found:
    from .label_errors import suspects

    if seen.predictions is None:
        return Found.of(np.zeros(0, np.int64), np.zeros(0))
    rows, score, label = suspects(seen.predictions, seen.facts.label)
    keep = score >= threshold
    return Found.of(rows[keep], score[keep], None, label[keep])


RULES: Mapping[str, Rule] = {
    "exact_duplicate": Rule("equal bytes or pixels as another image of its split", _exact_duplicate, 1.0, "quarantine"),
    "conflicting_labels": Rule(
        "equal or near images under different labels", _conflicting_labels, 0.0, repairs="the commonest label of the copies; a tie goes to quarantine"
    ),
    "leakage": Rule(
        "shows what an image of another split shows (agreement at least {t:g})", _leakage, SAME, "report",
        repairs="moved to the other image's split, with all that must stay with it",
    ),
    "near_duplicate": Rule("shows what another image of its split shows (agreement at least {t:g})", _near_duplicate, SAME),
    "missing_label": Rule("no label", _missing_label, 0.0, repairs="the label of a duplicate, where one has it"),
    "label_error": Rule("the label is likely wrong (confidence at least {t:g})", _label_errors, 0.5, repairs="the predicted label"),
    "too_small": Rule("shorter side below {t:g} pixels", _too_small, 16),
    "extreme_shape": Rule("sides more than {t:g} to 1", _extreme_shape, 5),
    "blank": Rule("one colour: contrast below {t:g}", _outside("contrast", True), 0.02, "quarantine"),
    "dark": Rule("99 of 100 pixels darker than {t:g} of white", _outside("dark", True), 0.15),
    "bright": Rule("95 of 100 pixels brighter than {t:g} of white", _outside("bright", False), 0.85),
    "blurred": Rule("no sharp edge: sharpness below {t:g}", _outside("sharpness", True), 0.08),
    "low_information": Rule("entropy of its grey levels below {t:g} of 8 bits", _outside("entropy", True), 0.3),
    "odd_mode": Rule("grey among colour or colour among grey, as less than {t:g} of the set", _odd_mode, 0.05),
    "boxes_outside": Rule("a box lies more than {t:g} pixels outside the image", _boxes_outside, 1.0, "repair", repairs="cut at the image's edge"),
    "boxes_without_area": Rule("of its boxes more than {t:g} have no area inside the image: ingest left them out", _boxes_without_area, 0.0),
    "mask_ids": Rule("the mask names an id that is neither a class of the task nor void", _mask_ids, 0.0),
    "class_imbalance": Rule("of a class that the largest one outnumbers by more than {t:g} to 1 in training", _class_imbalance, 10.0),
}  # fmt: skip
"""In the order in which a row's reason is looked for."""
COPIES = ("leakage", "exact_duplicate", "near_duplicate")
"""Asked after the others, in this order: the copy that stays is one that no other rule sends away."""


@dataclass(frozen=True)
class Setting:
    policy: str
    threshold: float


@dataclass
class Verdict:
    """What becomes of each of N rows."""

    dropped: np.ndarray
    """N int16: number of the rule for which it goes to quarantine, -1: it stays."""
    label: np.ndarray
    """N int64: its label."""
    split: np.ndarray
    """N uint8."""
    cut_boxes: np.ndarray
    """N bool."""
    found: dict[str, Found] = field(default_factory=dict)


def judge(seen: Seen, settings: Mapping[str, Setting]) -> Verdict:
    """Ask the rules that are not off, those about copies last; then apply them in their order. A row that one sends to
    quarantine is not repaired by another."""
    found: dict[str, Found] = {}
    for names in ([name for name in RULES if name not in COPIES], *((name,) for name in COPIES)):
        asked = [name for name in names if settings[name].policy != "off"]
        found |= {name: RULES[name].find(seen, settings[name].threshold) for name in asked}
        seen = replace(seen, away=_applied(seen, settings, found).dropped != NONE)
    return _applied(seen, settings, found)


def _applied(seen: Seen, settings: Mapping[str, Setting], every: Mapping[str, Found]) -> Verdict:
    f = seen.facts
    out = Verdict(np.full(len(f), NONE, np.int16), f.label.copy(), f.split.copy(), np.zeros(len(f), bool))
    for number, name in enumerate(RULES):
        if name not in every:
            continue
        found = out.found[name] = every[name]
        free = found.rows[out.dropped[found.rows] == NONE]
        if settings[name].policy == "quarantine":
            out.dropped[free] = number
        elif settings[name].policy == "repair":
            _repair(name, number, found, out, seen)
    gone = out.dropped != NONE
    out.label[gone], out.split[gone], out.cut_boxes[gone] = f.label[gone], f.split[gone], False
    return out


def _repair(name: str, number: int, found: Found, out: Verdict, seen: Seen) -> None:
    if name == "boxes_outside":
        out.cut_boxes[found.rows] = True
    elif name == "leakage":
        touched = np.isin(seen.together, seen.together[found.rows])
        out.split[touched] = out.split[_keeper(seen, seen.together)[touched]]
    else:
        known = found.labels != NONE
        out.label[found.rows[known]] = found.labels[known]
        if name == "conflicting_labels":
            tied = found.rows[~known]
            out.dropped[tied[out.dropped[tied] == NONE]] = number
