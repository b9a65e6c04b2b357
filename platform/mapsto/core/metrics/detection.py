"""Detection metrics: COCO's average precision and recall, computed once over all rows by faster-coco-eval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from ..batches import pieces
from ..boxes import areas, intersections, iou
from ..instances import Patch, to_counts, unpacked
from ..page import Page
from ..sample import Arrays, Geometry, places_of


class Found(NamedTuple):
    """One image's detections, best first."""

    boxes: np.ndarray
    """K×4, the original's pixels."""
    scores: np.ndarray
    labels: np.ndarray
    """K class ids."""
    masks: tuple[Patch, ...] = ()
    """K, of a task that answers with masks."""


Detect: TypeAlias = Callable[[Arrays, Sequence[Geometry]], list[Found]]
"""A model's output → detections of every image: a task's decoding."""

MATCHED = 0.5
"""IoU from which a detection is right, in the curves and the worst mistakes."""
OUT_OF_RANGE = 1e11
"""Area of an object that no range counts: COCO's way to ignore it."""
DRAWN = 12
"""Most classes whose curves are drawn."""
MASKS = ("masks", "mask_places")
"""A batch's masks: instances.packed."""


class DetectionMetrics:
    """COCO's metrics (Lin et al., Microsoft COCO, arXiv 1405.0312; https://cocodataset.org/#detection-eval), in 0..1:
    mAP (over IoU 0.50 to 0.95), mAP50, mAP75, mAP_small, mAP_medium, mAP_large (of objects below 32², 96² pixels,
    above), AR@1, AR@10, AR@most (by detections per image). A size without objects has no value.

    Boxes are compared in the original's pixels. An object's area is the one that the data set has for it (in COCO's own
    files its segment's), or its box's. `crowd` regions absorb detections and count neither way; `difficult` objects (Pascal VOC) neither.

    With masks, the same numbers by the overlap of masks, too: mask_mAP (then the primary one), mask_mAP50, ...; there an
    object without an area of its own has its mask's. An object without a mask counts neither way in them.
    """

    primary: str
    mode: Literal["max", "min"] = "max"

    def __init__(
        self, classes: Sequence[str], detect: Detect, confident: float = 0.3, most: int = 100, masks: bool = False
    ) -> None:
        """`confident`: the score from which a detection counts as a mistake of its row; `most`: per image."""
        self.classes, self.detect, self.confident, self.most = tuple(classes), detect, confident, most
        self.masks, self.primary = masks, "mask_mAP" if masks else "mAP"

    def state(self, output: Arrays, batch: Arrays) -> dict[str, np.ndarray]:
        """`batch` has the truth in the original's pixels (`boxes`, `box_labels`, `crowd`, `difficult`, all ragged; `area`,
        too, where it is there, NaN where an object has none), and of each row `matrix` (3×3) and `size` (height, width)."""
        places = places_of(batch)
        found, batch = self.detect(output, places), dict(batch)
        held = {name: [getattr(each, name) for each in found] for name in ("boxes", "scores", "labels")}
        held |= {f"true_{name}": pieces(batch, name) for name in ("boxes", "box_labels", "crowd", "difficult")}
        held |= {"true_area": pieces(batch, "area")} if "area" in batch else {}
        if self.masks:
            truth = [unpacked(*row) for row in zip(*(pieces(batch, name) for name in MASKS), strict=True)]
            held["masks"] = [_texts(each.masks, place, True) for each, place in zip(found, places, strict=True)]
            held["true_masks"] = [_texts(patches, place, False) for patches, place in zip(truth, places, strict=True)]
            held["size"] = [(place.height, place.width) for place in places]
        return {name: _objects(values) for name, values in held.items()}

    def compute(self, states: Mapping[str, np.ndarray]) -> dict[str, float]:
        result = self._numbers(*self._accumulated(states, "bbox"))
        if self.masks:
            result |= {f"mask_{k}": v for k, v in self._numbers(*self._accumulated(states, "segm")).items()}
        return result

    def _numbers(self, precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
        result = {"mAP": _mean(precision[:, :, :, 0, -1]) or 0.0}
        result |= {"mAP50": _mean(precision[0, :, :, 0, -1]) or 0.0, "mAP75": _mean(precision[5, :, :, 0, -1]) or 0.0}
        for k, name in enumerate(("small", "medium", "large"), 1):
            value = _mean(precision[:, :, :, k, -1])
            result |= {f"mAP_{name}": value} if value is not None else {}
        return result | {f"AR@{most}": _mean(recall[:, :, 0, k]) or 0.0 for k, most in enumerate(self._limits)}

    def tables(self, states: Mapping[str, np.ndarray]) -> dict[str, Any]:
        precision, recall = self._accumulated(states, "bbox")
        masks = self._accumulated(states, "segm")[0] if self.masks else None
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
                    **({"mask_AP": _mean(masks[:, :, k, 0, -1])} if masks is not None else {}),
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
        names = ("class", "objects", "AP", "AP50", "AP75", "AR", *(("mask_AP",) if self.masks else ()))
        page.table(names, [tuple(c[name] for name in names) for c in tables["per_class"]])

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

    def _accumulated(
        self, states: Mapping[str, np.ndarray], kind: Literal["bbox", "segm"]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Precision (IoU thresholds × 101 recalls × classes × area ranges × limits) and recall (without the second);
        -1 where nothing is to be found."""
        from faster_coco_eval import COCO, COCOeval_faster

        truth, found = _coco(states, len(self.classes), kind == "segm")
        run = COCOeval_faster(COCO(truth), COCO(found), iouType=kind, print_function=_silent, separate_eval=True)
        run.params.maxDets = self._limits
        run.evaluate()
        run.accumulate()
        return np.asarray(run.eval["precision"]), np.asarray(run.eval["recall"])


def _coco(states: Mapping[str, np.ndarray], classes: int, masks: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Truth and detections as COCO's JSON documents; rows are images in their order, ids count from 1."""
    rows = range(len(states["boxes"]))
    images: list[dict[str, Any]] = [{"id": row + 1} for row in rows]
    if masks:
        sizes = [size.tolist() for size in states["size"]]
        images = [image | {"height": h, "width": w} for image, (h, w) in zip(images, sizes, strict=True)]
    common = {"images": images, "categories": [{"id": k + 1} for k in range(classes)]}
    found: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    for row in rows:
        size = states["size"][row].tolist() if masks else None
        columns = [states[name][row] for name in ("boxes", "scores", "labels")]
        texts = states["masks"][row] if masks else [None] * len(columns[0])
        for box, score, label, text in zip(*columns, texts, strict=True):
            found.append(_entry(len(found), row, label, box, size, text) | {"score": float(score)})
        columns = [states[f"true_{name}"][row] for name in ("boxes", "box_labels", "crowd", "difficult")]
        texts = states["true_masks"][row] if masks else [None] * len(columns[0])
        areas = states["true_area"][row] if "true_area" in states else [math.nan] * len(columns[0])
        for box, label, crowd, difficult, area, text in zip(*columns, areas, texts, strict=True):
            entry = _entry(len(truth), row, label, box, size, text) | {"iscrowd": int(crowd)}
            entry |= {} if math.isnan(area) else {"area": float(area)}
            ignored = difficult or (masks and not text)
            truth.append(entry | {"area": OUT_OF_RANGE} if ignored else entry)
    return {**common, "annotations": truth}, {**common, "annotations": found}


def _entry(
    number: int, row: int, label: int, box: np.ndarray, size: list[int] | None, text: str | None
) -> dict[str, Any]:
    """`size`: with masks, of the image (height, width); `text`: the mask's run lengths, of its box where it is empty."""
    left, top, right, bottom = map(float, box)
    width, height = right - left, bottom - top
    entry = {
        "id": number + 1,
        "image_id": row + 1,
        "category_id": int(label) + 1,
        "bbox": [left, top, width, height],
        "area": width * height,
        "iscrowd": 0,
    }
    if size is None:
        return entry
    from faster_coco_eval.core import mask

    run_lengths = {"size": size, "counts": text or to_counts(_rectangle(box), *size)}
    return entry | {"segmentation": run_lengths, "area": float(mask.area(run_lengths))}


def _rectangle(box: np.ndarray) -> Patch:
    left, top, right, bottom = (round(float(v)) for v in box)
    return Patch(left, top, np.ones((max(bottom - top, 0), max(right - left, 0)), bool))


def _texts(patches: Sequence[Patch], place: Geometry, all_: bool) -> np.ndarray:
    """Each mask's run lengths in the original; without `all_` an empty text for an object that has none."""
    found = [to_counts(patch, place.height, place.width) if all_ or patch.pixels.size else "" for patch in patches]
    return np.array(found, object)


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
