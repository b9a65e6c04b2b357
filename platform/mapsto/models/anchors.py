"""What the raw outputs of a dense detector mean: the anchors of an image size, and boxes and scores from them. Numpy
only: training reads the same table as the decoding of an exported model's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

LARGEST = float(np.log(1000 / 16))
"""Largest logarithm of a box's growth over its anchor, as in torchvision."""
REACH = 6.0
"""Largest logarithm of a side's distance from its point, in cells."""
RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors of RetinaNet and Faster R-CNN."""
SSD_RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,))
SSD_STRIDES = (8, 16, 32, 64, 128)


@dataclass(frozen=True, eq=False)
class Grid:
    """A dense head's anchors and the coding of its outputs, `deltas` (N×A×4) and `logits` (N×A×C)."""

    anchors: np.ndarray
    """A×4 float32 xyxy, pixels of the input."""
    coding: Literal["distances", "deltas"]
    """`distances`: logarithms of the distances of left, top, right, bottom from the anchor's centre, in sides of the
    anchor (FCOS, arXiv 1904.01355). `deltas`: shift of the centre and logarithm of the growth (Faster R-CNN, arXiv
    1506.01497), times `weights`."""
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    background: bool = False
    """Whether class 0 is background, by softmax; else one sigmoid per class."""

    def boxes(self, raw: np.ndarray, index: np.ndarray) -> np.ndarray:
        """K×4 raw outputs at the anchors `index` → K×4 float32 xyxy, pixels of the input."""
        anchors, raw = self.anchors[index], raw.astype(np.float32)
        sides, centres = anchors[:, 2:] - anchors[:, :2], (anchors[:, :2] + anchors[:, 2:]) / 2
        if self.coding == "distances":
            away = np.exp(np.minimum(raw, REACH)) * np.tile(sides, 2)
            return np.concatenate([centres - away[:, :2], centres + away[:, 2:]], axis=1)
        raw = raw / np.array(self.weights, np.float32)
        centres = centres + raw[:, :2] * sides
        half = np.exp(np.minimum(raw[:, 2:], LARGEST)) * sides / 2
        return np.concatenate([centres - half, centres + half], axis=1)

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """A×C logits → A×classes probabilities; without the background's."""
        if not self.background:
            return np.reciprocal(1 + np.exp(-np.clip(logits, -80, 80)))
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        return (shifted / shifted.sum(1, keepdims=True))[:, 1:]


def yolo(size: int, strides: Sequence[int] = (8, 16, 32)) -> Grid:
    """One anchor per cell, the cell itself; levels from fine to coarse, rows before columns."""
    tables = []
    for stride in strides:
        corner = np.arange(size // stride, dtype=np.float32) * stride
        y, x = np.meshgrid(corner, corner, indexing="ij")
        low = np.stack([x, y], axis=-1).reshape(-1, 2)
        tables.append(np.concatenate([low, low + stride], axis=1))
    return Grid(np.concatenate(tables), "distances")


def retinanet(size: int, anchor: float) -> Grid:
    """Nine anchors per cell of P3 to P7 (Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002): sides
    from `anchor` pixels at P3, twice as large at each next level, times 2^0, 2^(1/3), 2^(2/3)."""
    tables, ratios = [], np.sqrt(np.array(RATIOS))
    for level, cells in enumerate(level_cells(size, 5)):
        scales = np.array(retinanet_sides(anchor)[level])
        half = np.stack([(1 / ratios)[:, None] * scales, ratios[:, None] * scales], axis=-1).reshape(-1, 2) / 2
        base = np.concatenate([-half, half], axis=1).round()
        corner = np.arange(cells) * (size // cells)
        y, x = np.meshgrid(corner, corner, indexing="ij")
        shift = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
        tables.append((shift + base).reshape(-1, 4))
    return Grid(np.concatenate(tables).astype(np.float32), "deltas")


def retinanet_sides(anchor: float) -> list[tuple[int, int, int]]:
    """The three sides of the square anchors at each level, pixels, cut to whole ones as torchvision does."""
    sides = [anchor * 2**level for level in range(5)]
    return [(int(side), int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for side in sides]


def ssd(size: int, anchor: float, trained: int | None = None) -> Grid:
    """SSD's default boxes (Liu et al., SSD: Single Shot MultiBox Detector, arXiv 1512.02325) at five levels from stride
    8: sides from `anchor` pixels to 0.9 of the image; of the image of `trained` pixels, where the net was trained on
    another size than it looks at."""
    trained = trained or size
    scales = [*np.linspace(anchor / trained, 0.9, len(SSD_RATIOS)), 1.0]
    tables = []
    for level, cells in enumerate(level_cells(size, 5)):
        own = scales[level]
        sides = [(own, own), (np.sqrt(own * scales[level + 1]),) * 2]
        for ratio in SSD_RATIOS[level]:
            wide, high = own * np.sqrt(ratio), own / np.sqrt(ratio)
            sides += [(wide, high), (high, wide)]
        half = np.clip(np.array(sides), 0, 1) / 2 * trained
        centre = (np.arange(cells) + 0.5) / cells * size
        y, x = np.meshgrid(centre, centre, indexing="ij")
        centres = np.stack([x, y], axis=-1).reshape(-1, 1, 2)
        tables.append(np.concatenate([centres - half, centres + half], axis=2).reshape(-1, 4))
    return Grid(np.concatenate(tables).astype(np.float32), "deltas", (10.0, 10.0, 5.0, 5.0), background=True)


def level_cells(size: int, levels: int) -> list[int]:
    """Cells along a side at stride 8 and each next level, by convolutions of stride 2 that round up."""
    cells = [size // 8]
    while len(cells) < levels:
        cells.append(-(-cells[-1] // 2))
    return cells
