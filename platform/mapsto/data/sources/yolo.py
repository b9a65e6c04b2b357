"""YOLO text: `images/` and `labels/` side by side, a line `class x y width height` (shares of the image) per object, or
a polygon; class names and splits in `data.yaml`, if there is one. Or as Darknet and CVAT's "YOLO 1.1" have it: class names in
`obj.names`, `obj_train_data/` (and `obj_valid_data/`, `obj_test_data/`) with each image's text beside it.
Sources: https://docs.ultralytics.com/datasets/detect/, https://docs.cvat.ai/docs/dataset_management/formats/format-yolo/
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from ...core.disk_index import DiskIndex
from ...core.errors import UserError
from ...core.sample import Split
from ...core.storage import Storage, join
from .item import SPLIT_NAMES, Reference, is_image
from .look import Look, parts, read_all, relative, text

DARKNET = "obj.names"
_DARKNET_SPLIT = re.compile(r"obj_([a-z]+)_data$")
NAMES = ("data.yaml", "dataset.yaml", "data.yml")


def recognise(look: Look) -> str | None:
    for name in NAMES:
        if name in look.top:
            return f"it has {name}"
    if DARKNET in look.top:
        return f"it has {DARKNET}"
    texts = [n for n in look.names if re.match(r"(.*/)?labels/.*\.txt$", n)]
    if texts and any(re.match(r"(.*/)?images/", n) for n in look.names):
        return f"it has images and labels side by side ({texts[0]})"
    return None


def listing(uri: str, storage: Storage, work: str = "") -> Iterator[Reference]:
    """An image without a text file has no objects. A broken line quarantines its image, with the line. The names of images and texts
    are joined on disk."""
    names, folders = _description(uri, storage)
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
            split = _split(name, folders)
            data = next(contents) if file in there else b""
            try:
                columns = _objects(data.decode("utf-8-sig"), names)
            except ValueError as error:
                yield Reference(at, at, size=size, split=split, reason=f"its label file cannot be used: {error}")
                continue
            yield Reference(at, at, size=size, split=split, columns=columns)
    for _, name, _ in texts.unused():
        if name != "labels/classes.txt":
            yield Reference(join(uri, name), reason="a label file of an image that is not there")


def _description(uri: str, storage: Storage) -> tuple[list[str] | None, dict[str, Split]]:
    """Class names, and folder → split, from `data.yaml` or `classes.txt`."""
    for name in NAMES:
        if storage.exists(join(uri, name)):
            try:
                saved = yaml.safe_load(storage.read(join(uri, name))) or {}
            except yaml.YAMLError as error:
                raise UserError(f"{uri}/{name}: not YAML: {str(error).splitlines()[0]}") from error
            if not isinstance(saved, dict):
                raise UserError(f"{uri}/{name}: not YOLO's: an object with `names`, `train` and `val`")
            found = saved.get("names")
            if isinstance(found, dict):
                found = [found[k] for k in sorted(found)]
            if not all(isinstance(n, str | int | float) for n in found or ()):
                raise UserError(f"{uri}/{name}: names: a list of words")
            folders: dict[str, Split] = {}
            for key, split in SPLIT_NAMES.items():
                for path in [saved[key]] if isinstance(saved.get(key), str) else saved.get(key) or ():
                    folders[re.sub(r"^(\.\.?/)+", "", str(path)).strip("/")] = split
            return ([str(n) for n in found] if found else None), folders
    for place in (DARKNET, "classes.txt", "labels/classes.txt"):
        if storage.exists(join(uri, place)):
            return text(join(uri, place), storage).rstrip().splitlines(), {}
    return None, {}


def _label_file(image: str) -> str:
    """`images/train/1.jpg` → `labels/train/1.txt`: by the last folder called images."""
    *folders, name = image.split("/")
    if "images" not in folders:  # Darknet's
        return f"{image.rsplit('.', 1)[0]}.txt"
    last = len(folders) - 1 - folders[::-1].index("images")
    return "/".join([*folders[:last], "labels", *folders[last + 1 :], f"{name.rsplit('.', 1)[0]}.txt"])


def _split(image: str, folders: dict[str, Split]) -> Split | None:
    for folder, split in folders.items():
        if folder and (image.startswith(f"{folder}/") or f"/{folder}/" in image):
            return split
    parts = [_DARKNET_SPLIT.sub(r"\1", part.lower()) for part in image.split("/")[:-1]]
    return next((SPLIT_NAMES[part] for part in parts if part in SPLIT_NAMES), None)


def _objects(text: str, names: list[str] | None) -> dict[str, Any]:
    boxes, labels, segments = [], [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        first, *rest = line.split()
        values = [float(value) for value in rest]
        if not first.isdecimal() or len(values) < 4 or (len(values) > 4 and len(values) % 2):
            raise ValueError(f"line {number}: class x y width height, or a polygon: {line.strip()[:60]}")
        if names is not None and int(first) >= len(names):
            raise ValueError(f"line {number}: class {first} of {len(names)}")
        if len(values) == 4:
            x, y, width, height = values
            boxes.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
            segments.append("[]")
        else:
            boxes.append([min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])])
            segments.append(json.dumps([values]))
        labels.append(names[int(first)].strip() if names is not None else first)
    columns: dict[str, Any] = {"boxes": boxes, "box_labels": labels, "_shares": True}
    return columns | ({"segments": segments} if any(s != "[]" for s in segments) else {})
