"""COCO JSON: instances (boxes, polygons and RLE), person keypoints and captions, beside folders of images.

The files of a split (`instances_val2017.json`, `captions_val2017.json`, ...) are merged by image and annotation id; a
lone `annotations.json`, or `_annotations.coco.json` beside its images, is read alike. Boxes become xyxy. `segments`
holds each instance's segmentation as JSON, as it came; `crowd` its iscrowd; `area` its area, where some have one; `keypoints` its x, y, v in turn;
`license` the name of the image's entry in `licenses`. The classes are all `categories`, by their ids.
The files are read element by element, and put together by image on disk.
Source: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...core.disk_index import DiskIndex, Entry
from ...core.errors import UserError
from ...core.sample import Split
from ...core.storage import Storage, join
from .archive import escapes
from .item import SPLIT_NAMES, Reference, Told
from .json_stream import elements
from .look import Look, parts

KINDS = ("instances", "person_keypoints", "captions", "keypoints", "panoptic", "stuff")
UNREAD = ("panoptic", "stuff")
SETTINGS = ("told",)
_KIND = re.compile(rf"^({'|'.join(KINDS)})_(.+)\.json$")
_SPLIT = re.compile(r"^(train|training|val|valid|validation|dev|test|testing)")


def recognise(look: Look) -> str | None:
    if look.uri.lower().endswith(".json"):
        return "its name ends in .json"
    found = [] if look.one else _files(look.uri, look.storage)
    return f"it has {found[0]}" if found else None


@dataclass
class _Set:
    """The files of one split. Images and annotations are on disk, by image id: their sizes are the numbers of their files."""

    split: Split | None
    folder: str
    """What the files' names end in (`val2017`), or the folder that they lie in."""
    files: list[str] = field(default_factory=list)
    images: DiskIndex = field(default_factory=DiskIndex)
    """Image id → file name."""
    named: DiskIndex = field(default_factory=DiskIndex)
    """File name → image id."""
    about: DiskIndex = field(default_factory=DiskIndex)
    """Image id → its width, height and licence id, as a JSON list."""
    annotations: DiskIndex = field(default_factory=DiskIndex)
    """Image id → annotation, as JSON."""
    ids: DiskIndex = field(default_factory=DiskIndex)
    """File and annotation id."""
    categories: dict[int | str, str] = field(default_factory=dict)
    licenses: dict[int | str, str] = field(default_factory=dict)
    """Licence id → its name, or its URL."""
    has: set[str] = field(default_factory=set)
    """What annotations tell of objects, those of images that `images` lists."""


def listing(uri: str, storage: Storage, work: str, told: Told) -> Iterator[Reference]:
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
        if kind in UNREAD:
            told.notes.append(
                f"{join(root, name)}: not read: {kind} segmentation, which is no layout of boxes or captions"
            )
            continue
        _add(sets.setdefault(key, _Set(split, key)), join(root, name), storage)
    if not sets:
        raise UserError(
            f"{uri}: its COCO files are of {' and '.join(UNREAD)} segmentation alone: instances, keypoints and captions are read"
        )
    for found in sets.values():
        ids = sorted(found.categories, key=lambda number: (isinstance(number, str), number))
        told.classes.update(dict.fromkeys(found.categories[number] for number in ids))
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
    """Put a file's images, annotations and categories beside those of the split's others; what does not need the others is checked."""
    found.files.append(uri)
    fs, path = storage.fs(uri)
    kinds = {"images": _image, "categories": _category, "annotations": _annotation, "licenses": _license}
    listed = set()
    with storage.retry(uri, lambda: fs.open(path, "rb")) as raw:
        try:
            for part in parts(elements(io.TextIOWrapper(raw, "utf-8-sig"))):
                for key, value, inside in part:
                    if key not in kinds:
                        continue
                    if inside:
                        kinds[key](found, uri, value)
                    elif isinstance(value, list):
                        listed.add(key)
                    elif value is not None and key in ("categories", "annotations"):
                        raise UserError(f"{uri}: `{key}` is a list of objects, not {str(value)[:80]}")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{uri}: not JSON: {error}") from error
    if "images" not in listed:
        raise UserError(f"{uri}: not COCO's: an object with `images`, `annotations` and `categories`")


def _image(found: _Set, uri: str, entry: Any) -> None:
    if not _has(entry, "id", "file_name"):
        raise UserError(f"{uri}: an image without id or file_name: {str(entry)[:80]}")
    key, number = json.dumps(entry["id"]), len(found.files) - 1
    found.images.extend([(key, str(entry["file_name"]), number)])
    about = [entry.get(name) for name in ("width", "height", "license")]
    if any(value is not None for value in about):
        found.about.extend([(key, json.dumps(about), number)])


def _license(found: _Set, uri: str, entry: Any) -> None:
    """One without id, name and URL tells nothing."""
    if _has(entry, "id") and (name := entry.get("name") or entry.get("url")):
        found.licenses.setdefault(entry["id"], str(name))


def _category(found: _Set, uri: str, entry: Any) -> None:
    if not _has(entry, "id", "name"):
        raise UserError(f"{uri}: a category without id or name: {str(entry)[:80]}")
    name = str(entry["name"])
    if (other := found.categories.setdefault(entry["id"], name)) != name:
        raise UserError(f"{uri}: two categories have the id {entry['id']}: {other}, {name}")


def _annotation(found: _Set, uri: str, entry: Any) -> None:
    if not _has(entry, "image_id"):
        raise UserError(f"{uri}: an annotation without image_id: {str(entry)[:80]}")
    number = len(found.files) - 1
    found.annotations.extend([(json.dumps(entry["image_id"]), json.dumps(entry), number)])
    if "caption" not in entry:
        found.has |= entry.keys()
        found.ids.extend([(f"{number}:{entry['id']!r}", "", number)] if _has(entry, "id") else [])


