"""A large picture as overlapping tiles of one size, and back without seams; why these are no windows, `windows` says."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .windows import evenly


@dataclass(frozen=True)
class Tiles:
    """The tiles of a height×width picture: size×size each, at least `overlap` pixels shared by neighbours. A side shorter
    than a tile is reflected until it is one."""

    height: int
    width: int
    size: int
    overlap: int

    @property
    def corners(self) -> list[tuple[int, int]]:
        """(top, left) of each, row by row."""
        down, across = (self._starts(length) for length in (self.height, self.width))
        return [(y, x) for y in down for x in across]

    def __len__(self) -> int:
        return len(self.corners)

    def cut(self, image: np.ndarray) -> np.ndarray:
        """height×width×3 → T×size×size×3."""
        below, right = max(self.size - self.height, 0), max(self.size - self.width, 0)
        if below or right:
            image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REFLECT_101)
        return np.stack([image[y : y + self.size, x : x + self.size] for y, x in self.corners])

    def join(self, tiles: np.ndarray) -> np.ndarray:
        """T×size×size×3 uint8 → height×width×3 uint8: neighbours fade into each other in the middle of their overlap; the
        quarter of it next to a tile's border, where the tile knows least of what lies beyond, is left out."""
        if len(self) == 1:
            return np.ascontiguousarray(tiles[0, : self.height, : self.width])
        tall, wide = max(self.height, self.size), max(self.width, self.size)
        total, weight = np.zeros((tall, wide, 3), np.float32), np.zeros((tall, wide, 1), np.float32)
        for (y, x), tile in zip(self.corners, tiles, strict=True):
            share = (self._fade(y, tall)[:, None] * self._fade(x, wide)[None])[..., None]
            total[y : y + self.size, x : x + self.size] += share * tile
            weight[y : y + self.size, x : x + self.size] += share
        return np.rint(total / weight).astype(np.uint8)[: self.height, : self.width]

    def _fade(self, start: int, length: int) -> np.ndarray:
        """Weights along one side of a tile, 0..1; 1 at the picture's own border."""
        place = np.arange(self.size, dtype=np.float32) + 0.5
        out = np.ones(self.size, np.float32)
        for inner, distance in ((start > 0, place), (start + self.size < length, self.size - place)):
            if inner:
                out *= np.clip((distance - self.overlap / 4) / (self.overlap / 2), 0, 1)
        return out

    def _starts(self, length: int) -> list[int]:
        return evenly(max(length, self.size), self.size, self.size - self.overlap)
