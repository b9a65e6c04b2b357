"""YOLO text: `images/` and `labels/` side by side, a line `class x y width height` (shares of the image) per object, a polygon, or a
box and keypoints; class names and splits in `data.yaml` or another YAML file, if there is one (`yolo_yaml.py`). Or as Darknet and CVAT's
"YOLO 1.1" have it: class names in `obj.names`, `obj_train_data/` (and `obj_valid_data/`, `obj_test_data/`) with each image's text beside it.
Sources: https://docs.ultralytics.com/datasets/detect/, https://docs.ultralytics.com/datasets/pose/,
https://docs.cvat.ai/docs/dataset_management/formats/format-yolo/
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from ...core.disk_index import DiskIndex
from ...core.errors import UserError
from ...core.storage import Storage, join
from .item import Reference, Told, is_image
from .look import LOOK, Look, parts, read_all, relative
from .yolo_yaml import DARKNET, NAMES, Description, described, yaml_file

SETTINGS = ("told",)
SEEN, ABSENT = 2, 0
"""COCO's visibility of a keypoint that is told without: seen; or not there, where it lies outside the image at the left or top."""


def recognise(look: Look) -> str | None:
    for name in NAMES:
        if name in look.top:
            return f"it has {name}"
    if DARKNET in look.top:
        return f"it has {DARKNET}"
    texts = [n for n in look.names if re.match(r"(.*/)?labels/.*\.txt$", n)]
    if texts and any(re.match(r"(.*/)?images/", n) for n in look.names):
        return f"it has images and labels side by side ({texts[0]})"
    name = yaml_file(look.uri, look.top, look.storage) if _labelled(look) else None
    return f"it has {name}, with names and splits" if name else None


def _labelled(look: Look) -> bool:
    """Whether texts lie in `labels` beside a folder `images`: the source's first names may be images alone."""
    beside = {f"{at[1] or ''}labels" for name in look.names if (at := re.match(r"(.*/)?images/", name))}
    for folder in (join(look.uri, name) for name in sorted(beside)):
        first = islice(relative(folder, look.storage), LOOK) if look.storage.glance(folder) else ()
        if any(name.endswith(".txt") for name, _ in first):
            return True
    return False


def listing(uri: str, storage: Storage, work: str, told: Told) -> Iterator[Reference]:
    """An image without a text file has no objects. A broken line quarantines its image, with the line. The names of images and texts
    are joined on disk."""
    about = described(uri, storage, told)
    told.classes.update(dict.fromkeys((about.names or {}).values()))
    darknet = storage.exists(join(uri, DARKNET))
    images, texts = DiskIndex(), DiskIndex()
    for part in parts(relative(uri, storage)):
        images.extend(
            (_label_file(name), name, size)
            for name, size in part
            if is_image(name) and (darknet or "images" in name.split("/")[:-1])
        )
        texts.extend(
            (name, name, size)
            for name, size in part
            if name.endswith(".txt") and ("/" in name if darknet else "labels" in name.split("/")[:-1])
        )
    if not images:
        where = "beside obj.names" if darknet else "below a folder `images`"
        raise UserError(f"{uri}: no image {where}, where YOLO's layout has them")
    for part in parts(images):
        there = {file for file, _, _ in part if texts.count(file)}
        contents = read_all([join(uri, file) for file, _, _ in part if file in there], storage)
        for file, name, size in part:
            texts.use(file)
            at = join(uri, name)
            split = about.split(name)
            data = next(contents) if file in there else b""
            try:
                columns = _objects(data.decode("utf-8-sig"), about)
            except ValueError as error:
                yield Reference(at, at, size=size, split=split, reason=f"its label file cannot be used: {error}")
                continue
            yield Reference(at, at, size=size, split=split, columns=columns)
    for _, name, _ in texts.unused():
        if name != "labels/classes.txt":
            yield Reference(join(uri, name), reason="a label file of an image that is not there")


def _label_file(image: str) -> str:
    """`images/train/1.jpg` → `labels/train/1.txt`: by the last folder called images."""
    *folders, name = image.split("/")
    if "images" not in folders:  # Darknet's
        return f"{image.rsplit('.', 1)[0]}.txt"
    last = len(folders) - 1 - folders[::-1].index("images")
    return "/".join([*folders[:last], "labels", *folders[last + 1 :], f"{name.rsplit('.', 1)[0]}.txt"])


def _objects(text: str, about: Description) -> dict[str, Any]:
    """The columns of an image's text. Raises ValueError, with the line, for one that is none."""
    boxes, labels, segments, points = [], [], [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        first, *rest = line.split()
        values = [float(value) for value in rest]
        if not first.isdecimal() or not _fits(len(values), about):
            raise ValueError(f"line {number}: class x y width height, {_further(about)}: {line.strip()[:60]}")
        if about.names is not None and int(first) not in about.names:
            raise ValueError(f"line {number}: class {first} of {len(about.names)}")
        if len(values) == 4 or about.keypoints:
            x, y, width, height = values[:4]
            boxes.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
            segments.append("[]")
            points.append(_points(values[4:], about.keypoints[1]) if about.keypoints else [])
        else:
            boxes.append([min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])])
            segments.append(json.dumps([values]))
        labels.append(about.names[int(first)] if about.names is not None else first)
    columns: dict[str, Any] = {"boxes": boxes, "box_labels": labels, "_shares": True}
    if about.keypoints:
        columns["keypoints"] = points
    return columns | ({"segments": segments} if any(s != "[]" for s in segments) else {})


def _fits(count: int, about: Description) -> bool:
    """Whether so many numbers are a box, a polygon, or a box and its keypoints."""
    if about.keypoints:
        return count in (4, 4 + about.keypoints[0] * about.keypoints[1])
    return count == 4 or (count > 4 and count % 2 == 0)


def _further(about: Description) -> str:
    return f"and {about.keypoints[0]} keypoints of {about.keypoints[1]}" if about.keypoints else "or a polygon"


def _points(values: list[float], numbers: int) -> list[float]:
    """x, y, visibility in turn, shares of the image; of points without a visibility those below 0 are not there, as Ultralytics has it."""
    if numbers == 3:
        return values
    out: list[float] = []
    for x, y in zip(values[::2], values[1::2], strict=True):
        out += [x, y, SEEN] if x >= 0 and y >= 0 else [0.0, 0.0, ABSENT]
    return out
