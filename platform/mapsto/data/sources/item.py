"""References to images that are not read yet, and what their paths say."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from ...core.sample import Split

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".jp2",
    ".j2k",
    ".avif",
    ".ico",
    ".tga",
    ".dib",
    ".heic",
    ".qoi",
    ".dds",
    ".pcx",
    ".dcm",
)
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
MANIFEST_SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet")

UNLABELLED = "_unlabelled"
"""The folder of images without a class, where their data set has classes."""
EXPORTED = "export.json"
"""The last file of an export (`data/export/`), at its top."""

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}

_WNID = re.compile(r"n\d{8}$")


@dataclass(frozen=True)
class Reference:
    """One image that is not read yet: where its bytes are, and what the layout says of it."""

    name: str
    """What reports call it: its URI, archive and member, or manifest and row."""
    uri: str = ""
    how: Literal["object", "range", "raw", "zip", "parquet"] = "object"
    """The bytes are the whole object; `size` of them at `offset`, also as bare pixels (`member`: height, width, channels,
    `pixels` or `planes`); zip member `member`; or `column:row group:row`."""
    offset: int = 0
    size: int = 0
    """In bytes; 0 when unknown."""
    member: str = ""
    label: str | None = None
    split: Split | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    """As the source gives them: `boxes` (xyxy), `box_labels`, `caption`, `identity`, `mask` (a URI), `segments`, `crowd`,
    `difficult`, `keypoints`. What begins with `_` says how to read them, and is no column: `_shares` (boxes and segments
    are shares of the image), `_instances` (URI of a mask of instance ids), `_mask_range` (URI, offset, size)."""
    reason: str | None = None
    """Why it is refused unread: a member's path that escapes, a manifest row without an image."""


def placed(relative: str) -> tuple[str | None, Split | None]:
    """(label, split) from a path below the source's root: `train/cat/1.jpg`, `cat/1.jpg`, `test/1.jpg`, `1.jpg`, and
    `n01440764_tench.JPEG`, whose label is the WordNet id before the underscore. Deeper folders name no class: the
    first one does; `_unlabelled` stands for none."""
    folders = [part for part in relative.split("/")[:-1] if part not in ("", ".")]
    split = SPLIT_NAMES.get(folders[0].lower()) if folders else None
    if split:
        folders = folders[1:]
    if folders:
        return (folders[0] if folders[0] != UNLABELLED else None), split
    head = relative.rsplit("/", 1)[-1].split("_", 1)[0]
    return (head if _WNID.match(head) else None), split


def hidden(relative: str) -> bool:
    """Whether a path is the file system's own business: `.DS_Store`, `__MACOSX/`."""
    return any(part.startswith(".") or part == "__MACOSX" for part in relative.split("/"))


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def is_manifest(name: str) -> bool:
    return name.lower().endswith(MANIFEST_SUFFIXES)
