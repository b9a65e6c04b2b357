"""The noun: a sample, a batch of them, what a model answers, and where an image came from in the original's pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from .errors import BrokenModel

Sample: TypeAlias = dict[str, Any]
"""Column name → value. Terms: `image` (encoded bytes, or H×W×3 uint8 RGB after decoding), `label` (int class id),
`boxes` (N×4 float32, xyxy, pixels), `mask` (encoded bytes, or H×W uint8 class ids; 255 is void), `caption` (str),
`identity`, `license`, `consent` (str), `row_id` (int, unique in the data set)."""

Batch: TypeAlias = dict[str, Any]
"""Name → array: numpy until it reaches the trainer, torch tensors on the device after. `image` is N×H×W×3 uint8;
`row_id` is N int64; `valid` is N bool: False marks a padding row, which no loss and no metric may count."""

Arrays: TypeAlias = Mapping[str, np.ndarray]
"""Name → numpy array: what any runtime (torch, ONNX Runtime, OpenVINO) takes and returns."""

Prediction: TypeAlias = dict[str, Any]
"""One image's answer in the task's terms: JSON-able values, and numpy arrays for masks and pictures."""

Split: TypeAlias = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Geometry:
    """How a model's input pixels lie in the original image.

    `matrix`: 3×3 float64, maps (x, y, 1) of the input to the original, both in pixels with the origin at the corner
    of the top left pixel. `height`, `width`: the original's size in pixels, after EXIF orientation.
    """

    matrix: np.ndarray
    height: int
    width: int

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Map N×4 xyxy boxes from the input to the original, clipped to it (axis-aligned geometries only)."""
        corners = boxes.reshape(-1, 2, 2) @ self.matrix[:2, :2].T + self.matrix[:2, 2]
        limits = np.array([self.width, self.height], corners.dtype)
        return np.clip(corners, 0, limits).reshape(-1, 4)


def finite(values: np.ndarray, what: str) -> np.ndarray:
    """The values, N×…, of `what`, such as "detect: the model's scores"; BrokenModel with the row where one is no finite number."""
    good = np.isfinite(values)
    if not good.all():
        row = int(np.flatnonzero(~good.reshape(len(values), -1).all(1))[0])
        raise BrokenModel(f"{what} are not finite (row {row} of its batch): it is broken")
    return values


def places_of(batch: Arrays) -> list[Geometry]:
    """Where a batch's images lie in their originals, from `matrix` (N×3×3) and `size` (N×2: height, width)."""
    return [
        Geometry(np.asarray(matrix, np.float64), int(height), int(width))
        for matrix, (height, width) in zip(batch["matrix"], batch["size"], strict=True)
    ]


@dataclass(frozen=True)
class DatasetInfo:
    """What a task may know of a data set before it sees a row."""

    uri: str
    fingerprint: str
    classes: tuple[str, ...]
    """Class names; a `label` is an index here. Empty when the data set has no labels."""
    rows: Mapping[str, int]
    """Split → rows."""
    columns: tuple[str, ...]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Per-channel mean of the training pixels, RGB, in 0..1."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Split → class name → rows."""
    mask_pixels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Split → mask id, as text → pixels; empty where there are no masks, or nobody counted."""
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Split → of its column `value`: `rows` that have one, `mean`, `std`, `min`, `max`; empty without it."""

    def unlabelled(self) -> dict[str, int]:
        """Split → rows without a label, where there are any and the labels were counted."""
        counted = {
            split: self.rows[split] - sum(found.values()) for split, found in self.counts.items() if split in self.rows
        }
        return {split: missing for split, missing in counted.items() if missing > 0}
