"""What a sample holds besides its pixels, and how it moves with them.

Coordinates are pixels with the origin at the corner of the top left pixel, for boxes and keypoints alike; a move is a
3×3 matrix from the old image's coordinates to the new one's. `boxes` are xyxy, clipped to the image; one of which
nothing is left goes, and with it its entry of every other column that has one per box. `keypoints` (x, y, visibility;
as COCO, 0 is not labelled) that leave the image become 0, 0, 0. `masks` (an instances.Patch per box) move like
pixels. `area` follows the change of size about the box's middle, whatever is cut off. `segments` (JSON) are filtered with their boxes but do not move: draw them as masks first.
"""

from __future__ import annotations

import cv2
import numpy as np

from ...core import codecs
from ...core.errors import UserError
from ...core.sample import Sample
from ..annotations import PER_BOX

VOID = 255

Swap = tuple[tuple[int, int], ...]
"""Pairs of keypoint numbers that a mirror exchanges (left eye, right eye)."""


def image_of(sample: Sample) -> np.ndarray:
    """H×W×3 uint8 RGB, decoded where it is not yet."""
    data = sample["image"]
    return data if isinstance(data, np.ndarray) else codecs.decode(data)


def mask_of(sample: Sample) -> np.ndarray:
    """H×W uint8 class ids."""
    data = sample["mask"]
    return data if isinstance(data, np.ndarray) else codecs.decode_mask(data)


def boxes_of(sample: Sample) -> np.ndarray:
    """N×4 float32."""
    return np.asarray(sample["boxes"], np.float32).reshape(-1, 4)


def keypoints_of(sample: Sample) -> np.ndarray:
    """N×K×3 float32, from a flat list of x, y, visibility for each box; an empty one is K points that are not labelled.

    Raises UserError for boxes of differing numbers of points."""
    rows = sample["keypoints"]
    if isinstance(rows, np.ndarray) and rows.ndim == 3:
        return rows.astype(np.float32, copy=False)
    longest = max((len(row) for row in rows), default=0)
    out = np.zeros((len(rows), longest), np.float32)
    for k, row in enumerate(rows):
        if len(row):
            if len(row) != longest or longest % 3:
                raise UserError(
                    f"keypoints: box {k} has {len(row)} numbers, another {longest}; each has x, y, visibility for every "
                    "point, or none"
                )
            out[k] = row
    return out.reshape(len(rows), longest // 3, 3)


def upright_size(data: bytes | np.ndarray) -> tuple[int, int]:
    """(height, width) in pixels: of encoded bytes, upright as `codecs.decode` gives them, without decoding them."""
    return (data.shape[0], data.shape[1]) if isinstance(data, np.ndarray) else codecs.upright_size(data)


def through(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """...×2 points moved by a 3×3 matrix, float64."""
    moved = points @ matrix[:2, :2].T + matrix[:2, 2]
    if not is_affine(matrix):
        moved = moved / (points @ matrix[2, :2] + matrix[2, 2])[..., None]
    return moved


def is_affine(matrix: np.ndarray) -> bool:
    return bool((matrix[2] == (0, 0, 1)).all())


def placed(sample: Sample) -> bool:
    """Whether the sample has columns that `carry` moves."""
    return sample.get("boxes") is not None or sample.get("keypoints") is not None


def carry(
    sample: Sample, matrix: np.ndarray, height: int, width: int, *, swap: Swap = (), least: float = 0.0
) -> Sample:
    """The sample's columns that hold coordinates, moved into an image of height × width.

    `swap`: keypoints that change places, where the move is a mirror. `least`: a box of which no more than this share
    of its area is inside goes too. Raises UserError for columns that do not fit each other.
    """
    out: Sample = {}
    keep = None
    if sample.get("boxes") is not None:
        boxes = boxes_of(sample)
        corners = through(boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).astype(np.float64), matrix)
        moved = np.concatenate([corners.min(1), corners.max(1)], 1)
        clipped = np.clip(moved, 0, np.array([width, height, width, height])).astype(np.float32)
        keep = ((clipped[:, 2:] > clipped[:, :2]).all(1)) & (_area(clipped) > least * _area(moved))
        out["boxes"] = clipped[keep]
        for name in (*PER_BOX, "masks"):
            if name != "keypoints" and sample.get(name) is not None:
                out[name] = _kept(name, sample[name], keep)
        if len(out.get("area", ())):
            out["area"] = out["area"] * _growth(boxes[keep], matrix)
        if "masks" in out:
            out["masks"] = [patch.moved(matrix, height, width) for patch in out["masks"]]
    if sample.get("keypoints") is not None:
        points = _carried(keypoints_of(sample), matrix, height, width, swap)
        out["keypoints"] = points if keep is None else _kept("keypoints", points, keep)
    return out


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _kept(name: str, values: np.ndarray | list, keep: np.ndarray) -> np.ndarray | list:
    if len(values) == 0:  # boxes without this column
        return values
    if len(values) != len(keep):
        raise UserError(f"boxes and {name} differ in number: {len(keep)}, {len(values)}")
    if name in ("segments", "masks"):
        return [value for value, kept in zip(values, keep, strict=True) if kept]
    return np.asarray(values, np.float64 if name == "area" else None)[keep]


def _growth(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """By how much areas grow about the middles of N boxes: the determinant of the move's derivative there."""
    depth = (boxes[:, :2] + boxes[:, 2:]) / 2 @ matrix[2, :2] + matrix[2, 2]
    return np.abs(np.linalg.det(matrix) / depth**3)


def _carried(points: np.ndarray, matrix: np.ndarray, height: int, width: int, swap: Swap) -> np.ndarray:
    if points.shape[1] and swap:
        order = np.arange(points.shape[1])
        for left, right in swap:
            if max(left, right) >= len(order):
                raise UserError(f"keypoints: a mirror exchanges {left} and {right}, but there are {len(order)} points")
            order[[left, right]] = right, left
        points = points[:, order]
    place = through(points[..., :2].astype(np.float64), matrix).astype(np.float32)
    inside = (points[..., 2] > 0) & (place >= 0).all(-1) & (place <= (width, height)).all(-1)
    return np.concatenate([place, points[..., 2:]], -1) * inside[..., None]


def warp(sample: Sample, matrix: np.ndarray, height: int, width: int) -> Sample:
    """The whole sample through a 3×3 matrix into an image of height × width: pixels bilinear, black outside; the mask
    nearest neighbour, void outside; boxes become the boxes around their moved corners."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # OpenCV's pixel centres lie at integers
    pixels = np.linalg.inv(half) @ matrix @ half
    affine = is_affine(matrix)
    change, pixels = (cv2.warpAffine, pixels[:2]) if affine else (cv2.warpPerspective, pixels)
    out = sample | {"image": change(image_of(sample), pixels, (width, height), flags=cv2.INTER_LINEAR)}
    if sample.get("mask") is not None:
        out["mask"] = change(
            mask_of(sample),
            pixels,
            (width, height),
            flags=cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(VOID,),
        )
    return out | carry(sample, matrix, height, width)
