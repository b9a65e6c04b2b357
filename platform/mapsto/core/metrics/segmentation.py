"""Segmentation metrics from one small confusion matrix and the boundaries' scores per row: exact, and cheap to gather."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..batches import pieces
from ..errors import UserError
from ..page import Page
from ..sample import Arrays, Geometry, finite, places_of
from .boundary import boundary_f
from .classification import confusion

VOID = 255
PIXELS_AT_ONCE = 1 << 20


class SegmentationMetrics:
    """mIoU and Dice (mean over classes that occur as truth or prediction), pixel accuracy, mean accuracy (over classes
    that occur as truth), all in 0..1 over the whole set's pixels; boundary_f in 0..1: per class the mean over the images
    where it has a boundary, and the mean over the classes that have one. Void pixels (255) are not counted.

    Pixels are the original's where the batch has its truth in them, otherwise the model's input's. `tolerance`: of the
    boundaries, see `boundary_f`. `answers`: output → each image's H×W ids in the original's pixels.
    """

    primary = "mIoU"
    mode: Literal["max", "min"] = "max"

    def __init__(
        self,
        classes: Sequence[str],
        tolerance: float = 0.0075,
        answers: Callable[[Arrays, Sequence[Geometry]], Sequence[np.ndarray]] | None = None,
    ) -> None:
        self.classes, self.tolerance, self.answers = tuple(classes), tolerance, answers

    def state(self, output: Arrays, batch: Arrays) -> dict[str, np.ndarray]:
        """`batch` has the truth: all pixels of each original, `mask`, ragged, and each row's `matrix` and `size`; or `mask`
        (N×S×S), of the input. Raises UserError for ids that are no class."""
        if "size" in batch and self.answers is not None:
            places = places_of(batch)
            flat = zip(pieces(dict(batch), "mask"), places, strict=True)
            predicted = self.answers(output, places)
            truth = [mask.reshape(place.height, place.width) for mask, place in flat]
        else:
            logits = finite(np.asarray(output["logits"]), "segment: the model's logits")
            predicted, truth = logits.argmax(1), np.asarray(batch["mask"])
        size, pairs = len(self.classes), list(zip(predicted, truth, strict=True))
        return {
            "confusion": np.stack([self._pixels(t, p, row) for row, (p, t) in enumerate(pairs)]),
            "boundary": np.stack([boundary_f(p, t, size, self.tolerance, VOID) for p, t in pairs]),
        }

    def _pixels(self, truth: np.ndarray, predicted: np.ndarray, row: int) -> np.ndarray:
        """C×C counts of one image's pixels; a part of it at a time, as wide numbers are of large ones."""
        size = len(self.classes)
        total = np.zeros((size, size), np.int64)
        for start in range(0, truth.size, PIXELS_AT_ONCE):
            t, p = (mask.ravel()[start : start + PIXELS_AT_ONCE].astype(np.int64) for mask in (truth, predicted))
            t, p = t[t != VOID], p[t != VOID]
            if (t >= size).any():
                unknown = int(t[t >= size].min())
                raise UserError(
                    f"a mask holds id {unknown}, task.classes names {size} (0..{size - 1}): row {row} of its batch"
                )
            total += confusion(t, p, size)
        return total

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
