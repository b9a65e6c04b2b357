"""Pictures for reports and predictions: captions, masks over images, walls of images. All H×W×3 uint8 RGB."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np


def palette(count: int) -> np.ndarray:
    """count×3 uint8 colours, far apart from their neighbours; the first (background) is black."""
    hue = (np.arange(count) * 0.618034 % 1 * 179).astype(np.uint8)
    hsv = np.stack([hue, np.full(count, 170, np.uint8), np.full(count, 235, np.uint8)], axis=1)
    colours = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    colours[0] = 0
    return colours


def banner(image: np.ndarray, text: str, least: int = 192) -> np.ndarray:
    """The image, enlarged to at least `least` pixels wide, with a line of text under it."""
    scale = max(1.0, least / image.shape[1])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    enlarged = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST if scale >= 3 else cv2.INTER_LINEAR)
    height = max(22, size[0] // 24)
    strip = np.full((height, size[0], 3), 24, np.uint8)
    font, wanted = cv2.FONT_HERSHEY_SIMPLEX, height / 42
    (width, _), _ = cv2.getTextSize(text, font, wanted, 1)
    wanted *= min(1.0, (size[0] - 8) / max(width, 1))
    cv2.putText(strip, text, (4, round(height * 0.7)), font, wanted, (235, 235, 235), 1, cv2.LINE_AA)
    return np.concatenate([enlarged, strip])


def overlay(image: np.ndarray, mask: np.ndarray, classes: int, alpha: float = 0.5) -> np.ndarray:
    """The image with an H×W mask of class ids laid over it in colours; background (0) and void (255) stay clear."""
    colours = palette(max(classes, 2))
    shown = (mask > 0) & (mask < classes)
    out = image.copy()
    out[shown] = (image[shown] * (1 - alpha) + colours[mask[shown]] * alpha).astype(np.uint8)
    return out


def wall(images: Sequence[np.ndarray], columns: int = 8, gap: int = 2) -> np.ndarray:
    """Images of one size in rows of `columns`."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    out = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 32, np.uint8)
    for number, image in enumerate(images):
        y, x = divmod(number, columns)
        top, left = gap + y * (height + gap), gap + x * (width + gap)
        out[top : top + height, left : left + width] = image
    return out
