"""What is measured of generated images: distances between their features and those of as many real ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import cv2
import numpy as np

from ..errors import UserError
from ..page import Page
from ..sample import Arrays
from .frechet import frechet
from .kernel import kernel_distance
from .manifold import precision_recall

Features = Callable[[np.ndarray], np.ndarray]
"""N×H×W×3 uint8 → N×D float32."""
INCEPTION = "inception"


class GenerationMetrics:
    """Fréchet distance (`FD_<extractor>`, the primary one), kernel distance (`KD_<extractor>`), precision and recall. With
    Inception's features, and only then, the first two are FID and KID.

    A distance falls as rows are added, for the same images: compare only those over equally many rows.
    """

    mode: Literal["max", "min"] = "min"
    pairwise = True

    def __init__(self, extractor: str, features: Features, neighbours: int = 3) -> None:
        self.extractor, self.features, self.neighbours = extractor, features, neighbours
        official = extractor == INCEPTION
        self.primary = "FID" if official else f"FD_{extractor}"
        self.kernel = "KID" if official else f"KD_{extractor}"

    def state(self, output: Arrays, batch: Arrays) -> dict[str, np.ndarray]:
        real, generated = np.asarray(batch["image"]), np.asarray(output["generated"])
        return {"real": self.features(real), "generated": self.features(generated)}

    def compute(self, states: Mapping[str, np.ndarray]) -> dict[str, float]:
        """UserError for rows that have no `neighbours` others."""
        real, generated = states["real"], states["generated"]
        if len(real) <= self.neighbours:
            raise UserError(
                f"{len(real)} rows are too few to measure generated images by: {self.neighbours} neighbours (task.neighbours) need "
                f"{self.neighbours + 1} or more; set data.<role>.splits larger"
            )
        precision, recall = precision_recall(real, generated, self.neighbours)
        return {
            self.primary: frechet(real, generated),
            self.kernel: kernel_distance(real, generated),
            "precision": precision,
            "recall": recall,
        }

    def tables(self, states: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {"rows": len(states["real"]), "dimensions": int(states["real"].shape[1])}

    def draw(self, page: Page, tables: Mapping[str, Any]) -> None:
        rows, dimensions = tables["rows"], tables["dimensions"]
        page.text(
            f"{rows:,} generated images against as many real ones, in {dimensions:,} features of '{self.extractor}'; "
            f"precision and recall with {self.neighbours} neighbours. Comparable only over as many rows and the same features."
        )
        if rows <= dimensions:
            page.text("Fewer rows than features: the Fréchet distance is far too high; take more rows.")

    def badness(self, states: Mapping[str, np.ndarray]) -> np.ndarray:
        """How far a generated image's features lie from the mean of the real ones."""
        return np.linalg.norm(states["generated"] - states["real"].mean(0), axis=1)


class ReconstructionMetrics(GenerationMetrics):
    """The same, and how near what an autoencoder `decoded` comes to the batch's images: `mse` and `mae` of pixels in
    0..1, and PSNR in dB, the mean over the images."""

    def state(self, output: Arrays, batch: Arrays) -> dict[str, np.ndarray]:
        apart = (np.asarray(output["decoded"], np.float32) - np.asarray(batch["image"], np.float32)) / 255
        axes = tuple(range(1, apart.ndim))
        return {**super().state(output, batch), "mse": (apart**2).mean(axes), "mae": np.abs(apart).mean(axes)}

    def compute(self, states: Mapping[str, np.ndarray]) -> dict[str, float]:
        mse = states["mse"].astype(np.float64)
        psnr = -10 * np.log10(np.maximum(mse, (0.5 / 255) ** 2))  # an exact copy: as if half a level off
        means = {"mse": mse, "mae": states["mae"].astype(np.float64), "psnr": psnr}
        return super().compute(states) | {name: float(values.mean()) for name, values in means.items()}

    def badness(self, states: Mapping[str, np.ndarray]) -> np.ndarray:
        return states["mse"]


def pixels8(images: np.ndarray) -> np.ndarray:
    """N×H×W×3 uint8 → N×192 float32 in 0..1: 8×8 area-averaged RGB, sensitive to colour and coarse shape, blind to texture."""
    small = [cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA).ravel() for image in images]
    return np.stack(small).astype(np.float32) / 255
