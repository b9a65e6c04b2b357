"""The kernel distance between two sets of features: the unbiased estimate of the squared maximum mean discrepancy under a
cubic kernel (Bińkowski et al., Demystifying MMD GANs, arXiv 1801.01401). KID with Inception's features; the paper averages it
over random subsets to save memory, here all rows take part."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

ROWS_AT_ONCE = 1024


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """MMD² of two N×D feature sets under k(x, y) = (x·y / D + 1)³; about 0 for two samples of one distribution, and then
    as often below it as above. nan with fewer than two rows in one."""
    n, m = len(a), len(b)
    if min(n, m) < 2:
        return float("nan")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    within = (_total(a, a) - _own(a)) / (n * (n - 1)) + (_total(b, b) - _own(b)) / (m * (m - 1))
    return float(within - 2 * _total(a, b) / (n * m))


def _total(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(_cubic(part @ b.T, a.shape[1]).sum() for part in chunks(a)))


def _own(a: np.ndarray) -> float:
    return float(_cubic((a * a).sum(1), a.shape[1]).sum())


def _cubic(products: np.ndarray, dimensions: int) -> np.ndarray:
    return (products / dimensions + 1) ** 3


def chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Parts of at most ROWS_AT_ONCE rows: a table of all pairs would not fit."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield rows[start : start + ROWS_AT_ONCE]
