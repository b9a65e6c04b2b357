"""A first look at a source, by which layouts recognise themselves."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TypeVar

from ...core.errors import UserError
from ...core.storage import Storage, join
from .item import ARCHIVE_SUFFIXES, IMAGE_SUFFIXES, MANIFEST_SUFFIXES, VIDEO_SUFFIXES, VOLUME_SUFFIXES, hidden
from .samples import FirstSample, first_sample

LOOK = 1000
"""Files of a folder that are looked at."""
AT_ONCE = 16
"""Small files that are read side by side."""
PART = 64 * AT_ONCE
"""Files whose names and contents are held at a time."""
T = TypeVar("T")


@dataclass(frozen=True)
class Look:
    uri: str
    storage: Storage

    @property
    def one(self) -> bool:
        """Whether the URI names a file, by its suffix."""
        return self.uri.lower().endswith(
            (
                *ARCHIVE_SUFFIXES,
                *MANIFEST_SUFFIXES,
                *VOLUME_SUFFIXES,
                *VIDEO_SUFFIXES,
                *IMAGE_SUFFIXES,
                ".json",
                ".npz",
                ".mdb",
            )
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Paths below the URI of its first files, hidden ones too; none where it is a file itself."""
        if self.one:
            return ()
        return tuple(name for name, _ in islice(relative(self.uri, self.storage), LOOK))

    @cached_property
    def top(self) -> tuple[str, ...]:
        """The first names directly under the URI; none where it is a file itself."""
        return () if self.one else tuple(self.storage.glance(self.uri))

    @cached_property
    def sample(self) -> FirstSample | None:
        """Of its first tar, whose first members are read once for all layouts that ask."""
        return first_sample(self.uri, self.names, self.storage)


def relative(uri: str, storage: Storage) -> Iterator[tuple[str, int]]:
    """(path below the URI, size) of every file, as a stream."""
    root = uri.rstrip("/") + "/"
    for name, size in storage.walk(uri):
        if name.startswith(root):
            yield name[len(root) :], size
        else:  # the store spells its root otherwise: s3a://, a symbolic link
            yield name.split("://", 1)[-1].removeprefix(root.split("://", 1)[-1]), size


def files(uri: str, storage: Storage, one: bool) -> Iterator[tuple[str, str]]:
    """(URI, path below the source) of a source that is `one` file, or of every file below it that is not hidden."""
    if one:
        yield uri, uri.rsplit("/", 1)[-1]
        return
    for name, _ in relative(uri, storage):
        if not hidden(name):
            yield join(uri, name), name


def read_all(uris: Iterable[str], storage: Storage) -> Iterator[bytes]:
    """The contents of many small files, in order, some side by side. Raises UserError for one that is not there."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for part in parts(uris):
            yield from pool.map(storage.read, part)


def text(uri: str, storage: Storage) -> str:
    """A small file of words. Raises UserError where they are not UTF-8."""
    try:
        return storage.read(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{uri}: not a text in UTF-8: {error}") from error


def lines(uri: str, storage: Storage) -> Iterator[str]:
    """The lines of a text, however many, as a stream. Raises UserError where they are not UTF-8."""
    fs, path = storage.fs(uri)
    with storage.retry(uri, lambda: fs.open(path, "rb")) as raw:
        try:
            yield from io.TextIOWrapper(raw, "utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{uri}: not a text in UTF-8: {error}") from error


def parts(items: Iterable[T], most: int = PART) -> Iterator[list[T]]:
    """Lists of at most so many, in order."""
    rest = iter(items)
    while part := list(islice(rest, most)):
        yield part


def stem(name: str) -> str:
    """`a/b.c.jpg` → `b.c`."""
    return name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
