"""COCO JSON: instances (boxes, polygons and RLE), person keypoints and captions, beside folders of images.

The files of a split (`instances_val2017.json`, `captions_val2017.json`, ...) are merged by image and annotation id; a
lone `annotations.json`, or `_annotations.coco.json` beside its images, is read alike. Boxes become xyxy. `segments`
holds each instance's segmentation as JSON, as it came; `crowd` its iscrowd; `area` its area, where some have one; `keypoints` its x, y, v in turn.
Source: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import UserError
from ...core.sample import Split
from ...core.storage import Storage, join
from .archive import escapes
from .item import SPLIT_NAMES, Reference
from .look import Look

KINDS = ("instances", "person_keypoints", "captions", "keypoints", "panoptic", "stuff")
_KIND = re.compile(rf"^({'|'.join(KINDS)})_(.+)\.json$")
_SPLIT = re.compile(r"^(train|training|val|valid|validation|dev|test|testing)")


def recognise(look: Look) -> str | None:
    if look.uri.lower().endswith(".json"):
        return "its name ends in .json"
    found = [] if look.one else _files(look.uri, look.storage)
    return f"it has {found[0]}" if found else None


@dataclass
class _Set:
    """The files of one split."""

    split: Split | None
    folder: str
    """What the files' names end in (`val2017`), or the folder that they lie in."""
    images: dict[int, dict[str, Any]] = field(default_factory=dict)
    instances: dict[int, dict[int, dict[str, Any]]] = field(default_factory=dict)
    """Image id → annotation id → annotation."""
    captions: dict[int, list[str]] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)
    strays: dict[int, str] = field(default_factory=dict)
    """Image ids that annotations name and no file lists, with the file that does."""
    labelled: bool = False


def listing(uri: str, storage: Storage, work: str = "") -> Iterator[Reference]:
    """Raises UserError for JSON that is not COCO's, an annotation without ids, and an unknown category. What annotates
    an image that is not listed, and a second image of one file name, are reported."""
    root, files = (
        (uri.rsplit("/", 1)[0], [uri.rsplit("/", 1)[-1]]) if uri.endswith(".json") else (uri, _files(uri, storage))
    )
    if not files:
        raise UserError(f"{uri}: no COCO JSON in it (annotations/instances_<split>.json, or _annotations.coco.json)")
    sets: dict[str, _Set] = {}
    for name in files:
        kind, key, split = _named(name)
        if kind in ("panoptic", "stuff"):
            continue
        _add(sets.setdefault(key, _Set(split, key)), join(root, name), storage)
    for key in sorted(sets):
        yield from _references(root, sets[key], storage)


def _files(uri: str, storage: Storage) -> list[str]:
    """Relative names of what may be COCO's: below `annotations/`, at the top, and `_annotations.coco.json` a folder down."""
    top = storage.glance(uri)
    out = [f"annotations/{name}" for name in storage.names(join(uri, "annotations")) if _KIND.match(name)]
    out += [name for name in top if _KIND.match(name) or name in ("annotations.json", "_annotations.coco.json")]
    folders = [name for name in top if name.lower() in SPLIT_NAMES]
    return out + [
        f"{name}/_annotations.coco.json"
        for name in folders
        if storage.exists(join(uri, name, "_annotations.coco.json"))
    ]


def _named(name: str) -> tuple[str, str, Split | None]:
    """(kind, key of the split's files, split) of a file's relative name."""
    match = _KIND.match(name.rsplit("/", 1)[-1])
    if match:
        begins = _SPLIT.match(match[2].lower())
        return match[1], match[2], SPLIT_NAMES[begins[1]] if begins else None
    folder = name.rsplit("/", 1)[0] if "/" in name else ""
    return "instances", folder, SPLIT_NAMES.get(folder.lower())


