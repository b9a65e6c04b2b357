"""The Fréchet distance between two sets of features (Heusel et al., GANs Trained by a Two Time-Scale Update Rule,
arXiv 1706.08500). It is called FID only with Inception's features; with others it carries their name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import cv2
import numpy as np

from ..page import Page
from ..sample import Arrays


class FrechetMetrics:
    """FD_pixels8: the distance between real and generated images in 8×8 area-averaged RGB pixels (192 features in
    0..1): a fixed extractor that needs no weights, sensitive to colour and coarse shape, blind to texture."""

    primary = "FD_pixels8"
    mode: Literal["max", "min"] = "min"

    def state(self, output: Arrays, batch: Arrays) -> dict[str, np.ndarray]:
        return {"real": pixels8(np.asarray(batch["image"])), "generated": pixels8(np.asarray(output["image"]))}

    def compute(self, states: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"FD_pixels8": frechet(states["real"], states["generated"])}

    def tables(self, states: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {"rows": len(states["real"])}

    def draw(self, page: Page, tables: Mapping[str, Any]) -> None:
        page.text(f"Distance over {tables['rows']:,} real and as many generated images, in 8×8 area-averaged pixels.")

    def badness(self, states: Mapping[str, np.ndarray]) -> np.ndarray:
        """How far a generated image's features lie from the mean of the real ones."""
        return np.linalg.norm(states["generated"] - states["real"].mean(0), axis=1)


def pixels8(images: np.ndarray) -> np.ndarray:
    """N×H×W×3 uint8 → N×192 float64 in 0..1."""
    return np.stack([cv2.resize(i, (8, 8), interpolation=cv2.INTER_AREA).ravel() / 255.0 for i in images])


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½) of two N×D feature sets; at least two rows each."""
    if min(len(a), len(b)) < 2:
        return float("nan")
    mean = a.mean(0) - b.mean(0)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # tr((Σa Σb)^½) by the symmetric form: the eigenvalues of Σa^½ Σb Σa^½ are those of Σa Σb, and stay real
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(mean @ mean + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)