def _has(entry: Any, *names: str) -> bool:
    """Whether an object has values by these names that can name something: numbers or words."""
    return isinstance(entry, dict) and all(isinstance(entry.get(name), int | str) for name in names)


def _numbers(value: Any, count: int | None = None) -> bool:
    good = isinstance(value, list) and all(isinstance(v, int | float) for v in value)
    return good and count in (None, len(value))


def _references(root: str, found: _Set, storage: Storage) -> Iterator[Reference]:
    first = Entry("", "", 0)
    for entry in found.images.by_key():
        if entry.key == first.key and entry.name != first.name:
            told = f"two images have the id {json.loads(entry.key)}: {first.name}, {entry.name}"
            raise UserError(f"{found.files[entry.size]}: {told}")
        first = first if entry.key == first.key else entry
    before = ""
    for key, _, number in found.ids.by_key():
        if key == before:
            raise UserError(f"{found.files[number]}: two annotations have the id {key.partition(':')[2]}")
        before = key
    found.has &= _told_of_images(found)
    folder = _image_folder(root, found, storage)
    again: set[str] = set()
    found.named.extend((name, key, 0) for key, name, _ in found.images)
    for key, name, number in found.images:
        same = found.images.of(key)
        if same[0].size != number or key in again:
            continue  # listed before, by another file of the split or by this one
        again |= {key} if len(same) > 1 and same[1].size == number else set()
        at = join(folder, name)
        found.annotations.use(key)
        if escapes(name):
            yield Reference(at, split=found.split, reason="its file_name leaves the folder")
        elif found.named.of(name)[0].name != key:
            yield Reference(
                at, at, split=found.split, reason=f"a second image of one file_name (image id {json.loads(key)})"
            )
        else:
            yield Reference(at, at, split=found.split, columns=_columns(found, key))
    for key, _, number in found.annotations.unused_keys():
        where = f"{found.files[number]}: image id {json.loads(key)}"
        yield Reference(where, reason="annotations of an image that `images` does not list")


def _told_of_images(found: _Set) -> set[str]:
    """Of `has`, what annotations of listed images tell; reads on until all of it is found."""
    out: set[str] = set()
    for key, _, _ in found.images:
        if out >= found.has:
            break
        entries = (json.loads(entry.name) for entry in found.annotations.of(key))
        out.update(*(entry.keys() for entry in entries if "caption" not in entry))
    return out


def _columns(found: _Set, key: str) -> dict[str, Any]:
    """What all files of the split say of an image."""
    held: dict[int, dict[str, Any]] = {}
    captions = []
    for _, text, number in found.annotations.of(key):
        entry = json.loads(text)
        if "caption" in entry:
            captions.append(str(entry["caption"]).strip().replace("\n", " "))
            continue
        _check(found, entry, number)
        known = held.setdefault(entry["id"], {})
        known.update({**entry, **known})  # instances and keypoints of one id: each adds what the other lacks
    columns = _instances(found, list(held.values())) if found.has else {}
    for _, text, _ in found.about.of(key):
        width, height, number = json.loads(text)
        if isinstance(width, int | float) and isinstance(height, int | float) and width > 0 and height > 0:
            columns["_frame"] = [width, height]
        if isinstance(number, int | str) and number in found.licenses:
            columns["license"] = found.licenses[number]
    return columns | ({"caption": "\n".join(captions)} if captions else {})


def _check(found: _Set, entry: dict[str, Any], number: int) -> None:
    uri = found.files[number]
    if "bbox" not in entry or not _has(entry, "category_id", "id"):
        raise UserError(f"{uri}: annotation {entry.get('id', '?')} lacks id, bbox or category_id")
    if entry["category_id"] not in found.categories:
        raise UserError(f"{uri}: annotation {entry['id']}: category {entry['category_id']} is not in `categories`")
    if not _numbers(entry["bbox"], 4) or not _numbers(entry.get("keypoints") or []):
        raise UserError(f"{uri}: annotation {entry['id']}: bbox and keypoints are lists of numbers")


def _instances(found: _Set, entries: list[dict[str, Any]]) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "boxes": [_xyxy(entry["bbox"]) for entry in entries],
        "box_labels": [found.categories[entry["category_id"]] for entry in entries],
        "crowd": [bool(entry.get("iscrowd", 0)) for entry in entries],
        "segments": [json.dumps(entry.get("segmentation") or []) for entry in entries],
    }
    if "area" in found.has:
        columns["area"] = [entry.get("area") for entry in entries]
    if "keypoints" in found.has:
        columns["keypoints"] = [[float(v) for v in entry.get("keypoints") or ()] for entry in entries]
    return columns


def _xyxy(box: Any) -> list[float]:
    x, y, width, height = (float(value) for value in box)
    return [x, y, x + width, y + height]


def _image_folder(root: str, found: _Set, storage: Storage) -> str:
    """Where the images lie: the first place that has the first image whose name a file can have."""
    if not found.images:
        return root
    first = next(filter(_nameable, (image.name for image in found.images)), None)
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
    for place in places:
        folder = join(root, *(part for part in place if part))
        if storage.exists(join(folder, first)):
            return folder
    tried = ", ".join(sorted({"/".join(p for p in place if p) or "." for parts in places}))
    raise UserError(f"{root}: the images of {found.folder or 'the JSON'} are not there: no {first} in {tried}")


def _nameable(name: str) -> bool:
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False
