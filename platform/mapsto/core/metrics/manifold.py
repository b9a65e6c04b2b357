"""Precision and recall of generated images: how many of one set lie on the manifold of the other, which is the union of balls
to each point's k-th neighbour (Kynkäänniemi et al., Improved Precision and Recall Metric, arXiv 1904.06991)."""

from __future__ import annotations

import numpy as np

from .kernel import chunks


def precision_recall(real: np.ndarray, generated: np.ndarray, k: int = 3) -> tuple[float, float]:
    """(share of generated rows among the real ones, share of real rows among the generated ones) of N×D feature sets, by
    Euclidean distance. nan where a set has no k-th neighbour."""
    if min(len(real), len(generated)) <= k:
        return float("nan"), float("nan")
    real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    return _covered(generated, real, k), _covered(real, generated, k)


def _covered(points: np.ndarray, centres: np.ndarray, k: int) -> float:
    reach = np.concatenate([np.partition(_squared(part, centres), k, axis=1)[:, k] for part in chunks(centres)])
    return float(np.mean(np.concatenate([(_squared(part, centres) <= reach).any(1) for part in chunks(points)])))


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A point's distance to itself, the smallest of its row, is place 0 of the partition: place k is the k-th neighbour."""
    return ((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T).clip(0)
