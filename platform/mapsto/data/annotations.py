"""What a source says of an image → the row's columns: checked against the image's size, one form for all layouts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import codecs
from ..core.errors import UserError
from ..core.runs import to_runs
from ..core.storage import Storage
from .sources.item import Reference

if TYPE_CHECKING:
    import pyarrow as pa

PER_BOX = ("box_labels", "crowd", "difficult", "area", "segments", "keypoints")
"""Columns with one entry per box."""
WORDS = ("caption", "identity", "license", "consent")
"""Columns of text, kept as the source has it."""
LEFT_OUT = "boxes_left_out"
"""Column of data sets of boxes: how many of the row's in its source have no area inside the image; they are not among `boxes`."""
NO_AREA = "boxes without area inside the image"


def column_types() -> dict[str, pa.DataType]:
    """Columns that a data set may have besides those that every one has.

    `labels`: the ids of the classes of an image that may be of several. `value`: a number to be told of it. `mask`: encoded
    picture of class ids. `boxes`: xyxy pixels. `area`: each object's, pixels; null: its box's. `segments`: COCO's segmentation as JSON, polygons in
    pixels or RLE. `keypoints`: x, y, visibility in turn. `caption`: one per line. `license`, `consent`: the source's own words.
    """
    import pyarrow as pa

    return {
        "labels": pa.list_(pa.int64()),
        "value": pa.float64(),
        "mask": pa.binary(),
        "boxes": pa.list_(pa.list_(pa.float32())),
        "box_labels": pa.list_(pa.int64()),
        "crowd": pa.list_(pa.bool_()),
        "difficult": pa.list_(pa.bool_()),
        "area": pa.list_(pa.float64()),
        "segments": pa.list_(pa.string()),
        "keypoints": pa.list_(pa.list_(pa.float32())),
        "caption": pa.string(),
        "identity": pa.string(),
        "license": pa.string(),
        "consent": pa.string(),
    }


def annotated(
    reference: Reference, height: int, width: int, index: Mapping[str, int], source: Storage
) -> dict[str, Any]:
    """The row's further columns. `index`: class name → id. A box without area inside the image is left out, and counted in
    `boxes_left_out`; UserError for anything else that does not fit, which keeps the image out."""
    given = dict(reference.columns)
    row: dict[str, Any] = {}
    if "_mask_range" in given:
        uri, offset, size = given["_mask_range"]
        row |= _mask(source.read_range(uri, offset, offset + size), height, width)
    elif "_mask_cell" in given:
        data = reference.columns.pop("_mask_bytes", None)
        row |= _mask(data, height, width) if data is not None else {}
    elif given.get("mask"):
        row |= _mask(_read(given["mask"], source), height, width)
    if "_instances" in given:
        given |= _instances(_read(given["_instances"], source), height, width, str(given["box_labels"][0]))
    if "boxes" in given:
        row |= _boxed(given, height, width, index)
    if "labels" in given:
        row["labels"] = sorted({index[str(name)] for name in _listed(given["labels"])})
    if "value" in given:
        row["value"] = _number(given["value"])
    return row | {name: str(given[name]) for name in WORDS if name in given}


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, str | int) for each in value):
        raise UserError(f"labels: a list of class names, not {str(value)[:40]}")
    return list(value)


def _number(value: Any) -> float:
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"value: a finite number, not {str(value)[:40]}")
    return number


def _boxed(given: Mapping[str, Any], height: int, width: int, index: Mapping[str, int]) -> dict[str, Any]:
    boxes = _array(given["boxes"])
    if len(boxes) and "_frame" in given:
        _same("annotations", given["_frame"], height, width)
    scale = np.array([width, height, width, height], np.float64)
    if given.get("_shares"):
        boxes = boxes * scale
    columns: dict[str, list[Any]] = {}
    for name in PER_BOX:
        if given.get(name) is not None:
            if not isinstance(given[name], list):
                raise UserError(f"{name}: a list, with an entry for each box, not {str(given[name])[:40]}")
            columns[name] = list(given[name])
            if columns[name] and len(columns[name]) != len(boxes):
                raise UserError(f"boxes and {name} differ in number: {len(boxes)}, {len(columns[name])}")
            if not all(map(_SOUND[name], columns[name])):
                raise UserError(f"{name}: each is {_MEANT[name]}")
    for text in columns.get("segments", ()):
        if text.lstrip().startswith("{"):
            size = json.loads(text).get("size")
            _same("RLE", size[::-1] if isinstance(size, list) else ["?"], height, width)
    if "box_labels" in columns:
        columns["box_labels"] = [index[str(name)] for name in columns["box_labels"]]
    if given.get("_shares"):
        for name in ("segments", "keypoints"):
            if name in columns:
                columns[name] = [_SCALED[name](each, width, height) for each in columns[name]]
    inside = np.clip(boxes, 0, scale)
    sound = (inside[:, 2:] > inside[:, :2]).all(1)
    if not sound.all():
        columns = {
            name: [v for v, good in zip(values, sound, strict=True) if good]
            for name, values in columns.items()
            if values
        }
    return {"boxes": boxes[sound].tolist(), LEFT_OUT: int((~sound).sum()), "box_labels": [], **columns}


