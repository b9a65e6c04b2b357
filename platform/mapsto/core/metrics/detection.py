"""Detection metrics: COCO's average precision and recall, computed once over all rows by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from ..boxes import areas, intersections, iou
from ..page import Page
from ..sample import Arrays, Geometry
from ..task import pieces

Found: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
"""One image's detections: K×4 boxes in the original's pixels, K scores, K class ids, best first."""
Detect: TypeAlias = Callable[[Arrays, Sequence[Geometry]], list[Found]]
"""A model's output → detections of every image: a task's decoding."""

MATCHED = 0.5
"""IoU from which a detection is right, in the curves and the worst mistakes."""
OUT_OF_RANGE = 1e11
"""Area of an object that no range counts: COCO's way to ignore it."""
DRAWN = 12
"""Most classes whose curves are drawn."""


class DetectionMetrics:
    """COCO's metrics (Lin et al., Microsoft COCO, arXiv 1405.0312; https://cocodataset.org/#detection-eval), in 0..1:
    mAP (over IoU 0.50 to 0.95), mAP50, mAP75, mAP_small, mAP_medium, mAP_large (of objects below 32², 96² pixels,
    above), AR@1, AR@10, AR@most (by detections per image). A size without objects has no value.

    Boxes are compared in the original's pixels. An object's area is its box's, where COCO's own files have the
    segment's. `crowd` regions absorb detections and count neither way; `difficult` objects (Pascal VOC) neither.
    """

    primary = "mAP"
    mode: Literal["max", "min"] = "max"

    def __init__(self, classes: Sequence[str], detect: Detect, confident: float = 0.3, most: int = 100) -> None:
        """`confident`: the score from which a detection counts as a mistake of its row; `most`: per image."""
        self.classes, self.detect, self.confident, self.most = tuple(classes), detect, confident, most

    def state(self, output: Arrays, batch: Arrays) -> dict[str, np.ndarray]:
        """`batch` has the truth in the original's pixels (`boxes`, `box_labels`, `crowd`, `difficult`, all ragged), and
        of each row `matrix` (3×3) and `size` (height, width)."""
        places = [
            Geometry(np.asarray(matrix, np.float64), int(height), int(width))
            for matrix, (height, width) in zip(batch["matrix"], batch["size"], strict=True)
        ]
        boxes, scores, labels = zip(*self.detect(output, places), strict=True)
        truth = {f"true_{name}": pieces(dict(batch), name) for name in ("boxes", "box_labels", "crowd", "difficult")}
        return {
            name: _objects(values)
            for name, values in {"boxes": boxes, "scores": scores, "labels": labels, **truth}.items()
        }

    def compute(self, states: Mapping[str, np.ndarray]) -> dict[str, float]:
        precision, recall = self._accumulated(states)
        result = {"mAP": _mean(precision[:, :, :, 0, -1]) or 0.0}
        result |= {"mAP50": _mean(precision[0, :, :, 0, -1]) or 0.0, "mAP75": _mean(precision[5, :, :, 0, -1]) or 0.0}
        for k, name in enumerate(("small", "medium", "large"), 1):
            value = _mean(precision[:, :, :, k, -1])
            result |= {f"mAP_{name}": value} if value is not None else {}
        return result | {f"AR@{most}": _mean(recall[:, :, 0, k]) or 0.0 for k, most in enumerate(self._limits)}

    def tables(self, states: Mapping[str, np.ndarray]) -> dict[str, Any]:
        precision, recall = self._accumulated(states)
        counted = np.concatenate(
            [
                label[~(crowd | difficult)]
                for label, crowd, difficult in zip(
                    states["true_box_labels"], states["true_crowd"], states["true_difficult"], strict=True
                )
            ]
        )
        curve = precision[0, :, :, 0, -1]
        return {
            "classes": list(self.classes),
            "per_class": [
                {
                    "class": name,
                    "objects": int((counted == k).sum()),
                    "AP": _mean(precision[:, :, k, 0, -1]),
                    "AP50": _mean(curve[:, k]),
                    "AP75": _mean(precision[5, :, k, 0, -1]),
                    "AR": _mean(recall[:, k, 0, -1]),
                    "precision": curve[:, k].round(4).tolist() if curve[0, k] > -1 else None,
                }
                for k, name in enumerate(self.classes)
            ],
        }

    def draw(self, page: Page, tables: Mapping[str, Any]) -> None:
        from .. import chart

        page.heading("Precision over recall")
        common = sorted((c for c in tables["per_class"] if c["precision"]), key=lambda c: -c["objects"])[:DRAWN]
        if common:
            curves = {c["class"]: c["precision"] for c in common}
            page.picture(
                chart.lines(curves, list(np.linspace(0, 1, 101)), "recall", "precision"),
                f"at IoU {MATCHED}, interpolated at 101 recalls",
            )
        page.heading("Classes")
        rows = [(c["class"], c["objects"], c["AP"], c["AP50"], c["AP75"], c["AR"]) for c in tables["per_class"]]
        page.table(("class", "objects", "AP", "AP50", "AP75", "AR"), rows)

    def badness(self, states: Mapping[str, np.ndarray]) -> np.ndarray:
        """Objects missed, and the scores of false alarms, among the confident detections at IoU 0.5."""
        names = ("boxes", "scores", "labels", "true_boxes", "true_box_labels", "true_crowd", "true_difficult")
        return np.array([self._wrong(*row) for row in zip(*(states[name] for name in names), strict=True)], float)

    def _wrong(
        self,
        boxes: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray,
        truth: np.ndarray,
        true_labels: np.ndarray,
        crowd: np.ndarray,
        difficult: np.ndarray,
    ) -> float:
        sure = scores >= self.confident
        boxes, scores, labels = boxes[sure], scores[sure], labels[sure]
        same = labels[:, None] == true_labels[None]
        overlap = np.where(same, iou(boxes, truth), 0)
        ignored = crowd | difficult
        covered = intersections(boxes, truth) / np.maximum(areas(boxes), 1e-9)[:, None]
        excused = (np.where(crowd[None], covered, overlap) * same >= MATCHED)[:, ignored].any(1)
        open_, alarms = ~ignored, 0.0
        for k in range(len(boxes)):
            best = int(np.argmax(np.where(open_, overlap[k], -1))) if open_.any() else -1
            if best >= 0 and overlap[k, best] >= MATCHED:
                open_[best] = False
            elif not excused[k]:
                alarms += float(scores[k])
        return float(open_.sum()) + alarms

    @property
    def _limits(self) -> list[int]:
        return sorted({1, 10, self.most} - {n for n in (1, 10) if n > self.most})

    def _accumulated(self, states: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Precision (IoU thresholds × 101 recalls × classes × area ranges × limits) and recall (without the second);
        -1 where nothing is to be found."""
        from faster_coco_eval import COCO, COCOeval_faster

        truth, found = _coco(states, len(self.classes))
        run = COCOeval_faster(COCO(truth), COCO(found), iouType="bbox", print_function=_silent, separate_eval=True)
        run.params.maxDets = self._limits
        run.evaluate()
        run.accumulate()
        return np.asarray(run.eval["precision"]), np.asarray(run.eval["recall"])


def _coco(states: Mapping[str, np.ndarray], classes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Truth and detections as COCO's JSON documents; rows are images in their order, ids count from 1."""
    rows = range(len(states["boxes"]))
    common = {"images": [{"id": row + 1} for row in rows], "categories": [{"id": k + 1} for k in range(classes)]}
    found: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    for row in rows:
        for box, score, label in zip(states["boxes"][row], states["scores"][row], states["labels"][row], strict=True):
            found.append(_entry(len(found), row, label, box) | {"score": float(score)})
        columns = (states[f"true_{name}"][row] for name in ("boxes", "box_labels", "crowd", "difficult"))
        for box, label, crowd, difficult in zip(*columns, strict=True):
            entry = _entry(len(truth), row, label, box) | {"iscrowd": int(crowd)}
            truth.append(entry | {"area": OUT_OF_RANGE} if difficult else entry)
    return {**common, "annotations": truth}, {**common, "annotations": found}


def _entry(number: int, row: int, label: int, box: np.ndarray) -> dict[str, Any]:
    left, top, right, bottom = map(float, box)
    width, height = right - left, bottom - top
    return {
        "id": number + 1,
        "image_id": row + 1,
        "category_id": int(label) + 1,
        "bbox": [left, top, width, height],
        "area": width * height,
        "iscrowd": 0,
    }


def _mean(values: np.ndarray) -> float | None:
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else None


def _objects(values: Sequence[Any]) -> np.ndarray:
    """N arrays of any lengths as one array of N objects."""
    out = np.empty(len(values), object)
    for k, value in enumerate(values):
        out[k] = np.asarray(value)
    return out


def _silent(*_: Any) -> None:
    pass
