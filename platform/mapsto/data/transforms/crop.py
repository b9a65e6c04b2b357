"""Random parts of an image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from ...core import codecs
from ...core.errors import UserError
from ...core.preprocess import resize, sample_nearest
from ...core.sample import Geometry, Sample
from .moving import VOID, carry, image_of, mask_of, placed, upright_size


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, resized to size×size (Inception's augmentation; Szegedy et al., arXiv 1409.4842).

    `scale`: range of the part's area, as a share of the image's. `ratio`: range of its width / height. Given encoded
    bytes it decodes no more detail of a JPEG than the part needs.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        data = sample["image"]
        height, width = upright_size(data)
        top, left, part_height, part_width = self.part(height, width, rng)
        if isinstance(data, np.ndarray):
            crop = data[top : top + part_height, left : left + part_width]
        else:
            need = math.ceil(min(height, width) * self.size / min(part_height, part_width))
            crop = codecs.decode(data, at_least=need, part=(top, left, part_height, part_width))
        # Bilinear alone aliases only when it skips pixels: below a factor of two it does not, and it is the quicker.
        quick = max(crop.shape[:2]) < 2 * self.size
        out = sample | {"image": resize(crop, self.size, self.size, "linear" if quick else "auto")}
        if sample.get("mask") is None and not placed(sample):
            return out
        matrix = np.array([[part_width / self.size, 0, left], [0, part_height / self.size, top], [0, 0, 1]])
        if sample.get("mask") is not None:
            out["mask"] = sample_nearest(mask_of(sample), Geometry(matrix, height, width), self.size, VOID)
        return out | carry(sample, np.linalg.inv(matrix), self.size, self.size)

    def part(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) in pixels; the largest centred part of a fitting ratio when ten draws miss."""
        for w, h in rectangles(height * width, self.scale, self.ratio, rng):
            if 0 < w <= width and 0 < h <= height:
                return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        return (height - h) // 2, (width - w) // 2, max(h, 1), max(w, 1)


def rectangles(
    area: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Ten random pairs of sides, the first over the second within `ratio`, evenly by its logarithm; of `scale` of the area."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        part = area * (scale[0] + rng.random() * (scale[1] - scale[0]))
        shape = math.exp(low + rng.random() * (high - low))
        yield round(math.sqrt(part * shape)), round(math.sqrt(part / shape))


@dataclass(frozen=True)
class PadCrop:
    """Pad every side by `pad` pixels, then take a random size×size window (the CIFAR augmentation; He et al.,
    arXiv 1512.03385). `size` None: the image's own size. `constant` pads with black, and masks with void."""

    pad: int
    size: int | None = None
    mode: Literal["reflect", "edge", "constant"] = "reflect"

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image = image_of(sample)
        height, width = image.shape[:2]
        h, w = (self.size, self.size) if self.size else (height, width)
        free_y, free_x = height + 2 * self.pad - h, width + 2 * self.pad - w
        if free_y < 0 or free_x < 0:
            raise UserError(f"PadCrop: {width}x{height} padded by {self.pad} is smaller than {w}x{h}; resize it first")
        top, left = int(rng.random() * (free_y + 1)), int(rng.random() * (free_x + 1))
        out = sample | {"image": self._window(image, top, left, h, w, 0)}
        if sample.get("mask") is not None:
            out["mask"] = self._window(mask_of(sample), top, left, h, w, VOID)
        return out | carry(sample, np.array([[1.0, 0, self.pad - left], [0, 1, self.pad - top], [0, 0, 1]]), h, w)

    def _window(self, array: np.ndarray, top: int, left: int, h: int, w: int, fill: int) -> np.ndarray:
        border = {"reflect": cv2.BORDER_REFLECT_101, "edge": cv2.BORDER_REPLICATE, "constant": cv2.BORDER_CONSTANT}
        p = self.pad
        padded = cv2.copyMakeBorder(array, p, p, p, p, border[self.mode], value=(fill,) * 3) if p else array
        return padded[top : top + h, left : left + w]
