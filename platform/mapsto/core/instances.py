"""Masks of single objects, each held within its bounds only: from COCO's segmentations, moved with pixels, and back.

Source of the format: https://github.com/cocodataset/cocoapi (`PythonAPI/pycocotools/mask.py`): polygons of x, y in turn in
pixels, or run lengths column by column, as numbers or as compressed text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import UserError
from .runs import from_runs, from_text, to_runs, to_text


@dataclass(frozen=True, eq=False)
class Patch:
    """An object's mask in an image: `pixels` (h×w bool) lie with their top left one at (`left`, `top`), pixels; outside
    is nothing. Without pixels it is the mask of an object that has none."""

    left: int
    top: int
    pixels: np.ndarray

    @property
    def area(self) -> int:
        return int(np.count_nonzero(self.pixels))

    def whole(self, height: int, width: int) -> np.ndarray:
        """H×W bool; what lies outside the image is cut."""
        out = np.zeros((height, width), bool)
        part = self.within(0, 0, width, height)
        h, w = part.pixels.shape
        out[part.top : part.top + h, part.left : part.left + w] = part.pixels
        return out

    def within(self, left: int, top: int, right: int, bottom: int) -> Patch:
        """What of it lies in a rectangle."""
        h, w = self.pixels.shape
        x0, y0 = max(left, self.left), max(top, self.top)
        x1, y1 = max(x0, min(right, self.left + w)), max(y0, min(bottom, self.top + h))
        return Patch(x0, y0, self.pixels[y0 - self.top : y1 - self.top, x0 - self.left : x1 - self.left])

    def shifted(self, right: int, down: int) -> Patch:
        return Patch(self.left + right, self.top + down, self.pixels)

    def moved(self, matrix: np.ndarray, height: int, width: int) -> Patch:
        """Through a 3×3 matrix into an image of height × width: each pixel reads its centre's origin (nearest
        neighbour), as masks of class ids do."""
        h, w = self.pixels.shape
        corners = np.array([[x, y, 1.0] for x in (self.left, self.left + w) for y in (self.top, self.top + h)])
        ends = corners @ matrix.T
        ends = ends[:, :2] / ends[:, 2:]
        x0, y0 = np.clip(np.floor(ends.min(0)), 0, (width, height)).astype(int)
        x1, y1 = np.clip(np.ceil(ends.max(0)), 0, (width, height)).astype(int)
        x, y = np.meshgrid(np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5)
        origin = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(matrix).T
        read = np.floor(origin[..., :2] / origin[..., 2:]).astype(int) - (self.left, self.top)
        inside = (read >= 0).all(-1) & (read < (w, h)).all(-1)
        out = np.zeros((max(y1 - y0, 0), max(x1 - x0, 0)), bool)
        out[inside] = self.pixels[read[inside][:, 1], read[inside][:, 0]]
        return Patch(int(x0), int(y0), out)


NOTHING = Patch(0, 0, np.zeros((0, 0), bool))


def tight(mask: np.ndarray) -> Patch:
    """H×W bool → the patch of its true pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return NOTHING
    top, left = int(rows[0]), int(columns[0])
    return Patch(left, top, mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(bool))


def from_segment(text: str, height: int, width: int) -> Patch:
    """COCO's segmentation as JSON (polygons, or run lengths of an image of this size) → the patch. An empty list is no
    mask. Raises UserError for what is no segmentation of this image."""
    try:
        segment = json.loads(text)
    except ValueError as error:
        raise UserError(f"segments: not JSON: {text[:60]}") from error
    if isinstance(segment, dict):
        return _from_rle(segment, height, width)
    if not isinstance(segment, list) or not all(_is_polygon(polygon) for polygon in segment):
        raise UserError("segments: a polygon is a list of six or more finite numbers, x and y in turn")
    return _drawn(segment, height, width) if segment else NOTHING


def _is_polygon(value: Any) -> bool:
    good = isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0
    return good and all(isinstance(v, int | float) and abs(v) < 1e6 for v in value)


def _from_rle(segment: dict[str, Any], height: int, width: int) -> Patch:
    counts, size = segment.get("counts"), segment.get("size")
    if size != [height, width] or not isinstance(counts, list | str):
        raise UserError(
            f"segments: run lengths of size {size}; the image is [{height}, {width}] (height, width), with `counts`"
        )
    runs = from_text(counts) if isinstance(counts, str) else counts
    return tight(from_runs(runs, height * width).reshape(width, height).T)


