"""Packing: an image shrunk and stored anew as JPEG, whatever it was, and its annotations scaled alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ..core import codecs
from ..core.errors import UserError
from .annotations import run_lengths


@dataclass(frozen=True)
class Packing:
    longest_side: int
    """Pixels; smaller images keep their size."""
    quality: int
    """Of JPEG, 1..100."""


def packed(row: Mapping[str, Any], image: np.ndarray, packing: Packing) -> tuple[dict[str, Any], np.ndarray]:
    """The row with its picture stored anew, and the picture before its compression; see `shrunk`."""
    out, small = shrunk(row, image, packing.longest_side)
    data = codecs.encode(np.ascontiguousarray(small), "jpeg", packing.quality)
    return out | {"image": data, "format": "jpeg"}, small


def shrunk(row: Mapping[str, Any], image: np.ndarray, longest_side: int) -> tuple[dict[str, Any], np.ndarray]:
    """The row for its picture, H×W×3 uint8, shrunk, and that picture. Boxes, areas, segments, keypoints and masks (nearest
    neighbour) follow the size; UserError for a segment that is none. `image` stays the old one's bytes."""
    small = codecs.fit(image, longest_side)
    (height, width), (old_height, old_width) = small.shape[:2], image.shape[:2]
    out = dict(row) | {"width": width, "height": height}
    if (height, width) == (old_height, old_width):
        return out, small
    x, y = width / old_width, height / old_height
    if "boxes" in row:
        out["boxes"] = [[x0 * x, y0 * y, x1 * x, y1 * y] for x0, y0, x1, y1 in row["boxes"]]
    if row.get("keypoints"):
        out["keypoints"] = [[v * (x, y, 1)[k % 3] for k, v in enumerate(points)] for points in row["keypoints"]]
    if row.get("area"):
        out["area"] = [None if v is None else v * x * y for v in row["area"]]
    if row.get("segments"):
        out["segments"] = [
            json.dumps(_segment(json.loads(text), x, y, (old_height, old_width), (height, width)))
            for text in row["segments"]
        ]
    if row.get("mask"):
        out["mask"] = codecs.encode(_nearest(codecs.decode_mask(row["mask"]), height, width), "png")
    return out, small


def _nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def _segment(given: Any, x: float, y: float, old: tuple[int, int], new: tuple[int, int]) -> Any:
    """COCO's segmentation in the new size: polygons, or a mask in run lengths (uncompressed ones come out)."""
    try:
        if isinstance(given, dict):
            mask = run_mask(given, max(codecs.MAX_PIXELS, old[0] * old[1]))
            if mask.shape != old:
                raise ValueError(f"its run lengths are of {mask.shape[1]}x{mask.shape[0]} pixels")
            return run_lengths(_nearest(mask.astype(np.uint8), *new) > 0)
        return [[float(v) * (y if k % 2 else x) for k, v in enumerate(polygon)] for polygon in given]
    except (TypeError, ValueError, KeyError, IndexError, MemoryError) as error:
        raise UserError(f"its segmentation cannot be scaled: {str(error)[:80]}") from error


def run_mask(runs: Mapping[str, Any], max_pixels: int = codecs.MAX_PIXELS) -> np.ndarray:
    """COCO's run lengths, compressed or not → H×W bool (https://github.com/cocodataset/cocoapi, `maskApi.c`). Raises
    ValueError where they do not fill the picture, or it is larger."""
    height, width = (int(side) for side in runs["size"])
    counts = _uncompressed(runs["counts"]) if isinstance(runs["counts"], str) else [int(n) for n in runs["counts"]]
    if min(counts, default=0) < 0 or sum(counts) != height * width or height * width > max_pixels:
        raise ValueError(f"run lengths of {sum(counts)} for {height} x {width} pixels")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def _uncompressed(text: str) -> list[int]:
    """Six bits a letter, of which one says that more follow; from the fourth on, differences to the one before last."""
    counts: list[int] = []
    place = 0
    while place < len(text):
        value = shift = 0
        more = True
        while more:
            bits = ord(text[place]) - 48
            value |= (bits & 0x1F) << shift
            more, place, shift = bool(bits & 0x20), place + 1, shift + 5
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts
