"""Mirrors, turns, zooms, shears and perspectives: one matrix each, drawn at random."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from ...core.sample import Sample
from .moving import Swap, carry, image_of, mask_of, upright_size, warp

COCO_SWAP: Swap = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))
"""Left and right of COCO's 17 points of a person (Lin et al., arXiv 1405.0312)."""


@dataclass(frozen=True)
class RandomFlip:
    """Left and right exchanged (`vertical`: top and bottom), with probability p. `swap`: pairs of keypoint numbers that
    exchange their places, since any mirror makes a left hand a right one."""

    p: float = 0.5
    direction: Literal["horizontal", "vertical"] = "horizontal"
    swap: Swap = ()

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        image = image_of(sample)
        height, width = image.shape[:2]
        across = self.direction == "horizontal"
        out = sample | {"image": cv2.flip(image, int(across))}
        if sample.get("mask") is not None:
            out["mask"] = cv2.flip(mask_of(sample), int(across))
        mirror = [[-1.0, 0, width], [0, 1, 0], [0, 0, 1]] if across else [[1.0, 0, 0], [0, -1, height], [0, 0, 1]]
        return out | carry(sample, np.array(mirror), height, width, swap=self.swap)


@dataclass(frozen=True)
class RandomRotate:
    """Turn about the centre by up to `degrees` either way; corners become black, void in masks. Boxes become the
    boxes around their turned corners."""

    degrees: float

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return self.turn(sample, (2 * rng.random() - 1) * self.degrees)

    def turn(self, sample: Sample, degrees: float) -> Sample:
        """Turn by exactly so much, counter-clockwise."""
        sample = sample | {"image": image_of(sample)}
        height, width = sample["image"].shape[:2]
        return warp(sample, affine_matrix(height, width, degrees=-degrees), height, width)


@dataclass(frozen=True)
class RandomScale:
    """Zoom about the centre by a factor from `scale`; the image keeps its size: a factor below 1 leaves a black border
    (void in masks), one above 1 cuts the rim off."""

    scale: tuple[float, float] = (0.8, 1.25)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return self.zoom(sample, self.scale[0] + rng.random() * (self.scale[1] - self.scale[0]))

    def zoom(self, sample: Sample, factor: float) -> Sample:
        """Zoom by exactly so much."""
        sample = sample | {"image": image_of(sample)}
        height, width = sample["image"].shape[:2]
        return warp(sample, affine_matrix(height, width, scale=factor), height, width)


@dataclass(frozen=True)
class RandomAffine:
    """Turn, shift, zoom and shear at once.

    `degrees`: largest angle. `translate`: largest shift across and down, as shares of width and height. `scale`: range
    of the zoom. `shear`: largest angles along x and y, degrees, below 90.
    """

    degrees: float = 0.0
    translate: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    shear: tuple[float, float] = (0.0, 0.0)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = upright_size(sample["image"])
        angle, across, down, zoom, shear_x, shear_y = (rng.random() for _ in range(6))
        return self.move(
            sample,
            degrees=(2 * angle - 1) * self.degrees,
            translate=(
                (2 * across - 1) * self.translate[0] * width,
                (2 * down - 1) * self.translate[1] * height,
            ),
            scale=self.scale[0] + zoom * (self.scale[1] - self.scale[0]),
            shear=((2 * shear_x - 1) * self.shear[0], (2 * shear_y - 1) * self.shear[1]),
        )

    def move(
        self,
        sample: Sample,
        degrees: float = 0.0,
        translate: tuple[float, float] = (0.0, 0.0),
        scale: float = 1.0,
        shear: tuple[float, float] = (0.0, 0.0),
        centre: tuple[float, float] | None = None,
    ) -> Sample:
        """Move by exactly so much: clockwise, in pixels; see affine_matrix."""
        sample = sample | {"image": image_of(sample)}
        height, width = sample["image"].shape[:2]
        return warp(sample, affine_matrix(height, width, degrees, translate, scale, shear, centre), height, width)


@dataclass(frozen=True)
class RandomPerspective:
    """With probability p, each corner of the image moves inward by up to `distortion` / 2 of each side."""

    distortion: float = 0.5
    p: float = 1.0

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        height, width = upright_size(sample["image"])
        inward = np.array([[rng.random(), rng.random()] for _ in range(4)]) * self.distortion / 2
        signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
        return self.bend(sample, _corners(height, width) + signs * inward * (width, height))

    def bend(self, sample: Sample, ends: np.ndarray) -> Sample:
        """The image's corners (clockwise from the top left) to exactly these places, 4×2 pixels."""
        sample = sample | {"image": image_of(sample)}
        height, width = sample["image"].shape[:2]
        matrix = cv2.getPerspectiveTransform(_corners(height, width).astype(np.float32), ends.astype(np.float32))
        return warp(sample, matrix, height, width)


def affine_matrix(
    height: int,
    width: int,
    degrees: float = 0.0,
    translate: tuple[float, float] = (0.0, 0.0),
    scale: float = 1.0,
    shear: tuple[float, float] = (0.0, 0.0),
    centre: tuple[float, float] | None = None,
) -> np.ndarray:
    """3×3: shear along x, then y (degrees), zoom, turn clockwise about the centre (default: the image's), then shift by
    pixels, as torchvision's `affine` has it."""
    cx, cy = centre or (width / 2, height / 2)
    turn, sx, sy = math.radians(degrees), math.radians(shear[0]), math.radians(shear[1])
    a, c = math.cos(turn - sy) / math.cos(sy), math.sin(turn - sy) / math.cos(sy)
    b, d = -a * math.tan(sx) - math.sin(turn), -c * math.tan(sx) + math.cos(turn)
    linear = scale * np.array([[a, b], [c, d]])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = np.array([cx + translate[0], cy + translate[1]]) - linear @ (cx, cy)
    return matrix


def _corners(height: int, width: int) -> np.ndarray:
    return np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
