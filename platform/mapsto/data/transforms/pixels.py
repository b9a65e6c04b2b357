"""Operations on pixel values: H×W×3 uint8 RGB → the same, never in place. The formulas are torchvision's (and Pillow's)."""

from __future__ import annotations

import math

import cv2
import numpy as np

_LEVELS = np.arange(256, dtype=np.float32)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Times `factor`."""
    return cv2.LUT(image, np.clip(_LEVELS * factor, 0, 255).astype(np.uint8))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blended with its mean grey level: 0 is flat, 1 as it is."""
    mean = float(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0])
    return cv2.LUT(image, np.clip(_LEVELS * factor + mean * (1 - factor), 0, 255).astype(np.uint8))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blended with its grey image: 0 is grey, 1 as it is."""
    return cv2.addWeighted(image, factor, grayscale(image), 1 - factor, 0)


def hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Hue turned by a share of the circle, -0.5 to 0.5."""
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)  # bytes would cost ten levels
    np.add(hsv[..., 0], 360 * (turn % 1), out=hsv[..., 0])
    return cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def grayscale(image: np.ndarray) -> np.ndarray:
    """Three equal channels (ITU-R 601 weights)."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def blur(image: np.ndarray, sigma: float, size: int | None = None) -> np.ndarray:
    """Gaussian of `sigma` pixels; its kernel is `size` (odd) wide, by default three sigmas to each side."""
    size = size or 2 * math.ceil(3 * sigma) + 1
    return cv2.GaussianBlur(image, (size, size), sigma, borderType=cv2.BORDER_REFLECT_101)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blended with its smoothed image: 0 is smooth, 1 as it is, 2 sharper. The outermost pixels stay."""
    out = image.copy()
    if min(image.shape[:2]) > 2:
        inner = (slice(1, -1), slice(1, -1))
        out[inner] = cv2.addWeighted(image, factor, cv2.filter2D(image, -1, _SMOOTH), 1 - factor, 0)[inner]
    return out


def invert(image: np.ndarray) -> np.ndarray:
    return 255 - image


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Levels from `threshold` (0..255) up are inverted."""
    return cv2.LUT(image, np.where(threshold <= _LEVELS, 255 - _LEVELS, _LEVELS).astype(np.uint8))


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Only the highest `bits` (0..8) of every level."""
    return image & np.uint8(256 - 2 ** (8 - bits))


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Each channel stretched to 0..255."""
    ends = [cv2.minMaxLoc(channel)[:2] for channel in cv2.split(image)]
    low, high = np.array(ends, np.float32).T
    flat = high == low
    low = np.where(flat, np.float32(0), low)
    scale = np.where(flat, np.float32(1), (high - low) * np.float32(1 / 255))
    return cv2.LUT(image, np.clip((_LEVELS[:, None] - low) / scale, 0, 255).astype(np.uint8)[None])


def equalize(image: np.ndarray) -> np.ndarray:
    """Each channel's histogram made even; a channel of too few levels stays."""
    table = np.empty((1, 256, 3), np.uint8)
    for channel in range(3):
        counts = np.bincount(image[..., channel].ravel(), minlength=256)
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        before = np.cumsum(counts) - counts
        table[0, :, channel] = np.clip((before + step // 2) // step, 0, 255) if step else _LEVELS
    return cv2.LUT(image, table)
