"""The first members of a tar: whether files of one key make samples there (WebDataset), or lie in class folders, as in an archive."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from dataclasses import dataclass, replace
from itertools import islice

from .item import SPLIT_NAMES, hidden, is_image
from .look import LOOK, Look

TEXTS = ("cls", "label", "txt", "text", "caption", "json", "index")
"""Kinds of WebDataset's texts."""
CAPTIONS = ("txt", "text", "caption")
"""Those that say no class, and that others lay beside their images, too."""
FIRST = 8
"""Members in which a sample must come."""


@dataclass(frozen=True)
class FirstSample:
    """The first key of an image and a text, of two kinds or more."""

    shard: str
    key: str
    kinds: tuple[str, ...]
    folders: tuple[str, ...] = ()
    """Those that the first images lie in, below the splits', where texts are captions alone; two at most."""
    placed: bool = False
    """Whether they lie in a folder of a split's (`train/cat/`)."""

    @property
    def by_class(self) -> bool:
        """Whether the folders are classes: they lie in a split's, or there are several, and no text says a class. WebDataset's samples lie
        flat, or in one folder."""
        return bool(self.folders) and (self.placed or len(self.folders) > 1)


def first_sample(look: Look) -> FirstSample | None:
    """Of the source's first tar; None where it has none, is broken, or is no tar of samples."""
    shard = look.uri if is_shard(look.uri) else next(filter(is_shard, look.names), None)
    if shard is None:
        return None
    uri = shard if shard == look.uri else f"{look.uri.rstrip('/')}/{shard}"
    fs, path = look.storage.fs(uri)
    try:
        with (
            look.storage.retry(uri, lambda: fs.open(path, "rb")) as raw,
            tarfile.open(fileobj=raw, mode="r:*") as archive,
        ):
            return _first(shard, archive)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile):
        return None


def _first(shard: str, archive: tarfile.TarFile) -> FirstSample | None:
    seen: dict[str, set[str]] = {}
    for _ in range(FIRST):
        if (member := archive.next()) is None:
            break
        key, kind = split_key(member.name)
        seen.setdefault(key, set()).add(kind)
    samples = {key: kinds for key, kinds in seen.items() if _has_image(kinds) and not kinds.isdisjoint(TEXTS)}
    if not samples:
        return None
    key, kinds = next(iter(samples.items()))
    found = FirstSample(shard, key, tuple(sorted(kinds)))
    if any(not kinds.isdisjoint(set(TEXTS).difference(CAPTIONS)) for kinds in samples.values()):
        return found
    folders: dict[str, None] = {}
    placed = False
    for member in islice(archive, LOOK if any("/" in key for key in samples) else 0):
        name = member.name.removeprefix("./")
        if is_image(name) and not hidden(name):
            parts = name.split("/")[:-1]
            splits = [k for k, part in enumerate(parts) if part.lower() in SPLIT_NAMES]
            placed |= bool(splits) and splits[0] < len(parts) - 1
            if folder := "/".join(part for k, part in enumerate(parts) if k not in splits):
                folders[folder] = None
        if placed or len(folders) > 1:
            break
    return replace(found, folders=tuple(folders), placed=placed)


def _has_image(kinds: set[str]) -> bool:
    return any(is_image(f"x.{kind}") for kind in kinds)


def is_shard(name: str) -> bool:
    return name.endswith((".tar", ".tar.gz", ".tgz"))


def split_key(name: str) -> tuple[str, str]:
    """`a/b.seg.png` → (`a/b`, `seg.png`): the key ends at the first dot of the file's name."""
    folder, _, file = name.rpartition("/")
    stem, _, kind = file.partition(".")
    return (f"{folder}/{stem}" if folder else stem), kind.lower()
