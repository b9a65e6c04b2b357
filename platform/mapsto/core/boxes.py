"""Boxes in numpy: N×4 xyxy in pixels, right and bottom exclusive. The same for every runtime; no torch."""

from __future__ import annotations

import numpy as np


def areas(boxes: np.ndarray) -> np.ndarray:
    """N×4 → N; 0 for a box whose corners are the wrong way round."""
    return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair: N×4 and M×4 → N×M in 0..1; 0 where both are empty."""
    inner = intersections(a, b)
    union = areas(a)[:, None] + areas(b)[None] - inner
    return inner / np.where(union > 0, union, 1)


def intersections(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The area that every pair shares: N×4 and M×4 → N×M, pixels²."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.prod(np.maximum(high - low, 0), axis=2)


def nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, threshold: float, most: int) -> np.ndarray:
    """Greedy non-maximum suppression within each label: indices of what is kept, best score first, at most `most`.

    A box falls to a better one of its label whose IoU with it is above `threshold`; of equal scores the earlier wins.
    """
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        rivals = labels[rest] == labels[best]
        falls = np.zeros(len(rest), bool)
        falls[rivals] = iou(boxes[best][None], boxes[rest[rivals]])[0] > threshold
        order = rest[~falls]
    return np.array(kept, np.int64)
