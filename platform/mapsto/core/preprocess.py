"""The preprocess specification: the only implementation of what happens to an image before a model sees it.

It is saved with every model (`task.json`), and evaluate, predict, compress and serve use nothing else: OpenCV,
torchvision and ONNX resize differently, and a mismatch costs accuracy in silence. Normalisation is inside the model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from .sample import Geometry


@dataclass(frozen=True)
class Preprocess:
    """Decode, resize, crop: encoded bytes → size×size×3 uint8 RGB.

    `mode`: `crop` resizes the shorter side to size / crop_fraction and takes the centre; `stretch` resizes both sides
    to size; `letterbox` fits the longer side and pads with grey (114). `filter`: `auto` is area when shrinking and
    linear when enlarging.
    """

    size: int
    mode: Literal["crop", "stretch", "letterbox"] = "crop"
    crop_fraction: float = 1.0
    filter: Literal["auto", "linear", "area", "cubic", "nearest"] = "auto"

    def __call__(self, data: bytes | np.ndarray) -> tuple[np.ndarray, Geometry]:
        """Encoded bytes (or H×W×3 uint8) → (size×size×3 uint8, geometry back to the original's pixels).

        Raises UserError for bytes that are no whole image.
        """
        if isinstance(data, np.ndarray):
            return self.resize(data)
        from . import (
            codecs,  # every task imports this module, the command line with it: decoders only where one decodes
        )

        return self.resize(codecs.decode(data))

    def resize(self, image: np.ndarray, filter: str | None = None) -> tuple[np.ndarray, Geometry]:
        new_width, new_height, left, top, geometry = self._place(*image.shape[:2])
        out = resize(image, new_width, new_height, filter or self.filter)
        return np.ascontiguousarray(_window(out, left, top, self.size)), geometry

    def geometry(self, height: int, width: int) -> Geometry:
        """What `__call__` returns for an image of this size, without one."""
        return self._place(height, width)[-1]

    def _place(self, height: int, width: int) -> tuple[int, int, int, int, Geometry]:
        """(width, height) to resize to, (left, top) of the window in that, and the geometry of both."""
        if self.mode == "stretch":
            sx, sy = self.size / width, self.size / height
        else:
            pick = min if self.mode == "crop" else max
            sx = sy = self.size / self.crop_fraction / pick(height, width)
            if self.mode == "letterbox":
                sx = sy = self.size / max(height, width)
        new_width, new_height = max(1, round(width * sx)), max(1, round(height * sy))
        left, top = (new_width - self.size) // 2, (new_height - self.size) // 2
        matrix = np.array(
            [
                [width / new_width, 0, left * width / new_width],
                [0, height / new_height, top * height / new_height],
                [0, 0, 1],
            ]
        )
        return new_width, new_height, left, top, Geometry(matrix, height, width)

    def mask(self, mask: np.ndarray, fill: int = 255) -> np.ndarray:
        """The same geometry for an H×W mask of class ids: nearest neighbour, padding is `fill` (void)."""
        height, width = mask.shape
        shifted = Preprocess(self.size, self.mode, self.crop_fraction, "nearest")
        _, geometry = shifted.resize(np.broadcast_to(mask[..., None], (height, width, 1)).copy())
        return sample_nearest(mask, geometry, self.size, fill)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def resize(image: np.ndarray, width: int, height: int, filter: str = "auto") -> np.ndarray:
    """Resize H×W(×C) uint8 to height×width; `auto` is area when shrinking and linear when enlarging."""
    if image.shape[:2] == (height, width):
        return image
    import cv2

    filters = {
        "linear": cv2.INTER_LINEAR,
        "area": cv2.INTER_AREA,
        "cubic": cv2.INTER_CUBIC,
        "nearest": cv2.INTER_NEAREST,
    }
    shrinking = width * height < image.shape[0] * image.shape[1]
    name = ("area" if shrinking else "linear") if filter == "auto" else filter
    return cv2.resize(image, (width, height), interpolation=filters[name])


def sample_nearest(mask: np.ndarray, geometry: Geometry, size: int, fill: int = 255) -> np.ndarray:
    """Read `mask` at the centres of a size×size input's pixels through `geometry`; outside is `fill`."""
    centres = np.arange(size) + 0.5
    x = np.floor(geometry.matrix[0, 0] * centres + geometry.matrix[0, 2]).astype(int)
    y = np.floor(geometry.matrix[1, 1] * centres + geometry.matrix[1, 2]).astype(int)
    inside = ((y >= 0) & (y < mask.shape[0]))[:, None] & ((x >= 0) & (x < mask.shape[1]))[None, :]
    values = mask[y.clip(0, mask.shape[0] - 1)[:, None], x.clip(0, mask.shape[1] - 1)[None, :]]
    return np.where(inside, values, fill).astype(np.uint8)


def _window(image: np.ndarray, left: int, top: int, size: int) -> np.ndarray:
    """The size×size window at (left, top), padded with grey where it leaves the image."""
    height, width = image.shape[:2]
    if left >= 0 and top >= 0 and left + size <= width and top + size <= height:
        return image[top : top + size, left : left + size]
    out = np.full((size, size, *image.shape[2:]), 114, image.dtype)
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + size, height), min(left + size, width)
    out[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    return out
