"""Segmentation metrics from one small confusion matrix per row: exact, and cheap to gather."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..page import Page
from ..sample import Arrays
from .classification import confusion

VOID = 255


class SegmentationMetrics:
    """mIoU and Dice (mean over classes that occur as truth or prediction), pixel accuracy, mean accuracy (over classes
    that occur as truth), all in 0..1 over the whole set's pixels; void pixels (255) are not counted."""

    primary = "mIoU"
    mode: Literal["max", "min"] = "max"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def state(self, output: Arrays, batch: Arrays) -> dict[str, np.ndarray]:
        predicted, truth = np.asarray(output["logits"]).argmax(1), np.asarray(batch["mask"]).astype(np.int64)
        size = len(self.classes)
        matrices = [confusion(t[t != VOID], p[t != VOID], size) for p, t in zip(predicted, truth, strict=True)]
        return {"confusion": np.stack(matrices)}

    def compute(self, states: Mapping[str, np.ndarray]) -> dict[str, float]:
        matrix = states["confusion"].sum(0)
        hits, truth, predicted = np.diag(matrix).astype(float), matrix.sum(1), matrix.sum(0)
        seen, true = (truth + predicted) > 0, truth > 0
        if not seen.any():
            return {"mIoU": 0.0, "dice": 0.0, "pixel_accuracy": 0.0, "mean_accuracy": 0.0}
        return {
            "mIoU": float((hits / np.maximum(truth + predicted - hits, 1))[seen].mean()),
            "dice": float((2 * hits / np.maximum(truth + predicted, 1))[seen].mean()),
            "pixel_accuracy": float(hits.sum() / max(matrix.sum(), 1)),
            "mean_accuracy": float((hits / np.maximum(truth, 1))[true].mean()) if true.any() else 0.0,
        }

    def tables(self, states: Mapping[str, np.ndarray]) -> dict[str, Any]:
        matrix = states["confusion"].sum(0)
        hits, union = np.diag(matrix), matrix.sum(1) + matrix.sum(0) - np.diag(matrix)
        return {
            "classes": list(self.classes),
            "confusion": matrix.tolist(),
            "per_class": [
                {"class": name, "pixels": int(matrix[i].sum()), "IoU": float(hits[i] / union[i]) if union[i] else None}
                for i, name in enumerate(self.classes)
            ],
        }

    def draw(self, page: Page, tables: Mapping[str, Any]) -> None:
        from .. import chart

        page.heading("Classes")
        page.table(("class", "pixels", "IoU"), [(c["class"], c["pixels"], c["IoU"]) for c in tables["per_class"]])
        page.heading("Confusion of pixels")
        page.picture(
            chart.confusion(np.array(tables["confusion"]), tables["classes"]), "rows: truth; columns: prediction"
        )

    def badness(self, states: Mapping[str, np.ndarray]) -> np.ndarray:
        """The share of a row's pixels that are wrong."""
        matrices = states["confusion"]
        right = np.trace(matrices, axis1=1, axis2=2)
        return 1 - right / np.maximum(matrices.sum((1, 2)), 1)
