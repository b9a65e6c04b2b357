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
    edge_p, edge_t = edges(predicted, counted), edges(truth, counted)
    out = np.full(classes, np.nan, np.float32)
    for k in range(classes):
        ours, theirs = edge_p & (predicted == k), edge_t & (truth == k)
        if not ours.any() or not theirs.any():
            if ours.any() or theirs.any():
                out[k] = 0.0
            continue
        precision, recall = (distance(theirs)[ours] <= reach).mean(), (distance(ours)[theirs] <= reach).mean()
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


def distance(marked: np.ndarray) -> np.ndarray:
    """H×W float32: Euclidean distance in pixels to the nearest marked one, of which there is at least one."""
    import cv2

    return np.round(cv2.distanceTransform((~marked).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE), 4)
