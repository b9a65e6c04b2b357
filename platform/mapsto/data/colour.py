"""Augmentation that changes pixel values and moves nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from ..core import codecs
from ..core.sample import Sample

_LEVELS = np.arange(256, dtype=np.float32)


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and saturation times a factor from [1 - x, 1 + x] each, in random order, on uint8.

    The formulas are torchvision's (and Pillow's): contrast blends with the mean grey level, saturation with the grey
    image (ITU-R 601 weights).
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        data = sample["image"]
        image = data if isinstance(data, np.ndarray) else codecs.decode(data)
        steps = [(brightness, self.brightness), (contrast, self.contrast), (saturation, self.saturation)]
        for k in rng.permutation(3):
            change, amount = steps[k]
            if amount:
                image = change(image, max(0.0, 1 + (2 * rng.random() - 1) * amount))
        return sample | {"image": image}


@dataclass(frozen=True)
class RandomErasing:
    """With probability p, fill a random rectangle (Zhong et al., arXiv 1708.04896). `scale`: its share of the image's
    area; `ratio`: height / width; `value`: a grey level, or None for noise."""

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: int | None = 0

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        data = sample["image"]
        image = data.copy() if isinstance(data, np.ndarray) else codecs.decode(data)
        height, width = image.shape[:2]
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * (self.scale[0] + rng.random() * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + rng.random() * (high - low))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < h < height and 0 < w < width:
                y, x = int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1))
                noise = rng.integers(0, 256, (h, w, 3), np.uint8) if self.value is None else self.value
                image[y : y + h, x : x + w] = noise
                break
        return sample | {"image": image}


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.LUT(image, np.clip(_LEVELS * factor, 0, 255).astype(np.uint8))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    mean = float(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0])
    return cv2.LUT(image, np.clip(_LEVELS * factor + mean * (1 - factor), 0, 255).astype(np.uint8))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)
