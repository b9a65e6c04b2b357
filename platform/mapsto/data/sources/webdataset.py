"""WebDataset: tar shards in which files of one key (`000123.jpg`, `000123.cls`, `000123.json`) make a sample.

`.cls` and `.label` are its class, `.txt` and `.caption` its caption, `.json` may have `label`, `class`, `caption`,
`boxes`, `box_labels`, `crowd`, `difficult`, `segments`, `keypoints`, `identity`, `license`, `consent`; `.mask.png` its mask. The split comes
from the shard's name (`train-000000.tar`).
Compressed shards (`.tar.gz`, `.tgz`) are written out plain once, below the artifact. An empty `.cls` is no class.
Source: https://github.com/webdataset/webdataset#the-webdataset-format
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from typing import Any

from ...core.errors import UserError
from ...core.sample import Split
from ...core.storage import Storage
from .archive import NO_END, ends_well, escapes
from .expand import gunzipped
from .item import SPLIT_NAMES, Reference, is_image
from .look import Look, relative
from .samples import TEXTS, is_shard, split_key

LARGEST_TEXT = 16 * 2**20
"""A larger text is refused, with its sample: it would be held whole."""
FIELDS = (
    "labels", "value", "caption", "boxes", "box_labels", "identity", "crowd", "difficult", "area", "segments", "keypoints", "license", "consent",
)  # fmt: skip
_SPLIT = re.compile(r"(?:^|[-_/])(train|training|val|valid|validation|dev|test)(?=[-_.]|$)")


def recognise(look: Look) -> str | None:
    """By the first shard's first members: an image and a text of one key. Class folders whose images have captions alone beside them
    are an archive's."""
    found = look.sample
    if found is None or found.by_class:
        return None
    within = f"; what lies in {found.folders[0]}/ is of no class by that" if found.folders else ""
    return f"{found.shard} has samples of one key ({found.key}: {', '.join(found.kinds)}){within}"


def listing(uri: str, storage: Storage, work: str = "") -> Iterator[Reference]:
    """Raises UserError for a broken shard. A sample without an image, and one that cannot be read, is reported."""
    if is_shard(uri):
        shards = [uri]
    else:
        shards = sorted(f"{uri.rstrip('/')}/{name}" for name, _ in relative(uri, storage) if is_shard(name))
    if not shards:
        raise UserError(f"{uri}: no shard (.tar, .tar.gz, .tgz) below it")
    for shard in shards:
        plain = shard if shard.endswith(".tar") else gunzipped(shard, storage, work)
        try:
            yield from _shard(shard, plain, storage)
        except tarfile.TarError as error:
            raise UserError(f"{shard}: the archive is broken ({error})") from error


def _shard(name: str, uri: str, storage: Storage) -> Iterator[Reference]:
    """`name`: the shard's URI; `uri`: of its plain bytes."""
    found = _SPLIT.search(name.rsplit("/", 1)[-1].lower())
    split = SPLIT_NAMES[found[1]] if found else None
    fs, path = storage.fs(uri)
    with storage.retry(uri, lambda: fs.open(path, "rb")) as raw, tarfile.open(fileobj=raw, mode="r:") as archive:
        key: str | None = None
        held: dict[str, Any] = {}
        twice: set[str] = set()
        while member := archive.next():
            setattr(archive, "members", [])  # noqa: B010  a shard's members are not held
            if not member.isreg():
                if not member.isdir():
                    yield Reference(f"{name}!{member.name}", uri, reason="a link or device, not a file", split=split)
                continue
            if escapes(member.name):
                yield Reference(f"{name}!{member.name}", uri, reason="its path leaves the archive", split=split)
                continue
            own, kind = split_key(member.name)
            if own != key:
                if key is not None:
                    yield _sample(name, uri, key, held, split, twice)
                key, held, twice = own, {}, set()
            if kind in held:
                twice.add(kind)
            if kind in TEXTS:
                file = archive.extractfile(member) if member.size <= LARGEST_TEXT else None
                held[kind] = file.read() if file else None
            elif is_image(f"x.{kind}"):
                held[kind] = (member.offset_data, member.size)
        if key is not None:
            yield _sample(name, uri, key, held, split, twice)
        if not ends_well(archive):
            yield Reference(name, uri, reason=NO_END, split=split)


def _sample(shard: str, uri: str, key: str, held: dict[str, Any], split: Split | None, twice: set[str]) -> Reference:
    """`twice`: kinds of which it has several members, one of which would be lost."""
    name = f"{shard}!{key}"
    if twice:
        return Reference(
            name, uri, reason=f"a sample with several members of one kind ({', '.join(sorted(twice))})", split=split
        )
    images = [kind for kind, value in held.items() if isinstance(value, tuple) and "." not in kind]
    if not images:
        return Reference(
            name, uri, reason=f"a sample without an image ({', '.join(sorted(held)) or 'nothing'})", split=split
        )
    if len(images) > 1:
        reason = f"a sample of several images ({', '.join(sorted(images))}); a mask is called mask.png or seg.png"
        return Reference(name, uri, reason=reason, split=split)
    if large := [kind for kind, value in held.items() if value is None]:
        return Reference(name, uri, reason=f"its {large[0]} is over {LARGEST_TEXT // 2**20} MB", split=split)
    columns: dict[str, Any] = {}
    label: str | None = None
    try:
        for kind in ("json", "cls", "label", "txt", "text", "caption"):
            if kind not in held:
                continue
            text = held[kind].decode("utf-8").strip()
            if kind == "json":
                given = json.loads(text)
                if isinstance(given, dict):
                    if not all(isinstance(given.get(field) or [], list) for field in ("boxes", "box_labels")):
                        raise ValueError("boxes and box_labels are lists")
                    columns |= {field: given[field] for field in FIELDS if given.get(field) is not None}
                    label = next((str(given[f]) for f in ("label", "class") if given.get(f) not in (None, "")), label)
            elif kind in ("cls", "label"):
                label = text or label
            else:
                columns["caption"] = text
    except (ValueError, RecursionError) as error:
        return Reference(name, uri, reason=f"its text cannot be read: {error}", split=split)
    mask = next(
        (value for kind, value in held.items() if kind in ("mask.png", "seg.png") and isinstance(value, tuple)), None
    )
    if mask:
        columns["_mask_range"] = [uri, *mask]
    offset, size = held[images[0]]
    return Reference(f"{name}.{images[0]}", uri, "range", offset, size, label=label, split=split, columns=columns)
