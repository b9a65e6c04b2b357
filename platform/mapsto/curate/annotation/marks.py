"""What is said of one image, in class names and pixels: what goes to an annotation tool, and what comes back."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ...core.codecs import decode_mask
from ...core.errors import UserError
from ...core.runs import from_runs, from_text

Shape: TypeAlias = "tuple[np.ndarray, ...] | np.ndarray | None"
"""An instance's outline: polygons (P×2 float64, pixels), its pixels (H×W bool), or none but its box."""
_NAME = re.compile(r"(?:^|.*[/\\])\d{6}-(\d+)-([0-9a-f]{8})\.\w+$")


@dataclass(frozen=True)
class Marks:
    """`boxes`: N×4 float64, xyxy, pixels; `box_labels` and `shapes` one for each. `mask`: H×W uint8 ids, 0 where nothing
    is painted; None without one."""

    label: str | None = None
    boxes: np.ndarray = field(default_factory=lambda: np.empty((0, 4)))
    box_labels: tuple[str, ...] = ()
    shapes: tuple[Shape, ...] = ()
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Task:
    """One image for a person to look at."""

    row_id: int
    content: str
    """Its content's SHA-256: an answer for other bytes is refused."""
    name: str
    """Of its file: place in the queue, row and the first eight digits of the content."""
    width: int
    height: int
    marks: Marks
    score: float | None = None


@dataclass(frozen=True)
class Answer:
    """What a person said of one image."""

    row_id: int
    content: str
    """The first eight digits of the content's SHA-256."""
    width: int
    height: int
    marks: Marks
    where: str
    """What messages call it: file and task."""


@dataclass
class Reviewed:
    """A file of answers, and what in it was not one."""

    answers: list[Answer] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def task(row: Mapping[str, Any], classes: Sequence[str], place: int, suffix: str, score: float | None = None) -> Task:
    """A row of a data set as a task. `place`: in the queue, from 0; `suffix`: of its image file, with the dot."""
    name = f"{place:06d}-{row['row_id']}-{row['content_sha256'][:8]}{suffix}"
    marks = of_row(row, classes)
    return Task(row["row_id"], row["content_sha256"], name, row["width"], row["height"], marks, score)


def of_row(row: Mapping[str, Any], classes: Sequence[str]) -> Marks:
    """What a row says, by its columns."""
    label = row.get("label")
    boxes = np.asarray(row.get("boxes") or np.empty((0, 4)), np.float64)
    texts = row.get("segments") or ["[]"] * len(boxes)
    return Marks(
        classes[label] if label is not None and label >= 0 else None,
        boxes,
        tuple(classes[k] for k in row.get("box_labels") or ()),
        tuple(shape(json.loads(text), row["height"], row["width"]) for text in texts),
        decode_mask(row["mask"]) if row.get("mask") else None,
    )


def shape(segmentation: Any, height: int, width: int) -> Shape:
    """COCO's segmentation as a shape; None for an empty one, and for a RLE of another size."""
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts", [])
        if list(segmentation.get("size", ())) != [height, width]:
            return None
        runs = from_text(counts) if isinstance(counts, str) else counts
        pixels = from_runs(runs, height * width).reshape(width, height).T
        return pixels if pixels.any() else None
    polygons = tuple(np.asarray(p, np.float64).reshape(-1, 2) for p in segmentation if len(p) >= 6 and len(p) % 2 == 0)
    return polygons or None


def bounds(outline: Shape) -> np.ndarray:
    """The box around a shape: xyxy float64."""
    if isinstance(outline, tuple):
        points = np.concatenate(outline)
        return np.concatenate([points.min(0), points.max(0)])
    assert outline is not None
    ys, xs = np.flatnonzero(outline.any(1)), np.flatnonzero(outline.any(0))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], np.float64)


def named(name: str) -> tuple[int, str]:
    """(row id, first digits of the content's hash) from a task's file name; UserError for another's."""
    found = _NAME.match(name)
    if not found:
        raise UserError(f"the image '{name}' is none of a review's (000000-ROW-CONTENT.jpg)")
    return int(found[1]), found[2]


def mask_label(number: int, names: Sequence[str] = ()) -> str:
    """What a mask's id is called in a tool: the id itself, and its name if it has one."""
    return f"{number} {names[number]}" if number < len(names) else str(number)


def mask_id(label: str) -> int:
    """The id in such a label; UserError where there is none."""
    head = label.split(" ", 1)[0]
    if not head.isdecimal() or int(head) > 255:
        raise UserError(f"'{label}' is no mask's label: they begin with the id, 0 to 255")
    return int(head)


def regions(mask: np.ndarray | None) -> Iterator[tuple[int, np.ndarray]]:
    """(id, H×W bool) of each id in a mask but 0."""
    if mask is not None:
        for number in np.unique(mask[mask > 0]):
            yield int(number), mask == number


def painted(layers: Sequence[tuple[str, np.ndarray]], height: int, width: int) -> np.ndarray:
    """(label, H×W bool) of each region, in the order of painting, as a mask of ids; later ones cover earlier ones."""
    mask = np.zeros((height, width), np.uint8)
    for label, pixels in layers:
        mask[pixels] = mask_id(label)
    return mask
