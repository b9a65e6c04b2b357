"""References to images that are not read yet, and what their paths say."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
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
    ".j2c",
    ".jpf",
    ".jpx",
    ".avif",
    ".ico",
    ".tga",
    ".dib",
    ".heic",
    ".heif",
    ".hif",
    ".apng",
    ".qoi",
    ".dds",
    ".pcx",
    ".dcm",
)
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
MANIFEST_SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet")
VOLUME_SUFFIXES = (".nii", ".nii.gz")
VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".3gp",
    ".mkv",
    ".webm",
    ".avi",
    ".mpg",
    ".mpeg",
    ".ts",
    ".mts",
    ".m2ts",
    ".wmv",
    ".flv",
    ".ogv",
)
TEXT_SUFFIXES = (".txt", ".text", ".caption", ".cls", ".label", ".json", ".xml", ".csv", ".md")

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

TEXTS = ("caption", "identity", "license", "consent", "box_labels", "labels")
"""Columns of words."""

_WNID = re.compile(r"n\d{8}$")


@dataclass(frozen=True)
class Reference:
    """One image that is not read yet: where its bytes are, and what the layout says of it."""

    name: str
    """What reports call it: its URI, archive and member, or manifest and row."""
    uri: str = ""
    how: Literal["object", "range", "raw", "zip", "parquet", "slice", "frame"] = "object"
    """The bytes are the whole object; `size` of them at `offset`, also as bare pixels (`member`: height, width, channels,
    `pixels` or `planes`); zip member `member`; `column:row group:row`; slice `offset` of a volume; or a video's first
    frame from `offset` to before `member`, in its ticks."""
    offset: int = 0
    size: int = 0
    """In bytes; 0 when unknown."""
    member: str = ""
    label: str | None = None
    split: Split | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    """As the source gives them: `boxes` (xyxy), `box_labels`, `caption`, `identity`, `license`, `consent`, `mask` (a URI),
    `segments`, `crowd`, `difficult`, `keypoints`. What begins with `_` says how to read them, and is no column: `_shares` (boxes and segments
    are shares of the image), `_frame` (width and height that the source's annotations are made at), `_instances` (URI of a mask of instance ids), `_mask_range` (URI, offset, size), `_packed` (a zip member's method, bytes and CRC), `_mask_cell` (the column of the image's Parquet file that has the mask, which `reading.py` puts under
    `_mask_bytes`)."""
    reason: str | None = None
    """Why it is refused unread: a member's path that escapes, a manifest row without an image."""


@dataclass
class Told:
    """What a layout says of a source as a whole; complete once its listing has been read to the end."""

    classes: dict[str, None] = field(default_factory=dict)
    """Those that the source itself lists, in its order: they are the data set's first classes, with or without instances."""
    notes: list[str] = field(default_factory=list)
    """What a person should know, a line each."""


def legible(reference: Reference) -> Reference:
    """The reference with what people and Parquet read as valid Unicode: what of a name is not UTF-8 becomes `\\udcff`.
    Where its bytes are stays as it is."""
    columns = reference.columns
    for name in TEXTS:
        value = columns.get(name)
        clean = [_unicode(v) for v in value] if isinstance(value, list) else _unicode(value)
        if clean != value:
            columns = columns | {name: clean}
    name, label = _unicode(reference.name), _unicode(reference.label)
    if name is reference.name and label is reference.label and columns is reference.columns:
        return reference
    return replace(reference, name=name, label=label, columns=columns)


def _unicode(text: Any) -> Any:
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) and not text.isascii() else text


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


def is_volume(name: str) -> bool:
    return name.lower().endswith(VOLUME_SUFFIXES)


def is_video(name: str) -> bool:
    return name.lower().endswith(VIDEO_SUFFIXES)


def is_text(name: str) -> bool:
    return name.lower().endswith(TEXT_SUFFIXES)


def is_manifest(name: str) -> bool:
    return name.lower().endswith(MANIFEST_SUFFIXES)