def _drawn(polygons: list[list[float]], height: int, width: int) -> Patch:
    """Polygons as COCO's own code draws them, in a window around them where they lie inside the image: it rounds corners
    to fifths of a pixel, so once they are rounded, whole pixels shift nothing but a pixel here and there that a line halves."""
    from faster_coco_eval.core import mask as coco

    moved = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons]
    corners = np.concatenate(moved)
    left, top, right, bottom = 0, 0, width, height
    if corners.min() >= 0 and (corners <= (width, height)).all():
        left, top = np.maximum(0, corners.min(0).astype(int) - 1).tolist()
        right, bottom = np.minimum((width, height), corners.max(0).astype(int) + 2).tolist()
        moved = [(np.floor(5 * points + 0.5) - (5 * left, 5 * top)) / 5 for points in moved]
    lines: Any = coco.frPyObjects([points.ravel().tolist() for points in moved], bottom - top, right - left)
    drawn = coco.merge(lines)
    return tight(np.asarray(coco.decode(drawn), bool)).shifted(left, top)


def to_counts(patch: Patch, height: int, width: int) -> str:
    """COCO's compressed run lengths of the mask in an image of height × width."""
    part = patch.within(0, 0, width, height)
    h, w = part.pixels.shape
    if not part.area:
        return to_text([height * width])
    columns = np.zeros((w, height), bool)
    columns[:, part.top : part.top + h] = part.pixels.T
    runs = to_runs(columns.ravel())
    runs[0] += part.left * height
    after = (width - part.left - w) * height
    runs = [*runs[:-1], runs[-1] + after] if len(runs) % 2 else [*runs, after]
    return to_text(runs if runs[-1] else runs[:-1])


def to_polygons(patch: Patch) -> list[list[float]]:
    """The outer contours through the border pixels' centres, x and y in turn, of three points and more: holes are filled,
    and half a pixel of the rim is lost."""
    import cv2

    contours, _ = cv2.findContours(patch.pixels.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    offset = np.array([patch.left + 0.5, patch.top + 0.5])
    return [(points[:, 0] + offset).ravel().tolist() for points in contours if len(points) >= 3]


def pasted(probability: np.ndarray, box: np.ndarray, height: int, width: int) -> Patch:
    """M×M mask probabilities of a box (xyxy, pixels of an image of height × width, which it may leave) → its pixels of
    which the interpolated probability is at least one half; nothing outside the box (He et al., Mask R-CNN,
    arXiv 1703.06870)."""
    x0, y0, x1, y1 = (float(v) for v in box)
    left, top = max(0, int(np.floor(x0))), max(0, int(np.floor(y0)))
    right, bottom = min(width, int(np.ceil(x1))), min(height, int(np.ceil(y1)))
    if right <= left or bottom <= top or x1 <= x0 or y1 <= y0:
        return NOTHING
    rows = _weights(np.arange(top, bottom) + 0.5, y0, y1, probability.shape[0])
    columns = _weights(np.arange(left, right) + 0.5, x0, x1, probability.shape[1])
    return Patch(left, top, rows @ probability.astype(np.float32) @ columns.T >= 0.5)


def _weights(at: np.ndarray, low: float, high: float, count: int) -> np.ndarray:
    """Linear interpolation between `count` cells from low to high at the given places, as a matrix; beyond the outer
    cells' centres their own value, outside the box 0."""
    place = np.clip((at - low) / (high - low) * count - 0.5, 0, count - 1)
    weights = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(count)))
    return (weights * ((at > low) & (at < high))[:, None]).astype(np.float32)


def packed(patches: Sequence[Patch]) -> tuple[np.ndarray, np.ndarray]:
    """(all their pixels, one after the other, uint8; N×4 int64: left, top, width, height)."""
    places = [(p.left, p.top, p.pixels.shape[1], p.pixels.shape[0]) for p in patches]
    pixels = [p.pixels.ravel() for p in patches]
    return np.concatenate([np.zeros(0, bool), *pixels]).astype(np.uint8), np.array(places, np.int64).reshape(-1, 4)


def unpacked(pixels: np.ndarray, places: np.ndarray) -> list[Patch]:
    """What `packed` packed."""
    ends = np.cumsum(places[:, 2] * places[:, 3])
    return [
        Patch(int(x), int(y), pixels[end - w * h : end].reshape(h, w).astype(bool))
        for (x, y, w, h), end in zip(places.tolist(), ends.tolist(), strict=True)
    ]
