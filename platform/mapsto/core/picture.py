"""Pictures for reports and predictions: captions, masks over images, walls of images. All H×W×3 uint8 RGB."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .instances import Patch


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


def recolour(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The image with the mean and standard deviation that each channel of another one has in L*a*b* (Reinhard et al., Color
    Transfer between Images, IEEE CG&A 2001, there in lαβ). Both H×W×3 uint8, of any sizes."""
    ours, theirs = (cv2.cvtColor(i.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for i in (image, like))
    mean, spread = ours.mean((0, 1)), ours.std((0, 1)) + 1e-6
    moved = (ours - mean) / spread * theirs.std((0, 1)) + theirs.mean((0, 1))
    out = cv2.cvtColor(moved.astype(np.float32), cv2.COLOR_LAB2RGB)
    return np.rint(out.clip(0, 1) * 255).astype(np.uint8)


def tinted(image: np.ndarray, patches: Sequence[Patch], alpha: float = 0.5) -> np.ndarray:
    """The image with each object's mask laid over it in a colour of its own; the first lies uppermost."""
    out = image.copy()
    for patch, colour in reversed(list(zip(patches, palette(len(patches) + 1)[1:], strict=True))):
        part = patch.within(0, 0, image.shape[1], image.shape[0])
        height, width = part.pixels.shape
        area = out[part.top : part.top + height, part.left : part.left + width]
        area[part.pixels] = (area[part.pixels] * (1 - alpha) + colour * alpha).astype(np.uint8)
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


def boxed(
    image: np.ndarray, boxes: np.ndarray, ids: Sequence[int], texts: Sequence[str], least: int = 320
) -> np.ndarray:
    """The image, enlarged to at least `least` pixels wide, with N×4 xyxy boxes (pixels of the image) in their classes'
    colours, each with a line of text; the first lies uppermost."""
    scale = max(1.0, least / image.shape[1])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    out = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR) if scale > 1 else image.copy()
    colours = palette(max(ids, default=0) + 2)[1:].tolist()
    font, tall = cv2.FONT_HERSHEY_SIMPLEX, max(0.35, size[0] / 1600)
    for box, k, text in reversed(list(zip(boxes, ids, texts, strict=True))):
        left, top, right, bottom = (round(float(v) * scale) for v in box)
        cv2.rectangle(out, (left, top), (right - 1, bottom - 1), colours[k], max(1, round(size[0] / 320)))
        (width, height), below = cv2.getTextSize(text, font, tall, 1)
        x, y = min(left, max(0, size[0] - width)), max(top - below, height)
        cv2.rectangle(out, (x, y - height - 1), (x + width, y + below), colours[k], cv2.FILLED)
        cv2.putText(out, text, (x, y), font, tall, (16, 16, 16), 1, cv2.LINE_AA)
    return out
