"""Segmentation metrics from one small confusion matrix and the boundaries' scores per row: exact, and cheap to gather."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..page import Page
from ..sample import Arrays
from .boundary import boundary_f
from .classification import confusion

VOID = 255


class SegmentationMetrics:
    """mIoU and Dice (mean over classes that occur as truth or prediction), pixel accuracy, mean accuracy (over classes
    that occur as truth), all in 0..1 over the whole set's pixels; boundary_f in 0..1: per class the mean over the images
    where it has a boundary, and the mean over the classes that have one. Void pixels (255) are not counted.

    `tolerance`: of the boundaries, see `boundary_f`.
    """

    primary = "mIoU"
    mode: Literal["max", "min"] = "max"

    def __init__(self, classes: Sequence[str], tolerance: float = 0.0075) -> None:
        self.classes, self.tolerance = tuple(classes), tolerance

    def state(self, output: Arrays, batch: Arrays) -> dict[str, np.ndarray]:
        predicted, truth = np.asarray(output["logits"]).argmax(1), np.asarray(batch["mask"]).astype(np.int64)
        size, pairs = len(self.classes), list(zip(predicted, truth, strict=True))
        return {
            "confusion": np.stack([confusion(t[t != VOID], p[t != VOID], size) for p, t in pairs]),
            "boundary": np.stack([boundary_f(p, t, size, self.tolerance, VOID) for p, t in pairs]),
        }

    def compute(self, states: Mapping[str, np.ndarray]) -> dict[str, float]:
        scores = self._scores(states)

        def mean(values: np.ndarray) -> float:
            return 0.0 if np.isnan(values).all() else float(np.nanmean(values))

        matrix = states["confusion"].sum(0)
        return {
            "mIoU": mean(scores["IoU"]),
            "dice": mean(scores["dice"]),
            "pixel_accuracy": float(np.trace(matrix) / max(matrix.sum(), 1)),
            "mean_accuracy": mean(scores["accuracy"]),
            "boundary_f": mean(scores["boundary_f"]),
        }

    def tables(self, states: Mapping[str, np.ndarray]) -> dict[str, Any]:
        matrix, scores = states["confusion"].sum(0), self._scores(states)
        return {
            "classes": list(self.classes),
            "confusion": matrix.tolist(),
            "per_class": [
                {
                    "class": name,
                    "pixels": int(matrix[i].sum()),
                    **{k: None if np.isnan(v[i]) else float(v[i]) for k, v in scores.items()},
                }
                for i, name in enumerate(self.classes)
            ],
        }

    def _scores(self, states: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Per class, C float64 each; NaN where the class does not occur."""
        matrix, boundary = states["confusion"].sum(0), states["boundary"].astype(np.float64)
        hits, truth, predicted = np.diag(matrix).astype(float), matrix.sum(1), matrix.sum(0)
        held = (~np.isnan(boundary)).sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "IoU": hits / (truth + predicted - hits),
                "dice": 2 * hits / (truth + predicted),
                "accuracy": hits / truth,
                "boundary_f": np.nansum(boundary, 0) / held,
            }

    def draw(self, page: Page, tables: Mapping[str, Any]) -> None:
        from .. import chart

        page.heading("Classes")
        names = ("class", "pixels", "IoU", "dice", "accuracy", "boundary_f")
        rows = [[c.get(name) for name in names] for c in tables["per_class"]]
        page.table((*names[:3], "Dice", "accuracy", "boundary F"), rows)
        page.heading("Confusion of pixels")
        page.picture(
            chart.confusion(np.array(tables["confusion"]), tables["classes"]), "rows: truth; columns: prediction"
        )

    def badness(self, states: Mapping[str, np.ndarray]) -> np.ndarray:
        """The share of a row's pixels that are wrong."""
        matrices = states["confusion"]
        right = np.trace(matrices, axis1=1, axis2=2)
        return 1 - right / np.maximum(matrices.sum((1, 2)), 1)
