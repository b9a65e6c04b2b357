"""The first members of a tar: whether files of one key make samples there (WebDataset), or lie in class folders, as in an archive."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from ...core.storage import Storage
from .item import SPLIT_NAMES, hidden, is_image

TEXTS = ("cls", "label", "txt", "text", "caption", "json", "index")
"""Kinds of WebDataset's texts."""
CAPTIONS = ("txt", "text", "caption")
"""Those that say no class, and that others lay beside their images, too."""
CLASSES = tuple(kind for kind in TEXTS if kind not in CAPTIONS)
FIRST = 8
"""Members in which a sample must come."""
MOST = 1000
"""Members in which a second folder, or a text that says a class, must come."""


@dataclass(frozen=True)
class FirstSample:
    """The first key of an image and a text, of two kinds or more."""

    shard: str
    key: str
    kinds: tuple[str, ...]
    folders: tuple[str, ...] = ()
    """Those that the first images lie in, below the splits', where texts are captions alone; two at most."""

    @property
    def by_class(self) -> bool:
        """Whether the folders are classes: there are several, and no text says a class. WebDataset's samples lie flat, or in one folder."""
        return len(self.folders) > 1


def first_sample(uri: str, names: Iterable[str], storage: Storage) -> FirstSample | None:
    """Of the source's first tar; None where it has none, is broken, or is no tar of samples. `names`: paths below the URI."""
    shard = uri if is_shard(uri) else next(filter(is_shard, names), None)
    if shard is None:
        return None
    at = shard if shard == uri else f"{uri.rstrip('/')}/{shard}"
    fs, path = storage.fs(at)
    try:
        with storage.retry(at, lambda: fs.open(path, "rb")) as raw, tarfile.open(fileobj=raw, mode="r:*") as archive:
            return _first(shard, archive)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile):
        return None


def _first(shard: str, archive: tarfile.TarFile) -> FirstSample | None:
    seen: dict[str, set[str]] = {}
    folders: dict[str, None] = {}
    first: str | None = None
    by_text = False
    for count, member in enumerate(islice(archive, MOST), 1):
        key, kind = split_key(member.name)
        kinds = seen.setdefault(key, set())
        kinds.add(kind)
        if _has_image(kinds) and not kinds.isdisjoint(TEXTS):
            first = first or key
            by_text |= not kinds.isdisjoint(CLASSES)
        name = member.name.removeprefix("./")
        if is_image(name) and not hidden(name):
            folder = "/".join(part for part in name.split("/")[:-1] if part.lower() not in SPLIT_NAMES)
            folders |= {folder: None} if folder else {}
        if count >= FIRST and (first is None or by_text or not folders):
            break
    if first is None:
        return None
    return FirstSample(shard, first, tuple(sorted(seen[first])), () if by_text else tuple(folders)[:2])


def _has_image(kinds: set[str]) -> bool:
    return any(is_image(f"x.{kind}") for kind in kinds)


def is_shard(name: str) -> bool:
    return name.endswith((".tar", ".tar.gz", ".tgz"))


def split_key(name: str) -> tuple[str, str]:
    """`a/b.seg.png` → (`a/b`, `seg.png`): the key ends at the first dot of the file's name."""
    folder, _, file = name.rpartition("/")
    stem, _, kind = file.partition(".")
    return (f"{folder}/{stem}" if folder else stem), kind.lower()
