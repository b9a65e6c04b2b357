"""What describes a YOLO data set: `data.yaml` or any other YAML file at its top (`coco128.yaml`), Darknet's `obj.names`, `classes.txt`.
Source: https://docs.ultralytics.com/datasets/detect/, https://docs.ultralytics.com/datasets/pose/
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from ...core.disk_index import DiskIndex
from ...core.errors import UserError
from ...core.sample import SPLITS, Split
from ...core.storage import Storage, join
from .item import SPLIT_NAMES, Told
from .look import lines, text

DARKNET = "obj.names"
NAMES = ("data.yaml", "dataset.yaml", "data.yml")
MOST = 16
"""YAML files at a source's top that are looked into."""
WHOLE = "whole"
_OWN_SPLIT = re.compile(r"obj_([a-z]+)_data$|([a-z]+)(?:19|20)\d\d$")
"""Darknet's and COCO's: `obj_train_data`, `train2017`."""


@dataclass
class Description:
    names: dict[int, str] | None = None
    """Class number → name; None where nothing tells."""
    folders: dict[str, Split] = field(default_factory=dict)
    """Folder → split."""
    listed: DiskIndex = field(default_factory=DiskIndex)
    """Every end of each path in the lists of images (`a/b/1.jpg`, `b/1.jpg`, `1.jpg`) → `WHOLE` for the path itself, and the number of its
    split in `SPLITS`."""
    has_lists: bool = False
    keypoints: tuple[int, int] | None = None
    """Keypoints of an object, and numbers of each: x, y, or x, y, visibility."""

    def split(self, image: str) -> Split | None:
        """By the lists of images, the longest folder, or the folders' own names. `image`: its path below the source."""
        for tail in _ends(image) if self.has_lists else ():
            found = [entry.size for entry in self.listed.of(tail) if tail == image or entry.name == WHOLE]
            if found:
                return SPLITS[min(found)]
        at = f"/{image}"
        for folder in sorted(self.folders, key=len, reverse=True):
            if f"/{folder}/" in at:
                return self.folders[folder]
        return next((split for part in image.split("/")[:-1] if (split := _split_of(part.lower()))), None)


def _ends(path: str) -> list[str]:
    """`a/b/1.jpg` → itself, `b/1.jpg`, `1.jpg`."""
    names = path.split("/")
    return ["/".join(names[k:]) for k in range(len(names))]


def _split_of(folder: str) -> Split | None:
    own = _OWN_SPLIT.match(folder)
    return SPLIT_NAMES.get((own[1] or own[2]) if own else folder)


def yaml_file(uri: str, top: Iterable[str], storage: Storage) -> str | None:
    """The name of the YAML file at a source's top that describes it. Raises UserError where several may be it."""
    there = sorted(name for name in top if name.lower().endswith((".yaml", ".yml")))
    if known := next((name for name in NAMES if name in there), None):
        return known
    may_be = [name for name in there[:MOST] if _describes(join(uri, name), storage)]
    if len(may_be) > 1:
        raise UserError(f"{uri}: which file describes it? {', '.join(may_be)}; call the right one {NAMES[0]}")
    return may_be[0] if may_be else None


def _describes(uri: str, storage: Storage) -> bool:
    if not storage.exists(uri):  # a folder of such a name
        return False
    try:
        saved = _loaded(storage.read(uri))
    except ValueError:
        return False
    return isinstance(saved, dict) and "names" in saved and any(key in saved for key in SPLIT_NAMES)


def _loaded(data: bytes) -> Any:
    """Raises ValueError for what is no YAML, and for what PyYAML stumbles over: `2024-13-45`, `!!int abc`, 5,000 lists within each
    other."""
    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not YAML: {str(error).splitlines()[0]}") from error


def described(uri: str, storage: Storage, told: Told) -> Description:
    """Raises UserError for a description that is none, with its file and key."""
    top = storage.glance(uri)
    if name := yaml_file(uri, top, storage):
        at = join(uri, name)
        try:
            saved = _loaded(storage.read(at)) or {}
        except ValueError as error:
            raise UserError(f"{at}: {error}") from error
        if not isinstance(saved, dict):
            raise UserError(f"{at}: not YOLO's: an object with `names`, `train` and `val`")
        out = Description(_named(at, saved.get("names")), keypoints=_keypoints(at, saved.get("kpt_shape")))
        _splits(uri, at, saved, out, storage, told)
        return out
    for place in (DARKNET, "classes.txt", "labels/classes.txt"):
        if storage.exists(join(uri, place)):
            words = text(join(uri, place), storage).rstrip().splitlines()
            return Description({k: word.strip() for k, word in enumerate(words)})
    return Description()


def _named(at: str, given: Any) -> dict[int, str] | None:
    """`[cat, dog]` or `{0: cat, 1: dog}`, whose keys may be in quotes."""
    if given is None or given in ([], {}):
        return None
    found = dict(enumerate(given)) if isinstance(given, list) else given
    if not isinstance(found, dict) or not all(isinstance(name, str | int | float) for name in found.values()):
        raise UserError(f"{at}: names: a list of words, or an object of class numbers and words")
    if wrong := [key for key in found if not str(key).isdecimal()]:
        raise UserError(f"{at}: names: '{wrong[0]}' is no class number")
    out = {int(key): str(found[key]).strip() for key in found}
    if len(out) < len(found):
        raise UserError(f"{at}: names: a class number is there twice")
    return dict(sorted(out.items()))


def _keypoints(at: str, given: Any) -> tuple[int, int] | None:
    if given is None:
        return None
    sound = isinstance(given, list) and len(given) == 2 and all(isinstance(n, int) and n > 0 for n in given)
    if not sound or given[1] not in (2, 3):
        raise UserError(f"{at}: kpt_shape: [keypoints, 2 or 3], such as [17, 3], not {str(given)[:40]}")
    return given[0], given[1]


def _splits(uri: str, at: str, saved: Mapping[str, Any], out: Description, storage: Storage, told: Told) -> None:
    """What `train`, `val` and `test` name: folders, or texts with an image's path a line. What several of them name is of the first."""
    for key, split in sorted(SPLIT_NAMES.items(), key=lambda item: SPLITS.index(item[1])):
        given = saved.get(key) or []
        given = [given] if isinstance(given, str) else given
        if not isinstance(given, list) or not all(isinstance(path, str) for path in given):
            raise UserError(f"{at}: {key}: a path, or a list of paths, not {str(given)[:40]}")
        for path in map(_inside, given):
            if path.lower().endswith(".txt"):
                if not storage.exists(join(uri, path)):
                    told.notes.append(f"{at}: {key}: {path} is not there")
                    continue
                images = (_inside(line.strip()) for line in lines(join(uri, path), storage))
                out.listed.extend(
                    (end, WHOLE if end == image else "", SPLITS.index(split))
                    for image in images
                    for end in _ends(image)
                )
                out.has_lists = True
            elif (other := out.folders.setdefault(path, split)) != split:
                told.notes.append(f"{at}: {key}: {path} is also the {other} split's: its images are of that one alone")


def _inside(path: str) -> str:
    """A path without what leads from elsewhere to the data set: `../train/images`, `./images/1.jpg`."""
    return re.sub(r"^(\.\.?/)+", "", path.replace("\\", "/")).strip("/")
