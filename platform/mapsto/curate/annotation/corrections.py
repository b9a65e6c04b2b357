"""What a person has changed: an answer against the row as it was, checked, as one line for a later cleaning (`clean.corrections`)."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.codecs import encode
from ...core.errors import UserError
from ...core.runs import to_runs
from .marks import Answer, Marks, Shape, of_row

SAME = 0.01
"""Pixels that a corner may differ by and be the same: CVAT writes two decimals."""
OVERLAP = 0.5
"""IoU from which on a box is taken for a former one that was moved."""


def correction(
    answer: Answer, row: Mapping[str, Any], classes: Sequence[str], columns: Sequence[str], dropped: Counter[str]
) -> dict[str, Any] | None:
    """The new values of what has changed, by column; None where nothing has.

    `row_id`, `content_sha256`, `changed` (of `label`, `boxes`, `mask`) and, for each of them: `label` (class name or
    null) and `was`; `boxes` (xyxy pixels), `box_labels` (names), `origin` (the number of the row's box that each one was,
    or null), `segments` (COCO's segmentation as JSON, or null) where the data set has them, or no boxes at all; `mask_png`
    (base64). Class names may be new ones. Raises UserError for an image of other bytes or size. Boxes are cut at the image's edges; what has no
    area then is counted in `dropped`.
    """
    if not row["content_sha256"].startswith(answer.content):
        raise UserError(
            f"{answer.where}: row {answer.row_id} is another image in this data set; it was of another version"
        )
    if (answer.width, answer.height) != (row["width"], row["height"]):
        told = f"{answer.width}x{answer.height} there, {row['width']}x{row['height']} in the data set"
        raise UserError(f"{answer.where}: row {answer.row_id}: its image is {told}")
    before, after = of_row(row, classes), answer.marks
    new: dict[str, Any] = {}
    if after.label != before.label and ("label" in columns or after.label is not None):
        new |= {"label": after.label, "was": before.label}
    if "boxes" in columns or len(after.boxes):
        first = "boxes" not in columns and any(shape is not None for shape in after.shapes)
        new |= _boxes(before, after, row, first or "segments" in columns, dropped)
    mask = before.mask if before.mask is not None else np.zeros((row["height"], row["width"]), np.uint8)
    if after.mask is not None and (after.mask != mask).any():
        new["mask_png"] = base64.b64encode(encode(after.mask, "png")).decode()
    if not new:
        return None
    changed = [name for name, key in (("label", "label"), ("boxes", "boxes"), ("mask", "mask_png")) if key in new]
    return {"row_id": answer.row_id, "content_sha256": row["content_sha256"], "changed": changed, **new}


def read_corrections(data: bytes, where: str) -> list[dict[str, Any]]:
    """The lines of a file of corrections. Raises UserError, with file and line, for what is none, and a row that comes twice."""
    entries: list[dict[str, Any]] = []
    seen: set[int] = set()
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            row_id = _whole_number(entry["row_id"])
            if len(bytes.fromhex(entry["content_sha256"])) != 32:
                raise ValueError("content_sha256")
            if not {"label", "boxes", "mask_png"} & entry.keys():
                raise ValueError("nothing corrected")
            if "boxes" in entry:
                _check_boxes(entry)
        except (ValueError, KeyError, TypeError) as error:
            told = f"not a correction as `mapsto data corrections` writes them ({error})"
            raise UserError(f"{where}:{number}: {told}") from error
        if row_id in seen:
            raise UserError(f"{where}:{number}: row {row_id} comes twice")
        seen.add(row_id)
        entries.append(entry)
    return entries


def _whole_number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"row_id {value!r}")
    return value


def _check_boxes(entry: Mapping[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError for boxes that are not xyxy with an area, and lists of differing lengths."""
    boxes = np.array(entry["boxes"], np.float64).reshape(len(entry["boxes"]), 4)
    if not np.isfinite(boxes).all() or not (boxes[:, 2:] > boxes[:, :2]).all():
        raise ValueError("a box without area")
    for name in ("box_labels", "origin", *(["segments"] if entry.get("segments") is not None else [])):
        if len(entry[name]) != len(boxes):
            raise ValueError(f"{len(entry[name])} {name} for {len(boxes)} boxes")


def _boxes(
    before: Marks, after: Marks, row: Mapping[str, Any], segmented: bool, dropped: Counter[str]
) -> dict[str, Any]:
    edges = np.array([row["width"], row["height"]] * 2, np.float64)
    boxes = np.clip(after.boxes, 0, edges)
    sound = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
    if len(sound) < len(boxes):
        dropped["boxes without area inside the image"] += len(boxes) - len(sound)
    boxes, labels = boxes[sound], [after.box_labels[k] for k in sound]
    shapes = [after.shapes[k] for k in sound]
    origin, same = _origins(before, boxes, labels, shapes)
    kept = all(same) and len(boxes) == len(before.boxes)
    if kept and labels == [before.box_labels[o] for o in origin if o is not None]:
        return {}
    for k, o in enumerate(origin):
        if same[k] and o is not None:
            boxes[k] = before.boxes[o]
    out = {"boxes": boxes.tolist(), "box_labels": labels, "origin": origin}
    if segmented:
        former = row.get("segments") or []
        texts = [former[o] if same[k] and o is not None and former else _text(shapes[k]) for k, o in enumerate(origin)]
        out["segments"] = texts
    return out


def _origins(
    before: Marks, boxes: np.ndarray, labels: Sequence[str], shapes: Sequence[Shape]
) -> tuple[list[int | None], list[bool]]:
    """(number of the former box or None, whether its place is the same) for each box: first those in the same place, of
    one class before others, then the nearest that overlap."""
    origin: list[int | None] = [None] * len(boxes)
    same = [False] * len(boxes)
    free = set(range(len(before.boxes)))
    for strict in (True, False):
        for k in range(len(boxes)):
            if origin[k] is not None:
                continue
            for o in sorted(free):
                alike = labels[k] == before.box_labels[o] or not strict
                if alike and _unmoved(before.boxes[o], before.shapes[o], boxes[k], shapes[k]):
                    origin[k], same[k] = o, True
                    free.remove(o)
                    break
    left = [(_iou(boxes[k], before.boxes[o]), k, o) for k in range(len(boxes)) if origin[k] is None for o in free]
    for overlap, k, o in sorted(left, reverse=True):
        if overlap >= OVERLAP and origin[k] is None and o in free:
            origin[k] = o
            free.remove(o)
    return origin, same


def _unmoved(old_box: np.ndarray, old: Shape, new_box: np.ndarray, new: Shape) -> bool:
    if new is None:
        return bool(np.abs(old_box - new_box).max() <= SAME)
    if isinstance(old, tuple) and isinstance(new, tuple):
        alike = len(old) == len(new) and all(a.shape == b.shape for a, b in zip(old, new, strict=True))
        return alike and all(np.abs(a - b).max() <= SAME for a, b in zip(old, new, strict=True))
    return isinstance(old, np.ndarray) and isinstance(new, np.ndarray) and bool((old == new).all())


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    inner = float(np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)))
    return inner / (float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - inner)


def _text(shape: Shape) -> str | None:
    """COCO's segmentation of a shape, as JSON."""
    if shape is None:
        return None
    if isinstance(shape, tuple):
        return json.dumps([polygon.ravel().tolist() for polygon in shape])
    return json.dumps({"size": list(shape.shape), "counts": to_runs(shape.T.ravel())})