def _add(found: _Set, uri: str, storage: Storage) -> None:
    try:
        data = json.loads(storage.read(uri))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{uri}: not JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise UserError(f"{uri}: not COCO's: an object with `images`, `annotations` and `categories`")
    for image in data["images"]:
        if not _has(image, "id", "file_name"):
            raise UserError(f"{uri}: an image without id or file_name: {str(image)[:80]}")
        if found.images.setdefault(image["id"], image)["file_name"] != image["file_name"]:
            raise UserError(
                f"{uri}: two images have the id {image['id']}: {found.images[image['id']]['file_name']}, {image['file_name']}"
            )
    for name in ("categories", "annotations"):
        if not isinstance(data.get(name) or [], list):
            raise UserError(f"{uri}: `{name}` is a list of objects, not {str(data[name])[:80]}")
    for entry in data.get("categories") or ():
        if not _has(entry, "id", "name"):
            raise UserError(f"{uri}: a category without id or name: {str(entry)[:80]}")
        name = str(entry["name"])
        if (other := found.categories.setdefault(entry["id"], name)) != name:
            raise UserError(f"{uri}: two categories have the id {entry['id']}: {other}, {name}")
    ids = set()
    for entry in data.get("annotations") or ():
        if not _has(entry, "image_id"):
            raise UserError(f"{uri}: an annotation without image_id: {str(entry)[:80]}")
        image = entry["image_id"]
        if image not in found.images:
            found.strays.setdefault(image, uri)
        elif "caption" in entry:
            found.captions.setdefault(image, []).append(str(entry["caption"]).strip().replace("\n", " "))
        else:
            if "bbox" not in entry or not _has(entry, "category_id", "id"):
                raise UserError(f"{uri}: annotation {entry.get('id', '?')} lacks id, bbox or category_id")
            if entry["category_id"] not in found.categories:
                raise UserError(
                    f"{uri}: annotation {entry['id']}: category {entry['category_id']} is not in `categories`"
                )
            if not _numbers(entry["bbox"], 4) or not _numbers(entry.get("keypoints") or []):
                raise UserError(f"{uri}: annotation {entry['id']}: bbox and keypoints are lists of numbers")
            if entry["id"] in ids:
                raise UserError(f"{uri}: two annotations have the id {entry['id']}")
            ids.add(entry["id"])
            found.labelled = True
            held = found.instances.setdefault(image, {}).setdefault(entry["id"], {})
            held.update({**entry, **held})  # instances and keypoints of one id: each adds what the other lacks


def _has(entry: Any, *names: str) -> bool:
    """Whether an object has values by these names that can name something: numbers or words."""
    return isinstance(entry, dict) and all(isinstance(entry.get(name), int | str) for name in names)


def _numbers(value: Any, count: int | None = None) -> bool:
    good = isinstance(value, list) and all(isinstance(v, int | float) for v in value)
    return good and count in (None, len(value))


def _references(root: str, found: _Set, storage: Storage) -> Iterator[Reference]:
    folder = _image_folder(root, found, storage)
    has = {name for held in found.instances.values() for entry in held.values() for name in entry}
    seen: set[str] = set()
    for key, image in found.images.items():
        name = str(image["file_name"])
        at = join(folder, name)
        if escapes(name):
            yield Reference(at, split=found.split, reason="its file_name leaves the folder")
        elif name in seen:
            yield Reference(at, at, split=found.split, reason=f"a second image of one file_name (image id {key})")
        else:
            seen.add(name)
            columns: dict[str, Any] = _instances(found, key, has) if found.labelled else {}
            if key in found.captions:
                columns["caption"] = "\n".join(found.captions[key])
            yield Reference(at, at, split=found.split, columns=columns)
    for key, uri in found.strays.items():
        yield Reference(f"{uri}: image id {key}", reason="annotations of an image that `images` does not list")


def _instances(found: _Set, key: int, has: Set[str]) -> dict[str, Any]:
    entries = list(found.instances.get(key, {}).values())
    columns: dict[str, Any] = {
        "boxes": [_xyxy(entry["bbox"]) for entry in entries],
        "box_labels": [found.categories[entry["category_id"]] for entry in entries],
        "crowd": [bool(entry.get("iscrowd", 0)) for entry in entries],
        "segments": [json.dumps(entry.get("segmentation") or []) for entry in entries],
    }
    if "area" in has:
        columns["area"] = [entry.get("area") for entry in entries]
    if "keypoints" in has:
        columns["keypoints"] = [[float(v) for v in entry.get("keypoints") or ()] for entry in entries]
    return columns


def _xyxy(box: Any) -> list[float]:
    x, y, width, height = (float(value) for value in box)
    return [x, y, x + width, y + height]


def _image_folder(root: str, found: _Set, storage: Storage) -> str:
    """Where the images lie: the first place that has the first image whose name a file can have."""
    if not found.images:
        return root
    first = next(filter(_nameable, (str(image["file_name"]) for image in found.images.values())), None)
    if first is None:
        return root
    places = [
        (found.folder,),
        ("images", found.folder),
        ("images",),
        (),
        (found.split or "",),
        ("images", found.split or ""),
    ]
    for parts in places:
        folder = join(root, *(part for part in parts if part))
        if storage.exists(join(folder, first)):
            return folder
    tried = ", ".join(sorted({"/".join(p for p in parts if p) or "." for parts in places}))
    raise UserError(f"{root}: the images of {found.folder or 'the JSON'} are not there: no {first} in {tried}")


def _nameable(name: str) -> bool:
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False
