"""LMDB environments whose values are encoded images, as LSUN hands them out: `bedroom_train_lmdb/data.mdb`.

`<category>_<split>_lmdb` gives label and split; any other folder's name does what an image folder's would. Keys may be
any bytes. The file is not opened with the LMDB library, which maps it into memory (a bucket cannot be mapped, and a
file cut short ends the process): its tree is walked by byte ranges, every page once, and each value is a byte range of
the file, so that no copy is made and tasks read a bucket as they read a tar. Source: LMDB 0.9, `mdb.c`, "Page Format".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from ...core.errors import UserError
from ...core.sample import Split
from ...core.storage import Storage
from .item import SPLIT_NAMES, Reference, hidden, placed
from .look import AT_ONCE, Look, relative

NAME = "data.mdb"
MAGIC = 0xBEEFC0DE
HEAD = 16
"""Bytes of a page's header, where pointers have 64 bits."""
BRANCH, LEAF = 1, 2
BIG, NESTED = 1, 2 | 4
"""Flags of a leaf's entry: its value has pages of its own; it is a named database, or several values of one key."""
NOWHERE = 2**64 - 1
DEEPEST = 32
"""Pages from root to leaf: LMDB's own limit."""

_LSUN = re.compile(r"(?:(.+)_)?(train|val|test)_lmdb$")


def recognise(look: Look) -> str | None:
    if look.uri.endswith(f"/{NAME}"):
        return "its name is LMDB's"
    return next((f"it has {name}" for name in look.names if name.rsplit("/", 1)[-1] == NAME), None)


def listing(uri: str, storage: Storage, work: str = "") -> Iterator[Reference]:
    """Raises UserError for a file that is not LMDB's, is of another machine, is cut short, or whose tree is broken. Named
    databases and several values of one key are reported."""
    uri = uri.removesuffix(f"/{NAME}").rstrip("/")
    found = 0
    for name, size in relative(uri, storage):
        folder, _, last = name.rpartition("/")
        at = f"{uri}/{name}"
        if last == NAME:
            found += 1
            label, split = _said(folder or uri.rsplit("/", 1)[-1])
            for key, offset, length, reason in entries(at, size, storage):
                where = f"{at}!{_shown(key)}"
                yield Reference(where, at, "range", offset, length, label=label, split=split, reason=reason)
        elif last != "lock.mdb" and not hidden(name):
            yield Reference(at, at, reason="not an LMDB environment's data.mdb")
    if not found:
        raise UserError(f"{uri}: no {NAME} below it")


def _said(folder: str) -> tuple[str | None, Split | None]:
    if match := _LSUN.match(folder.rsplit("/", 1)[-1]):
        return match[1], SPLIT_NAMES[match[2]]
    return placed(f"{folder}/{NAME}")


def _shown(key: bytes) -> str:
    text = key.decode("ascii", "replace")
    return text if text.isascii() and text.isprintable() else f"0x{key.hex()}"


@dataclass(frozen=True)
class _File:
    uri: str
    size: int
    storage: Storage
    page: int
    """Bytes of a page."""

    def read(self, number: int) -> bytes:
        self.within(number * self.page + self.page)
        return self.storage.read_range(self.uri, number * self.page, (number + 1) * self.page)

    def within(self, end: int) -> None:
        if end > self.size:
            raise UserError(f"{self.uri}: cut short: it has {self.size} bytes, and its data go on to {end}")


def entries(uri: str, size: int, storage: Storage) -> Iterator[tuple[bytes, int, int, str | None]]:
    """(key, offset of its value in the file, bytes of its value, reason why it cannot be used) in the keys' order.
    `size`: the file's, in bytes."""
    page, root, pages, stated = _newest(uri, storage.read_range(uri, 0, min(size, 2**17)))
    file = _File(uri, size, storage, page)
    left, found = [pages], 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for entry in _walk(file, file.read(root), left, pool) if root != NOWHERE else ():
                found += 1
                stated = -1 if entry[3] else stated  # one key's several values count as many
                yield entry
        except (struct.error, IndexError) as error:
            raise UserError(f"{uri}: its tree of pages is broken") from error
    if found != stated >= 0:
        raise UserError(f"{uri}: its tree of pages is broken: {found} of {stated} entries are there")


def _newest(uri: str, head: bytes) -> tuple[int, int, int, int]:
    """(bytes of a page, root page of the main database, pages in use, entries) by the newer of the two meta pages."""
    if len(head) < 152:
        raise UserError(f"{uri}: not LMDB's: {len(head)} bytes")
    magic = struct.pack("<I", MAGIC)
    if head[16:20] == magic[::-1] or head[12:16] in (magic, magic[::-1]):
        raise UserError(
            f"{uri}: an LMDB file of another kind of machine (big-endian, or 32 bits); make it anew: mdb_dump there, mdb_load here"
        )
    found = []
    (page,) = struct.unpack_from("<I", head, 40)
    for at in (0, page):
        if head[at + 16 : at + 20] == magic and len(head) >= at + 152:
            version, pages, number = (
                *struct.unpack_from("<I", head, at + 20),
                *struct.unpack_from("<QQ", head, at + 136),
            )
            found.append((number, version, *struct.unpack_from("<QQ", head, at + 120), pages + 1))
    if not found or not 256 <= page <= 2**16 or page & (page - 1):
        raise UserError(f"{uri}: not LMDB's: no meta page at its start")
    _, version, stated, root, pages = max(found)
    if version != 1:
        raise UserError(f"{uri}: version {version} of LMDB's file format; version 1 (LMDB 0.9) is read")
    return page, root, pages, stated


def _walk(
    file: _File, page: bytes, left: list[int], pool: Executor, depth: int = 1
) -> Iterator[tuple[bytes, int, int, str | None]]:
    left[0] -= 1
    number, flags, lower = struct.unpack_from("<QxxHH", page)
    if left[0] < 0 or depth > DEEPEST or not flags & (BRANCH | LEAF) or not HEAD <= lower <= len(page):
        raise UserError(f"{file.uri}: its tree of pages is broken at page {number}")
    places = struct.unpack_from(f"<{(lower - HEAD) // 2}H", page, HEAD)
    if flags & BRANCH:
        below = [
            low | middle << 16 | high << 32
            for low, middle, high in (struct.unpack_from("<HHH", page, at) for at in places)
        ]
        for start in range(0, len(below), AT_ONCE):
            for child in pool.map(file.read, below[start : start + AT_ONCE]):
                yield from _walk(file, child, left, pool, depth + 1)
        return
    for at in places:
        low, high, kind, width = struct.unpack_from("<HHHH", page, at)
        key, begin, length = page[at + 8 : at + 8 + width], at + 8 + width, low | high << 16
        if kind & NESTED:
            yield key, 0, 0, "a named database or several values of one key: only plain keys and values are read"
            continue
        offset = number * file.page + begin
        if kind & BIG:
            offset = struct.unpack_from("<Q", page, begin)[0] * file.page + HEAD
        file.within(offset + length)
        yield key, offset, length, None
