"""A detector's raw output → detections in the original's pixels. Numpy alone: the same for every runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..core.boxes import areas, intersections, nms
from ..core.instances import pasted
from ..core.metrics.detection import Found
from ..core.preprocess import Preprocess
from ..core.sample import Arrays, Geometry, finite
from ..core.windows import Window
from ..models import anchors
from .detect_config import DetectConfig

MEASURED = 0.01
"""Lowest score of a detection that the metrics count."""
CANDIDATES = 1000
"""Best-scored boxes of an image, of all classes, that suppression sees; more where max_boxes wants more."""
EDGE = 2.0
"""Pixels from a window's edge within which a box counts as cut by it."""
COVERED = 0.7
"""Share of a box cut by a window's edge that a box of another window must cover, for both to be one object."""

Candidates = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]
"""Boxes in the input's pixels, scores, labels, and mask probabilities of a model that has them."""


@dataclass(frozen=True)
class View:
    """Where the answers of one view of a dense model begin, and what they mean."""

    grid: anchors.Grid
    mirrored: bool
    factor: float
    """From the view's pixels to the input's."""


@dataclass(frozen=True)
class Answers:
    config: DetectConfig
    preprocess: Preprocess

    def detect(self, output: Arrays, geometry: Sequence[Geometry], least: float = MEASURED) -> list[Found]:
        """Every image's detections in the original's pixels, best first: suppressed, clipped, at most max_boxes. What
        lies wholly outside the image (in a letterbox's border) is no detection. With windows `output` has a row for each
        of them, image by image."""
        for name, value in output.items():
            finite(value, f"detect: the model's {name}")
        rows, windows = self._candidates(output, least), self.config.windows
        if windows is None:
            return [self._found(next(rows), place) for place in geometry]
        return [self._seen(rows, windows.cut(place.height, place.width), place) for place in geometry]

    def _seen(self, rows: Iterator[Candidates], windows: Sequence[Window], image: Geometry) -> Found:
        """One image's detections, from the rows of its windows. A box that an inner edge of its window cuts is part of an
        object, which another window may see whole: it gives way to one that covers it, whatever their scores."""
        parts = []
        for window in windows:
            found = self._found(next(rows), self.preprocess.geometry(window.height, window.width))
            boxes = found.boxes + np.array([window.left, window.top] * 2, np.float32)
            masks = tuple(patch.shifted(window.left, window.top) for patch in found.masks)
            parts.append((Found(boxes, found.scores, found.labels, masks), _cut(boxes, window, image)))
        if len(parts) == 1:
            return parts[0][0]
        boxes, scores, labels = (np.concatenate([part[k] for part, _ in parts]) for k in range(3))
        masks = tuple(patch for part, _ in parts for patch in part.masks)
        return _picked(
            Found(boxes, scores, labels, masks),
            self._merged(boxes, scores, labels, np.concatenate([cut for _, cut in parts])),
        )

    def _merged(self, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, cut: np.ndarray) -> np.ndarray:
        whole, part = np.flatnonzero(~cut), np.flatnonzero(cut)
        whole = whole[nms(boxes[whole], scores[whole], labels[whole], self.config.nms_iou, len(boxes))]
        kept = whole.tolist()
        # Of cut boxes the larger shows more of its object.
        for k in part[np.lexsort((-scores[part], -areas(boxes[part])))].tolist():
            rivals = [j for j in kept if labels[j] == labels[k]]
            covered = intersections(boxes[k][None], boxes[rivals])[0] / max(float(areas(boxes[k][None])[0]), 1e-9)
            if not (covered > COVERED).any():
                kept.append(k)
        best = np.array(kept, np.int64)
        return best[np.argsort(-scores[best], kind="stable")][: self.config.max_boxes]

    def _found(self, candidates: Candidates, place: Geometry) -> Found:
        boxes, scores, labels, masks = candidates
        kept = nms(boxes, scores, labels, self.config.overlap, self.config.max_boxes)
        original = place.boxes(boxes[kept].astype(np.float64)).astype(np.float32)
        kept, original = kept[areas(original) > 0], original[areas(original) > 0]
        patches = ()
        if masks is not None:
            corners = boxes[kept].reshape(-1, 2, 2) @ place.matrix[:2, :2].T + place.matrix[:2, 2]
            patches = tuple(
                pasted(mask, box, place.height, place.width)
                for mask, box in zip(masks[kept], corners.reshape(-1, 4), strict=True)
            )
        return Found(original, scores[kept], labels[kept].astype(np.int64), patches)

    @cached_property
    def views(self) -> tuple[View, ...]:
        """Of a dense model, in the order of its answers."""
        size, model = self.config.image_size, self.config.model
        mirrored = (False, True) if model.mirror else (False,)
        return tuple(View(self._grid(side), flip, size / side) for side in self.config.sides for flip in mirrored)

    def _grid(self, side: int) -> anchors.Grid:
        model = self.config.model
        if model.name == "yolo":
            return anchors.yolo(side)
        if model.name == "retinanet":
            return anchors.retinanet(side, model.anchor)
        return anchors.ssd(side, model.anchor, self.config.image_size)

    def _candidates(self, output: Arrays, least: float) -> Iterator[Candidates]:
        """Each row's boxes in the input's pixels, with scores above `least`, before suppression."""
        if "scores" in output:
            for k, scores in enumerate(output["scores"]):
                good = scores > least
                masks = output["masks"][k][good] if "masks" in output else None
                yield output["boxes"][k][good], scores[good], output["labels"][k][good], masks
            return
        most = max(CANDIDATES, 4 * self.config.max_boxes)
        begin = np.cumsum([0, *(len(view.grid.anchors) for view in self.views)])
        for deltas, logits in zip(output["deltas"], output["logits"], strict=True):
            scores = self.views[0].grid.scores(logits)
            flat = np.flatnonzero(scores > least)
            if len(flat) > most:
                flat = flat[np.argpartition(-scores.ravel()[flat], most)[:most]]
            anchor, label = np.divmod(flat, scores.shape[1])
            boxes = np.zeros((len(anchor), 4), np.float32)
            for k, view in enumerate(self.views):
                mine = (anchor >= begin[k]) & (anchor < begin[k + 1])
                boxes[mine] = self._turned(view, view.grid.boxes(deltas[anchor[mine]], anchor[mine] - begin[k]))
            yield boxes, scores[anchor, label], label, None

    def _turned(self, view: View, boxes: np.ndarray) -> np.ndarray:
        boxes = boxes * np.float32(view.factor)
        if view.mirrored:
            boxes[:, [0, 2]] = self.config.image_size - boxes[:, [2, 0]]
        return boxes


def _cut(boxes: np.ndarray, window: Window, image: Geometry) -> np.ndarray:
    """N bool: which boxes touch an edge of the window that is none of the image."""
    right, bottom = window.left + window.width, window.top + window.height
    low = (boxes[:, :2] < (window.left + EDGE, window.top + EDGE)) & np.array([window.left > 0, window.top > 0])
    high = (boxes[:, 2:] > (right - EDGE, bottom - EDGE)) & np.array([right < image.width, bottom < image.height])
    return (low | high).any(1)


def _picked(found: Found, index: np.ndarray) -> Found:
    masks = tuple(found.masks[k] for k in index) if found.masks else ()
    return Found(found.boxes[index], found.scores[index], found.labels[index], masks)
