"""The boundary F of a segmentation, per image and class (Csurka et al., What is a good evaluation measure for semantic
segmentation?, BMVC 2013)."""

from __future__ import annotations

import math

import numpy as np


def boundary_f(
    predicted: np.ndarray, truth: np.ndarray, classes: int, tolerance: float = 0.0075, void: int = 255
) -> np.ndarray:
    """H×W class ids, twice → classes float32 in 0..1: the harmonic mean of the share of the predicted boundary that lies
    within the tolerance of the true one (precision) and of the reverse (recall); NaN where a class has no boundary in
    either, 0 where in one only.

    `tolerance`: below 1 a share of the image's diagonal, rounded up to whole pixels (as DAVIS does; Perazzi et al., CVPR
    2016); from 1 on pixels. A class's boundary: its pixels with one of another class above, below, left or right. Void
    pixels of the truth and the image's edge make no boundary, in either.
    """
    counted = truth != void
    reach = tolerance if tolerance >= 1 else math.ceil(tolerance * math.hypot(*truth.shape))
    (places_p, ids_p), (places_t, ids_t) = (marked(mask, edges(mask, counted)) for mask in (predicted, truth))
    out = np.full(classes, np.nan, np.float32)
    for k in range(classes):
        ours, theirs = places_p[ids_p == k], places_t[ids_t == k]
        if not len(ours) or not len(theirs):
            if len(ours) or len(theirs):
                out[k] = 0.0
            continue
        precision, recall = near(ours, theirs, reach).mean(), near(theirs, ours, reach).mean()
        out[k] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return out


def edges(mask: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """H×W bool: counted pixels that have a counted neighbour (of four) of another class."""
    out = np.zeros(mask.shape, bool)
    for a, b in ((np.s_[1:, :], np.s_[:-1, :]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (mask[a] != mask[b]) & counted[a] & counted[b]
        out[a] |= differ
        out[b] |= differ
    return out


def marked(mask: np.ndarray, edge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """N×2 int64 places (y, x) of an edge's pixels, and the N ids of the mask there."""
    places = np.argwhere(edge)
    return places, mask[edge]


def near(points: np.ndarray, others: np.ndarray, reach: float) -> np.ndarray:
    """N×2 and M×2 int64 places (y, x) → N bool: whether one of the others, of which there is one at least, lies within `reach`
    pixels. A disc is a run of pixels in each row, and of a run it is known by its ends how many are marked."""
    corner = others.min(0)
    height, width = others.max(0) - corner + 1
    upto = np.zeros((height, width + 1), np.int32)
    upto[others[:, 0] - corner[0], others[:, 1] - corner[1] + 1] = 1
    np.cumsum(upto, axis=1, out=upto)
    found, whole = np.zeros(len(points), bool), math.floor(reach)
    for dy in sorted(range(-whole, whole + 1), key=abs):
        half = math.floor(math.sqrt(reach * reach - dy * dy + 1e-9))
        left = np.flatnonzero(~found)
        y, x = (points[left] - corner).T
        inside = (y + dy >= 0) & (y + dy < height)
        y, x, left = y[inside] + dy, x[inside], left[inside]
        ends = (x + half + 1).clip(0, width), (x - half).clip(0, width)
        found[left] = upto[y, ends[0]] > upto[y, ends[1]]
    return found
