"""Fingerprints: a small picture of an image, and a 128-bit code of its gradients that survives what copies go through.

The small picture is 64×64 grey levels and 10×10 colours (Cb and Cr of ITU-T T.871), in one row of bytes.

The code is a difference hash (N. Krawetz, "Kind of Like That", 2013): whether the grey level rises from a cell of a 9×9
grid to the next, 64 times across and 64 times down. Copies that were cut or mirrored have other codes: `VIEWS` are
the picture's mirror image and its parts, to be looked up beside its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

SIDE = 64
"""Side of the grey picture, pixels."""
COLOURS = 10
"""Side of the picture of colours."""
THUMB_BYTES = SIDE * SIDE + COLOURS * COLOURS * 2
BITS = 128
_HALF = SIDE // 2
"""Side at which codes are made, pixels."""
_CELLS = 9
_CUT = 0.05
"""Share of the width and of the height that the looked-up parts leave out."""
_FINE_CELLS = 16
_CUT_OFF = 2.0
"""Median steps."""
_LEAST_STEP = 0.25
"""Grey levels that a median step counts at least: what is below is noise."""
_SHUFFLED = np.random.default_rng(2013).permutation(BITS)
"""Order of the bits in a code: neighbouring bits of the grid are alike, those of a band should not be."""


@dataclass(frozen=True)
class View:
    """What of a picture is looked at, in shares of its sides; its mirror image where mirrored."""

    top: float = 0.0
    left: float = 0.0
    side: float = 1.0
    mirrored: bool = False


WHOLE = View()
VIEWS = tuple(
    View(top * _CUT, left * _CUT, side, mirrored)
    for mirrored in (False, True)
    for top, left, side in ((0, 0, 1.0), *((y, x, 1 - _CUT) for y, x in ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5))))
)
"""As what a copy may be looked up: the whole picture, its four corner parts and its middle, and the same mirrored."""


def thumbnail(image: np.ndarray) -> np.ndarray:
    """H×W×3 uint8 RGB → 4,296 uint8: a small picture, each of its pixels the mean over its part of the image."""
    image = _halved(image, 2 * SIDE)
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    colours = cv2.resize(_halved(image, 2 * COLOURS), (COLOURS, COLOURS), interpolation=cv2.INTER_AREA)
    return np.concatenate([grey.ravel(), cv2.cvtColor(colours, cv2.COLOR_RGB2YCrCb)[:, :, 1:].ravel()])


def _halved(image: np.ndarray, least: int) -> np.ndarray:
    """Halved while its shorter side stays at least so many pixels: means of 2×2, nearly, at a third of the area filter's time."""
    while min(image.shape[:2]) >= 2 * least:
        height, width = image.shape[:2]
        image = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_LINEAR)
    return image


def greys(thumbs: np.ndarray) -> np.ndarray:
    """...×4,296 → ...×64×64 uint8."""
    return thumbs[..., : SIDE * SIDE].reshape(*thumbs.shape[:-1], SIDE, SIDE)


def colours(thumbs: np.ndarray) -> np.ndarray:
    """...×4,296 → ...×10×10×2 uint8; 128 is grey."""
    return thumbs[..., SIDE * SIDE :].reshape(*thumbs.shape[:-1], COLOURS, COLOURS, 2)


def halved(thumbs: np.ndarray) -> np.ndarray:
    """N×4,296 → N×32×32 uint8 grey, what codes are made of."""
    rows = np.ascontiguousarray(greys(thumbs)).reshape(-1, SIDE)
    return cv2.resize(rows, (_HALF, len(rows) // 2), interpolation=cv2.INTER_AREA).reshape(-1, _HALF, _HALF)


def rises(small: np.ndarray, view: View = WHOLE) -> np.ndarray:
    """N×32×32 uint8 (`halved`) → N×128 int8: the steps of grey levels from a cell of the view's 9×9 grid to the next, whose signs are
    the pictures' codes: 60 for the picture's median step, and cut off at twice that, so that neither contrast nor a caption's edge
    weighs. What rises at all rises by one."""
    steps = _evened(_steps(small, view, _CELLS)[:, _SHUFFLED]) * (120 / _CUT_OFF)
    return np.where(steps > 0, np.maximum(steps, 1), steps).astype(np.int8)


def fine_rises(small: np.ndarray, view: View = WHOLE) -> np.ndarray:
    """N×32×32 uint8 (`halved`) → N×480 float32: the steps of a 16×16 grid, evened out as `rises` are."""
    return _evened(_steps(small, view, _FINE_CELLS))


def likeness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """N×K rises twice → N float32, -1..1: how much of the pictures' rises is common to both, of all that either has. A sure bit
    that differs counts much, a doubtful one little."""
    if a.dtype == np.int8:
        a, b = a.astype(np.int16), b.astype(np.int16)
    least, most = np.minimum(np.abs(a), np.abs(b)), np.maximum(np.abs(a), np.abs(b))
    common = np.where((a > 0) == (b > 0), least, -least)
    return common.sum(1, dtype=np.float32) / np.maximum(most.sum(1, dtype=np.float32), 1e-6)


def packed(bits: np.ndarray) -> np.ndarray:
    """N×128 bool → N×2 uint64."""
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint64)


def _steps(small: np.ndarray, view: View, cells: int) -> np.ndarray:
    """N×32×32 → N×(2·cells·(cells-1) or less) float32: from the mean of a cell to the next, across and down."""
    down, across = _grid(view.top, view.left, view.side, cells)
    grids = down @ (small[:, :, ::-1] if view.mirrored else small).astype(np.float32) @ across.T
    to_right = (grids[:, :-1, 1:] - grids[:, :-1, :-1]).reshape(len(grids), -1)
    to_below = (grids[:, 1:, :-1] - grids[:, :-1, :-1]).reshape(len(grids), -1)
    return np.concatenate([to_right, to_below], axis=1)


def _evened(steps: np.ndarray) -> np.ndarray:
    """In units of each picture's median step, cut off at two of them."""
    middle = slice((steps.shape[1] - 1) // 2, steps.shape[1] // 2 + 1)
    usual = np.sort(np.abs(steps), axis=1)[:, middle].mean(
        1, keepdims=True
    )  # the median; np.median's way takes ten times as long
    return np.clip(steps / np.maximum(usual, _LEAST_STEP), -_CUT_OFF, _CUT_OFF)


@lru_cache(64)
def _grid(top: float, left: float, side: float, cells: int) -> tuple[np.ndarray, np.ndarray]:
    down, across = (_means(at * _HALF, (at + side) * _HALF, cells) for at in (top, left))
    return down, across


def _means(start: float, stop: float, cells: int) -> np.ndarray:
    """cells×32 float32: the mean over each cell of start..stop pixels, by the share of each pixel that lies in it."""
    edges = np.linspace(start, stop, cells + 1)
    low, high = edges[:-1, None], edges[1:, None]
    pixels = np.arange(_HALF)
    inside = np.clip(np.minimum(high, pixels + 1) - np.maximum(low, pixels), 0, None)
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)
