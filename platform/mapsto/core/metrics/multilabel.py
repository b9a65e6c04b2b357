"""Metrics of several labels per image, from logits and which labels are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..page import Page
from ..sample import Arrays, finite

UNKNOWN = -1


class MultiLabelMetrics:
    """mAP: the mean, over the classes that occur as truth, of the average precision. At `threshold`: f1 (macro: the mean over the
    classes that occur as truth or answer), micro_f1 (of all labels together), and exact_match, the share of the images of which
    every label is right. All in 0..1; labels that are unknown are not counted."""

    primary = "mAP"
    mode: Literal["max", "min"] = "max"

    def __init__(self, classes: Sequence[str], threshold: float = 0.5) -> None:
        self.classes, self.threshold = tuple(classes), threshold

    def state(self, output: Arrays, batch: Arrays) -> dict[str, np.ndarray]:
        """`target`: N×C int8, 1, 0 or -1 (unknown)."""
        return {
            "logits": finite(np.asarray(output["logits"], np.float32), "multilabel: the model's logits"),
            "target": np.asarray(batch["target"], np.int8),
        }

    def compute(self, states: Mapping[str, np.ndarray]) -> dict[str, float]:
        target, named = states["target"], self._named(states)
        precision = self._precisions(states)
        hits, wrong, missed = self._counts(states)
        seen = hits + wrong + missed > 0
        f1 = 2 * hits / np.maximum(2 * hits + wrong + missed, 1)
        whole = (target != UNKNOWN).all(1)
        exact = ((target == 1) == named).all(1)[whole]
        return {
            "mAP": float(np.nanmean(precision)) if not np.isnan(precision).all() else 0.0,
            "f1": float(f1[seen].mean()) if seen.any() else 0.0,
            "micro_f1": float(2 * hits.sum() / max(2 * hits.sum() + wrong.sum() + missed.sum(), 1)),
            "exact_match": float(exact.mean()) if len(exact) else 0.0,
        }

    def tables(self, states: Mapping[str, np.ndarray]) -> dict[str, Any]:
        hits, wrong, missed = self._counts(states)
        average = self._precisions(states)
        return {
            "threshold": self.threshold,
            "per_class": [
                {
                    "class": name,
                    "rows": int(hits[k] + missed[k]),
                    "average_precision": None if np.isnan(average[k]) else float(average[k]),
                    "precision": float(hits[k] / max(hits[k] + wrong[k], 1)),
                    "recall": float(hits[k] / max(hits[k] + missed[k], 1)),
                    "f1": float(2 * hits[k] / max(2 * hits[k] + wrong[k] + missed[k], 1)),
                }
                for k, name in enumerate(self.classes)
            ],
        }

    def draw(self, page: Page, tables: Mapping[str, Any]) -> None:
        page.heading("Classes")
        page.text(f"Precision, recall and F1 of the answers from a probability of {tables['threshold']:g} on.")
        names = ("class", "rows", "average_precision", "precision", "recall", "f1")
        rows = [[each[name] for name in names] for each in tables["per_class"]]
        page.table(("class", "rows", "average precision", "precision", "recall", "F1"), rows)

    def badness(self, states: Mapping[str, np.ndarray]) -> np.ndarray:
        """By how much the worst of the wrong labels is wrong: its probability, or 1 less it where it is missed; 0 where none is."""
        probability, target = sigmoid(states["logits"]), states["target"]
        wrong = (target != UNKNOWN) & ((target == 1) != self._named(states))
        return np.where(wrong, np.abs(probability - (target == 1)), 0.0).max(1, initial=0.0)

    def _named(self, states: Mapping[str, np.ndarray]) -> np.ndarray:
        return sigmoid(states["logits"]) >= self.threshold

    def _counts(self, states: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per class: labels that are found, named wrongly, and missed."""
        target, named = states["target"], self._named(states)
        yes, no = target == 1, target == 0
        return (yes & named).sum(0), (no & named).sum(0), (yes & ~named).sum(0)

    def _precisions(self, states: Mapping[str, np.ndarray]) -> np.ndarray:
        """Per class; NaN without a row of it."""
        out = np.full(len(self.classes), np.nan)
        for k in range(len(self.classes)):
            known = states["target"][:, k] != UNKNOWN
            truth = states["target"][known, k] == 1
            if truth.any():
                out[k] = average_precision(truth, states["logits"][known, k])
        return out


def average_precision(truth: np.ndarray, score: np.ndarray) -> float:
    """N bool with at least one True, N scores → the sum over the scores, highest first, of precision times the recall that each
    adds; equal scores come at once. As scikit-learn's `average_precision_score`; nothing is interpolated."""
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(truth[order])
    last = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """float64 probabilities; exact at both ends."""
    x = np.asarray(logits, np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))
