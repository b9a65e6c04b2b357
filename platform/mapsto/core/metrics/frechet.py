"""The Fréchet distance between two sets of features (Heusel et al., GANs Trained by a Two Time-Scale Update Rule,
arXiv 1706.08500). It is called FID only with Inception's features; with others it carries their name."""

from __future__ import annotations

import numpy as np


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½) of two N×D feature sets; nan with fewer than two rows in one."""
    if min(len(a), len(b)) < 2:
        return float("nan")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    mean = a.mean(0) - b.mean(0)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    # tr((Σa Σb)^½) by the symmetric form: the eigenvalues of Σa^½ Σb Σa^½ are those of Σa Σb, and stay real
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(mean @ mean + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)
