"""Learned and random policies of augmentation: which operations, how strong, how often.

Operations, magnitudes and tables are those of torchvision's transforms v2; geometric ones interpolate linearly, and
move mask, boxes and keypoints too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...core.sample import Sample
from . import pixels
from .moving import image_of
from .policy_tables import POLICIES
from .warp import RandomAffine, RandomRotate

SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
"""Operations whose magnitude takes either sign, at random."""
OPERATIONS = ("Identity", *SIGNED, "Posterize", "Solarize", "AutoContrast", "Equalize")
"""What RandAugment and TrivialAugment draw from."""

_move, _rotate = RandomAffine(), RandomRotate(0)


@dataclass(frozen=True)
class Space:
    """The largest magnitude of each operation; a magnitude is one of several evenly spaced bins from none to that."""

    shear: float
    """Tangent of the angle."""
    translate: float
    """A share of the side, or pixels when above 1."""
    rotate: float
    """Degrees."""
    level: float
    """Brightness, contrast, colour and sharpness: the factor is 1 plus or minus it."""
    bits: int
    """Of 8, that posterizing drops."""

    def magnitudes(self, operation: str, bins: int, height: int, width: int) -> np.ndarray | None:
        """`bins` values; None for an operation without strength. Raises KeyError for an unknown one."""
        if operation in ("Identity", "AutoContrast", "Equalize", "Invert"):
            return None
        if operation == "Solarize":
            return np.linspace(1.0, 0.0, bins)
        if operation == "Posterize":
            return np.rint(8 - np.arange(bins) / ((bins - 1) / self.bits))
        sides = {"TranslateX": width, "TranslateY": height}
        if operation in sides:
            return np.linspace(0.0, self.translate * (1 if self.translate > 1 else sides[operation]), bins)
        largest = {"ShearX": self.shear, "ShearY": self.shear, "Rotate": self.rotate}
        largest |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), self.level)
        return np.linspace(0.0, largest[operation], bins)

    def draw(self, operation: str, bins: int, bin: int, sample: Sample, rng: np.random.Generator) -> Sample:
        """The operation with the strength of a bin, its sign drawn."""
        sample = sample | {"image": image_of(sample)}
        values = self.magnitudes(operation, bins, *sample["image"].shape[:2])
        magnitude = 0.0 if values is None else float(values[bin])
        if operation in SIGNED and rng.random() < 0.5:
            magnitude = -magnitude
        return operate(sample, operation, magnitude)


AUTOAUGMENT = Space(shear=0.3, translate=150 / 331, rotate=30.0, level=0.9, bits=4)
"""Of AutoAugment and RandAugment."""
WIDE = Space(shear=0.99, translate=32.0, rotate=135.0, level=0.99, bits=6)
"""Of TrivialAugment Wide."""


def operate(sample: Sample, operation: str, magnitude: float) -> Sample:
    """One operation of exactly this magnitude (with its sign) on a sample. Raises KeyError for an unknown one."""
    if operation == "Identity":
        return sample
    if operation in ("ShearX", "ShearY"):
        angle = float(np.degrees(np.arctan(magnitude)))
        return _move.move(sample, shear=(angle, 0.0) if operation == "ShearX" else (0.0, angle), centre=(0.0, 0.0))
    if operation in ("TranslateX", "TranslateY"):
        pixel = float(int(magnitude))
        return _move.move(sample, translate=(pixel, 0.0) if operation == "TranslateX" else (0.0, pixel))
    if operation == "Rotate":
        return _rotate.turn(sample, magnitude)
    return sample | {"image": _recoloured(image_of(sample), operation, magnitude)}


def _recoloured(image: np.ndarray, operation: str, magnitude: float) -> np.ndarray:
    plain = {"AutoContrast": pixels.autocontrast, "Equalize": pixels.equalize, "Invert": pixels.invert}
    if operation in plain:
        return plain[operation](image)
    if operation == "Posterize":
        return pixels.posterize(image, int(magnitude))
    if operation == "Solarize":
        return pixels.solarize(image, 255 * magnitude)
    blends = {
        "Brightness": pixels.brightness,
        "Color": pixels.saturation,
        "Contrast": pixels.contrast,
        "Sharpness": pixels.sharpness,
    }
    return blends[operation](image, 1 + magnitude)


@dataclass(frozen=True)
class RandAugment:
    """`operations` random operations in turn, all of one magnitude: 0 to `bins` - 1 (Cubuk et al., RandAugment,
    arXiv 1909.13719)."""

    operations: int = 2
    magnitude: int = 9
    bins: int = 31

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for _ in range(self.operations):
            operation = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
            sample = AUTOAUGMENT.draw(operation, self.bins, self.magnitude, sample, rng)
        return sample


@dataclass(frozen=True)
class TrivialAugment:
    """One random operation of a random magnitude, from a wide range (Müller and Hutter, TrivialAugment,
    arXiv 2103.10158)."""

    bins: int = 31

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        operation = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
        return WIDE.draw(operation, self.bins, int(rng.integers(self.bins)), sample, rng)


@dataclass(frozen=True)
class AutoAugment:
    """One of 25 pairs of operations, each with its probability and magnitude, as found for a data set (Cubuk et al.,
    AutoAugment, arXiv 1805.09501)."""

    policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet"

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        pairs = POLICIES[self.policy]
        for operation, probability, bin in pairs[int(rng.integers(len(pairs)))]:
            if rng.random() < probability:
                sample = AUTOAUGMENT.draw(operation, 10, bin or 0, sample, rng)
        return sample
