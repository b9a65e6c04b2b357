"""HEIC's and AVIF's metadata overwritten where it lies: no offset changes, and the pixels are the same bytes.

Both are items in a file of boxes, Exif and XMP among them. Specifications: ISO/IEC 14496-12 (boxes, 8.11: items), ISO/IEC 23008-12 (HEIF,
annex A: Exif and XMP), AV1 Image File Format 1.1. Orientation is a property of the picture (`irot`, `imir`), and stays.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from .metadata_tiff import Stretch, overlap

GONE = (b"Exif", b"mime", b"uri ")
"""Types of items of metadata: `mime` has XMP, and whatever else is a text."""


def heif(data: bytes, exif: bytes) -> bytes | None:
    """A HEIC or AVIF still of as many bytes without what its Exif and XMP say. None where its structure is broken or has what is not
    understood: sequences, items in other files. `exif`: what stands in place of the Exif."""
    try:
        found = _Items(data)
        cleared, kept = found.stretches()
    except (struct.error, ValueError, LookupError):
        return None
    if overlap([stretch for _, part in cleared for stretch in part], kept):
        return None
    out = bytearray(data)
    for kind, part in cleared:
        for begin, end in part:
            out[begin:end] = (b"\0" if kind == b"Exif" else b" ") * (end - begin)
        if kind == b"Exif" and part and part[0][1] - part[0][0] >= 4 + len(exif):
            out[part[0][0] : part[0][0] + 4 + len(exif)] = bytes(4) + exif
    for begin, end in found.private:
        out[begin:end] = b"free".ljust(end - begin, b"\0")
    return bytes(out)


@dataclass
class _Items:
    """What the box `meta` says of a file's items. Raises ValueError, LookupError or struct.error for what is broken or not understood."""

    data: bytes
    kinds: dict[int, bytes] = field(default_factory=dict)
    places: dict[int, list[Stretch]] = field(default_factory=dict)
    private: list[Stretch] = field(default_factory=list)
    """Boxes of somebody's own (`uuid`), from their types on."""

    def __post_init__(self) -> None:
        metas = []
        for kind, at, begin, end in _boxes(self.data, 0, len(self.data)):
            if kind == b"moov":
                raise ValueError("a sequence")
            metas += [(begin, end)] if kind == b"meta" else []
            self.private += [(at + 4, end)] if kind == b"uuid" else []
        ((begin, end),) = metas
        inside = {kind: (first, last) for kind, _, first, last in _boxes(self.data, begin + 4, end)}
        if b"uuid" in inside:
            raise ValueError("a private box")
        self._read_kinds(*inside[b"iinf"])
        self._read_places(*inside[b"iloc"], inside.get(b"idat", (0, 0)))

    def stretches(self) -> tuple[list[tuple[bytes, list[Stretch]]], list[Stretch]]:
        """(type and places of each item of metadata, places of all others)."""
        gone = [(kind, self.places.get(item, [])) for item, kind in self.kinds.items() if kind in GONE]
        stay = [part for item, parts in self.places.items() if self.kinds.get(item) not in GONE for part in parts]
        return gone, stay

    def _read_kinds(self, begin: int, end: int) -> None:
        wide = self.data[begin] > 0
        for kind, _, at, _ in _boxes(self.data, begin + (8 if wide else 6), end):
            version = self.data[at]
            if kind != b"infe" or version not in (2, 3):
                raise ValueError("items of an older form")
            number = ">HxxI" if version == 2 else ">IxxI"
            item, name = struct.unpack_from(number, self.data, at + 4)
            if item in self.kinds:
                raise ValueError("two items of one number")
            self.kinds[item] = struct.pack(">I", name)

    def _read_places(self, begin: int, end: int, idat: Stretch) -> None:
        read = _Reader(self.data, begin + 4, end)
        version, sizes = self.data[begin], read.number(2)
        offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
        if version > 2:
            raise ValueError("places of a newer form")
        for _ in range(read.number(4 if version == 2 else 2)):
            item = read.number(4 if version == 2 else 2)
            method = read.number(2) & 15 if version else 0
            elsewhere, first = read.number(2), read.number(base)
            if elsewhere or method > 1 or item in self.places:
                raise ValueError("a place in another file or item")
            parts = self.places.setdefault(item, [])
            for _ in range(read.number(2)):
                read.number(index if version else 0)
                at, size = first + read.number(offset) + (idat[0] if method else 0), read.number(length)
                if not size or at + size > (idat[1] if method else len(self.data)):
                    raise ValueError("a place beyond the end, or of no size")
                parts.append((at, at + size))


@dataclass
class _Reader:
    data: bytes
    at: int
    end: int

    def number(self, size: int) -> int:
        """Of so many bytes, most significant first."""
        self.at += size
        if self.at > self.end:
            raise ValueError("cut short")
        return int.from_bytes(self.data[self.at - size : self.at], "big")


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int, int]]:
    """(type, where it begins, where its content begins, where it ends) of the boxes in a stretch."""
    while at < end:
        size, kind = struct.unpack_from(">I4s", data, at)
        begin = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, begin)
            begin += 8
        last = at + size if size else end
        if not begin <= last <= end:
            raise ValueError("a box beyond the end")
        yield kind, at, begin, last
        at = last
