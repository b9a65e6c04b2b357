"""Classification metrics from logits and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..page import Page
from ..sample import Arrays, finite

BINS = 15


class ClassificationMetrics:
    """top1, top5, precision, recall, F1 (macro: the mean over classes that occur as truth or prediction), calibration
    error, negative log-likelihood; all in 0..1 but the last, which is in nats."""

    primary = "top1"
    mode: Literal["max", "min"] = "max"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def state(self, output: Arrays, batch: Arrays) -> dict[str, np.ndarray]:
        return {
            "logits": finite(np.asarray(output["logits"], np.float32), "classify: the model's logits"),
            "label": np.asarray(batch["label"], np.int64),
        }

    def compute(self, states: Mapping[str, np.ndarray]) -> dict[str, float]:
        logits, label = states["logits"], states["label"]
        probability = softmax(logits)
        precision, recall, f1, seen = per_class(self._confusion(states))
        result = {
            "top1": float(np.mean(logits.argmax(1) == label)),
            "precision": float(precision[seen].mean()),
            "recall": float(recall[seen].mean()),
            "f1": float(f1[seen].mean()),
            "calibration_error": calibration(probability, label)[0],
            "nll": float(-np.log(np.maximum(probability[np.arange(len(label)), label], 1e-12)).mean()),
        }
        if logits.shape[1] > 5:
            result["top5"] = float(np.mean(rank(logits, label) < 5))
        return result

    def tables(self, states: Mapping[str, np.ndarray]) -> dict[str, Any]:
        matrix = self._confusion(states)
        precision, recall, f1, _ = per_class(matrix)
        _, confidence, accuracy, count = calibration(softmax(states["logits"]), states["label"])
        return {
            "classes": list(self.classes),
            "confusion": matrix.tolist(),
            "per_class": [
                {
                    "class": name,
                    "rows": int(matrix[i].sum()),
                    "precision": precision[i],
                    "recall": recall[i],
                    "f1": f1[i],
                }
                for i, name in enumerate(self.classes)
            ],
            "reliability": {"confidence": confidence.tolist(), "accuracy": accuracy.tolist(), "rows": count.tolist()},
        }

    def draw(self, page: Page, tables: Mapping[str, Any]) -> None:
        from .. import chart

        page.heading("Confusion")
        page.picture(
            chart.confusion(np.array(tables["confusion"]), tables["classes"]), "rows: truth; columns: prediction"
        )
        page.heading("Calibration")
        reliability = tables["reliability"]
        page.picture(
            chart.reliability(reliability["confidence"], reliability["accuracy"]), f"{BINS} bins of equal width"
        )
        page.heading("Classes")
        rows = [(c["class"], c["rows"], c["precision"], c["recall"], c["f1"]) for c in tables["per_class"]]
        page.table(("class", "rows", "precision", "recall", "F1"), rows)

    def badness(self, states: Mapping[str, np.ndarray]) -> np.ndarray:
        """The probability of the wrong answer given; 0 where the answer is right."""
        probability, label = softmax(states["logits"]), states["label"]
        return np.where(probability.argmax(1) == label, 0.0, probability.max(1))

    def _confusion(self, states: Mapping[str, np.ndarray]) -> np.ndarray:
        return confusion(states["label"], states["logits"].argmax(1), len(self.classes))


def softmax(logits: np.ndarray) -> np.ndarray:
    """N×C logits → N×C float64 probabilities."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def rank(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """N: how many classes come before the true one; ties count by class index, so that no tie is a hit for all."""
    own = logits[np.arange(len(label)), label][:, None]
    earlier = (logits == own) & (np.arange(logits.shape[1])[None] < label[:, None])
    return ((logits > own) | earlier).sum(1)


def confusion(label: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """C×C int64 counts; rows are the truth."""
    return np.bincount(label * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def per_class(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall, F1 (0 where undefined) and whether the class occurs at all, each of C values."""
    hits, truth, predicted = np.diag(matrix).astype(float), matrix.sum(1), matrix.sum(0)
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(truth, 1)
    f1 = 2 * hits / np.maximum(truth + predicted, 1)
    return precision, recall, f1, (truth + predicted) > 0


def calibration(probability: np.ndarray, label: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Expected calibration error with 15 bins of equal width (Guo et al., On Calibration of Modern Neural Networks,
    arXiv 1706.04599), and the mean confidence, accuracy and rows of the bins that hold any."""
    confidence = probability.max(1)
    right = (probability.argmax(1) == label).astype(float)
    bin = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(bin, minlength=BINS)
    held = count > 0
    mean = np.bincount(bin, confidence, BINS)[held] / count[held]
    accuracy = np.bincount(bin, right, BINS)[held] / count[held]
    return float(np.sum(np.abs(mean - accuracy) * count[held]) / len(label)), mean, accuracy, count[held]
