"""Augmentation that changes pixel values and moves nothing. Each step acts with its own probability p."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...core import codecs
from ...core.sample import Sample
from . import pixels
from .crop import rectangles
from .moving import image_of


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and saturation times a factor from [1 - x, 1 + x] each, and hue turned by up to `hue` (a share
    of the circle, at most 0.5) either way, in random order, on uint8.

    Contrast blends with the mean grey level, saturation with the grey image (ITU-R 601 weights).
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image = image_of(sample)
        steps = [
            (pixels.brightness, self.brightness),
            (pixels.contrast, self.contrast),
            (pixels.saturation, self.saturation),
            (pixels.hue, self.hue),
        ]
        for k in rng.permutation(4 if self.hue else 3):
            change, amount = steps[k]
            if amount:
                either = (2 * rng.random() - 1) * amount
                image = change(image, either if change is pixels.hue else max(0.0, 1 + either))
        return sample | {"image": image}


@dataclass(frozen=True)
class Grayscale:
    """Three equal channels."""

    p: float = 0.1

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return _maybe(sample, rng, self.p, pixels.grayscale)


@dataclass(frozen=True)
class GaussianBlur:
    """Blurred, by a sigma drawn from a range in pixels (SimCLR's augmentation; Chen et al., arXiv 2002.05709)."""

    p: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        sigma = self.sigma[0] + rng.random() * (self.sigma[1] - self.sigma[0])
        return _maybe(sample, rng, self.p, lambda image: pixels.blur(image, sigma))


@dataclass(frozen=True)
class Sharpness:
    """`factor`: 0 is smooth, 1 as it is, 2 sharper."""

    p: float = 0.5
    factor: float = 2.0

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return _maybe(sample, rng, self.p, lambda image: pixels.sharpness(image, self.factor))


@dataclass(frozen=True)
class Solarize:
    """Levels from `threshold` up inverted."""

    p: float = 0.5
    threshold: float = 128.0

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return _maybe(sample, rng, self.p, lambda image: pixels.solarize(image, self.threshold))


@dataclass(frozen=True)
class Posterize:
    """Only the highest `bits` of every level."""

    p: float = 0.5
    bits: int = 4

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return _maybe(sample, rng, self.p, lambda image: pixels.posterize(image, self.bits))


@dataclass(frozen=True)
class Equalize:
    """Each channel's histogram made even."""

    p: float = 0.5

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return _maybe(sample, rng, self.p, pixels.equalize)


@dataclass(frozen=True)
class AutoContrast:
    """Each channel stretched to 0..255."""

    p: float = 0.5

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return _maybe(sample, rng, self.p, pixels.autocontrast)


@dataclass(frozen=True)
class Invert:
    """The negative."""

    p: float = 0.5

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return _maybe(sample, rng, self.p, pixels.invert)


@dataclass(frozen=True)
class RandomErasing:
    """With probability p, fill a random rectangle (Zhong et al., arXiv 1708.04896). `scale`: its share of the image's
    area; `ratio`: height / width; `value`: a grey level, a colour, or None for noise."""

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: int | tuple[int, int, int] | None = 0

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        data = sample["image"]
        image = data.copy() if isinstance(data, np.ndarray) else codecs.decode(data)
        height, width = image.shape[:2]
        for h, w in rectangles(height * width, self.scale, self.ratio, rng):
            if 0 < h < height and 0 < w < width:
                y, x = int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1))
                noise = rng.integers(0, 256, (h, w, 3), np.uint8) if self.value is None else self.value
                image[y : y + h, x : x + w] = noise
                break
        return sample | {"image": image}


def _maybe(sample: Sample, rng: np.random.Generator, p: float, change: Callable[[np.ndarray], np.ndarray]) -> Sample:
    return sample | {"image": change(image_of(sample))} if rng.random() < p else sample
