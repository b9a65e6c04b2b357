"""What an image's pixels say about its worth: one small set of measures, each in a fixed range, from one small grey copy."""

from __future__ import annotations

import math

import cv2
import numpy as np

from ..core.codecs import fit

LONGEST = 256
"""Longest side at which images are measured, pixels: a photograph of any size is as sharp as it looks at this one."""

MEASURES = ("contrast", "dark", "bright", "sharpness", "entropy", "colour")
"""The names that `measure` gives, in the order of its values."""


def measure(image: np.ndarray) -> np.ndarray:
    """H×W×3 uint8 RGB → six float32, each 0..1:

    - `contrast`: standard deviation of the grey levels, of 128;
    - `dark`: grey level that 99 of 100 pixels stay below;
    - `bright`: grey level that 95 of 100 pixels are above;
    - `sharpness`: the Laplacian's absolute value that one pixel in a hundred exceeds, over the grey levels' range (1st to
      99th percentile): edges of a sharp photograph are steep whatever its contrast;
    - `entropy`: of the grey levels' histogram, of 8 bits;
    - `colour`: mean difference of an image's largest and smallest channel; 0 is grey.
    """
    small = fit(image, LONGEST)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    count = np.bincount(grey.ravel(), minlength=256)
    share = np.cumsum(count) / grey.size
    low, fifth, high = (int(np.searchsorted(share, level)) for level in (0.01, 0.05, 0.99))
    spread = max(high - low, 1)
    edges = np.bincount(np.abs(cv2.Laplacian(grey, cv2.CV_16S)).ravel())
    steep = float(np.searchsorted(np.cumsum(edges), grey.size * 99 // 100, side="right"))
    present = count[count > 0] / grey.size
    entropy = float(-(present * np.log2(present)).sum()) / 8
    red, green, blue = cv2.split(small)
    most, least = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    colour = cv2.mean(cv2.subtract(most, least))[0] / 255
    values = (grey.std() / 128, high / 255, fifth / 255, min(steep / spread, 1.0), entropy, colour)
    return np.array(values, np.float32)


def elongation(width: int, height: int) -> float:
    """Longer over shorter side, 1 or more."""
    return max(width, height) / max(min(width, height), 1) if width and height else math.inf