def _same(what: str, size: Any, height: int, width: int) -> None:
    """Raises UserError for what is made at another size (width, height) than the image's, which is upright: it is not known how the one
    comes from the other."""
    if list(size) != [width, height]:
        told = "x".join(str(side) for side in size)
        turned = " (were they made before its orientation was applied?)" if list(size) == [height, width] else ""
        raise UserError(f"{what} and image differ in size: {told}, {width}x{height}{turned}")


def _is_shape(value: Any) -> bool:
    try:
        return isinstance(value, str) and isinstance(json.loads(value), list | dict)
    except (ValueError, RecursionError):
        return False


def _is_points(value: Any) -> bool:
    return isinstance(value, list) and len(value) % 3 == 0 and all(isinstance(v, int | float) for v in value)


def _is_area(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and math.isfinite(value) and value >= 0)


_SOUND: dict[str, Callable[[Any], bool]] = {
    "box_labels": lambda value: True,
    "crowd": lambda value: isinstance(value, bool),
    "difficult": lambda value: isinstance(value, bool),
    "area": _is_area,
    "segments": _is_shape,
    "keypoints": _is_points,
}
_MEANT = {
    "crowd": "true or false",
    "difficult": "true or false",
    "area": "a number of pixels, 0 or more",
    "segments": "COCO's segmentation as a JSON text",
    "keypoints": "a list of x, y, visibility in turn",
}


def _array(value: Any) -> np.ndarray:
    try:
        boxes = np.asarray(value, np.float64) if len(value) else np.empty((0, 4))
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError("boxes: each is [x1, y1, x2, y2] in pixels") from error
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise UserError("boxes: each is [x1, y1, x2, y2] in pixels, finite numbers")
    return boxes


def _scaled(text: str, width: int, height: int) -> str:
    polygons = [[v * (height if k % 2 else width) for k, v in enumerate(polygon)] for polygon in json.loads(text)]
    return json.dumps(polygons)


def _scaled_points(points: list[float], width: int, height: int) -> list[float]:
    return [value * (width, height, 1)[k % 3] for k, value in enumerate(points)]


_SCALED: dict[str, Callable[[Any, int, int], Any]] = {"segments": _scaled, "keypoints": _scaled_points}


def _read(uri: str, source: Storage) -> bytes:
    try:
        return source.read(uri)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise UserError(f"its mask is not there: {uri}") from error
        raise


def _mask(data: bytes, height: int, width: int) -> dict[str, Any]:
    """The mask as it came, and how many pixels each of the 256 ids has."""
    return {"mask": data, "_mask_pixels": np.bincount(_ids(data, height, width).ravel(), minlength=256)}


def _ids(data: bytes, height: int, width: int) -> np.ndarray:
    """The ids of a mask of the image's size."""
    mask = codecs.decode_mask(data, max(codecs.MAX_PIXELS, height * width))
    if mask.shape != (height, width):
        raise UserError(f"mask and image differ in size: {mask.shape[1]}x{mask.shape[0]}, {width}x{height}")
    return mask


def _instances(data: bytes, height: int, width: int, name: str) -> dict[str, Any]:
    """Boxes and segments of a mask whose ids are instances, 0 background."""
    mask = _ids(data, height, width)
    boxes, segments = [], []
    for number in np.unique(mask[mask > 0]):
        found = mask == number
        ys, xs = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
        boxes.append([float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)])
        segments.append(json.dumps(run_lengths(found)))
    return {"boxes": boxes, "segments": segments, "box_labels": [name] * len(boxes)}


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """H×W bool → COCO's uncompressed RLE: column by column, lengths of runs of 0 and 1 in turn, 0 first
    (https://github.com/cocodataset/cocoapi, `mask.py`)."""
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": to_runs(mask.T.ravel())}
