"""Large images through overlapping windows, each seen as an image of its own.

Tiles (`tiles`) are another thing: all of the model's own size, with a share in the pixels of one picture, where a window is
answered by itself, in whatever terms the task has, and the task merges the answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field as Setting

from .preprocess import Preprocess
from .section import Section


@dataclass(frozen=True)
class Window:
    """A part of an image, pixels."""

    left: int
    top: int
    width: int
    height: int


class Windows(Section):
    """Look at a larger image through windows, each prepared as an image of its own; one that fits is seen whole."""

    size: int = Setting(ge=32)
    """Side of a window, pixels of the image."""
    overlap: float = Setting(0.25, ge=0, lt=0.9)
    """Least share of a window that the next one sees, too: more than the objects' sides."""

    def cut(self, height: int, width: int) -> tuple[Window, ...]:
        """The windows of an image, row by row: all of one size, evenly spaced, from edge to edge."""
        w, h = min(self.size, width), min(self.size, height)
        new = 1 - self.overlap
        across, down = evenly(width, w, int(w * new)), evenly(height, h, int(h * new))
        return tuple(Window(left, top, w, h) for top in down for left in across)


def evenly(length: int, side: int, step: int) -> list[int]:
    """Where pieces of `side` pixels begin that cover `length`, no shorter than a piece: from end to end, evenly, at most
    `step` apart, rounded to pixels."""
    count = 1 + int(np.ceil((length - side) / max(1, step)))
    return np.linspace(0, length - side, count).round().astype(int).tolist()


def looks(data: bytes | np.ndarray, preprocess: Preprocess, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Encoded bytes (or H×W×3 uint8) → (K×S×S×3 uint8, each window prepared; the image, H×W×3)."""
    if isinstance(data, np.ndarray):
        image = data
    else:
        from . import codecs  # every task imports this module: decoders only where one decodes

        image = codecs.decode(data)
    parts = [image[w.top : w.top + w.height, w.left : w.left + w.width] for w in windows.cut(*image.shape[:2])]
    return np.stack([preprocess(part)[0] for part in parts]), image
