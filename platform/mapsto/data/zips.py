"""Members of a zip, however many: its directory as a stream, and a member by what that said of it, without the directory.

`zipfile` holds a record of every member in memory wherever an archive is opened. Its own reader unpacks here, too.
Source: PKWARE, APPNOTE.TXT, ZIP File Format Specification 6.3.10, sections 4.3.7 and 4.3.12 to 4.3.16, 4.5.3.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

_END, _END64, _LOCATOR64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_ENTRY, _LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
MOST_COMMENT = 2**16 - 1
FARTHEST = 2**62
"""A place behind the end of any file."""
NEWEST = 63
"""Version of the format that is known, times ten."""
UTF8, ENCRYPTED, PATCHED, STRONG = 0x800, 0x1, 0x20, 0x40
"""Flags."""


class Member(NamedTuple):
    name: str
    offset: int
    """Of its header in the file."""
    size: int
    compressed: int
    method: int
    crc: int
    flags: int
    mode: int
    """As Unix has it; 0 where it is not known."""

    @property
    def end(self) -> int:
        """The first byte that is surely not its own."""
        return min(self.offset + _LOCAL.size + self.compressed, FARTHEST)


def members(raw: IO[bytes]) -> Iterator[Member]:
    """The directory's entries, in its order. Raises zipfile.BadZipFile for what is none, ValueError for a name that is not in the
    alphabet it claims, NotImplementedError for a newer format."""
    start, length, ahead = _directory(raw)
    raw.seek(start)
    while length > 0:
        head = raw.read(_ENTRY.size)
        if len(head) < _ENTRY.size or head[:4] != b"PK\x01\x02":
            raise zipfile.BadZipFile("bad entry in its directory")
        _, _, version, flags, method, _, _, crc, packed, size, names, extras, comments, *_, mode, offset = (
            _ENTRY.unpack(head)
        )
        rest = raw.read(names + extras + comments)
        if len(rest) < names + extras + comments:
            raise zipfile.BadZipFile("its directory is cut short")
        if version & 0xFF > NEWEST:
            raise NotImplementedError(f"zip file version {(version & 0xFF) / 10}")
        size, packed, offset = _wide(rest[names : names + extras], (size, packed, offset))
        name = _text(rest[:names], flags)
        yield Member(name, offset + ahead, size, packed, method, crc, flags, mode >> 16)
        length -= len(head) + len(rest)


def opened(raw: IO[bytes], name: str, offset: int, size: int, packed: tuple[int, int, int]) -> IO[bytes]:
    """A member's bytes. `packed`: its `method`, `compressed` and `crc`. Raises zipfile.BadZipFile where its header is another's,
    NotImplementedError for a way of packing that is not known."""
    if offset > raw.seek(0, 2):
        raise zipfile.BadZipFile("it lies behind the archive's end")
    raw.seek(offset)
    head = raw.read(_LOCAL.size)
    if len(head) < _LOCAL.size or head[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("no member where the directory has it")
    _, _, flags, *_, names, extras = _LOCAL.unpack(head)
    try:
        same = _text(raw.read(names), flags) == name
    except UnicodeDecodeError:
        same = False
    if not same:
        raise zipfile.BadZipFile("it has another name than in the directory")
    if flags & (PATCHED | STRONG | ENCRYPTED):
        raise NotImplementedError("encrypted, or a patch")
    raw.seek(extras, 1)
    about = zipfile.ZipInfo(name)
    about.compress_type, about.compress_size, about.CRC = packed
    about.file_size, about.flag_bits = size, flags
    return zipfile.ZipExtFile(raw, "r", about)  # ty: ignore[invalid-explicit-return]


def _directory(raw: IO[bytes]) -> tuple[int, int, int]:
    """Where the directory begins, its length, and how many bytes lie ahead of the archive proper."""
    whole = raw.seek(0, 2)
    last = min(whole, _END.size + MOST_COMMENT)
    raw.seek(whole - last)
    tail = raw.read(last)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise zipfile.BadZipFile("no directory at its end")
    end = whole - last + at
    _, _, _, _, _, length, offset, _ = _END.unpack_from(tail, at)
    before = end
    if end >= _LOCATOR64.size + _END64.size:
        raw.seek(end - _LOCATOR64.size - _END64.size)
        record, locator = raw.read(_END64.size), raw.read(_LOCATOR64.size)
        if locator[:4] == b"PK\x06\x07" and record[:4] == b"PK\x06\x06":
            length, offset = _END64.unpack(record)[-2:]
            before = end - _LOCATOR64.size - _END64.size
    ahead = before - length - offset
    if ahead < 0:
        raise zipfile.BadZipFile("its directory is not where it should be")
    return offset + ahead, length, ahead


def _wide(extra: bytes, values: tuple[int, int, int]) -> tuple[int, int, int]:
    """Size, packed size and offset, of which those that 32 bits do not hold are in the extra field 1."""
    out: list[Any] = list(values)
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind != 1:
            continue
        for k, value in enumerate(out):
            if value == 0xFFFFFFFF:
                if len(field) < 8:
                    raise zipfile.BadZipFile("a large member's sizes are missing")
                out[k], field = int.from_bytes(field[:8], "little"), field[8:]
        break
    return out[0], out[1], out[2]


def _text(name: bytes, flags: int) -> str:
    return name.decode("utf-8" if flags & UTF8 else "cp437").split("\0", 1)[0]
