"""A TIFF's metadata overwritten where it lies: no offset changes, and the pixels are the same bytes.

Specification: TIFF, revision 6.0 (Adobe, 1992); Exif, CIPA DC-008, whose directories hang below a TIFF's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Bytes of a value, by its type."""
KEPT = {
    *(254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 274, 277, 278, 279, 280, 281, 282, 283, 284, 290, 291, 292, 293, 296),
    *(297, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 332, 334, 336, 338, 339, 340, 341, 342, 347, *range(512, 522), 529, 530, 531),
    *(532, 34675, 50674),
}  # fmt: skip
"""Tags that decoding needs: size, samples, strips and tiles, compression, palette, colour, orientation, resolution, profile."""
DIRECTORIES = {34665, 34853, 40965}
"""Tags that lead to a directory of metadata: Exif, GPS, interoperability."""
PICTURES = {330, 400}
"""Tags that lead to directories of further pictures; a file with them is left."""
STRETCHES = {273: 279, 324: 325, 513: 514}
"""Tags of where pixels lie → of how many bytes they are."""
MOST_DIRECTORIES = 4096
MOST_ENTRIES = 2**16
"""Of all directories of a file together, which may lie in each other: bounds the work."""
MOST_PLACES = 2**21
"""Places and sizes of pixels' stretches, of all directories together."""
DEEPEST = 8
"""Directories of metadata within each other; a picture's Exif with its interoperability are two."""

Stretch = tuple[int, int]
"""Begin and end in the file."""


@dataclass
class _Found:
    data: bytes
    order: str
    written: list[tuple[int, bytes]] = field(default_factory=list)
    """Directories anew, by where they lie."""
    kept: list[Stretch] = field(default_factory=list)
    cleared: list[Stretch] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    entries_read: int = 0
    places_read: int = 0

    def entries(self, at: int) -> tuple[list[tuple[int, int, int, Stretch]], int]:
        """((tag, type, count, where its value lies) of each entry, where the directory ends). Raises ValueError and struct.error for a broken one."""
        if at in self.seen or len(self.seen) >= MOST_DIRECTORIES:
            raise ValueError("directories in a circle")
        self.seen.add(at)
        (count,) = struct.unpack_from(f"{self.order}H", self.data, at)
        self.entries_read += count
        if self.entries_read > MOST_ENTRIES:
            raise ValueError("too many entries")
        out = []
        for place in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(f"{self.order}HHI", self.data, place)
            size = SIZES[kind] * number
            begin = place + 8 if size <= 4 else struct.unpack_from(f"{self.order}I", self.data, place + 8)[0]
            if begin + size > len(self.data):
                raise ValueError("a value beyond the end")
            out.append((tag, kind, number, (begin, begin + size)))
        return out, at + 2 + 12 * count + 4

    def numbers(self, entry: tuple[int, int, int, Stretch]) -> tuple[int, ...]:
        _, kind, count, (begin, _) = entry
        self.places_read += count
        if kind not in (3, 4, 13) or self.places_read > MOST_PLACES:
            raise ValueError("no places")
        return struct.unpack_from(f"{self.order}{count}{'H' if kind == 3 else 'I'}", self.data, begin)


def tiff(data: bytes) -> bytes | None:
    """A TIFF of as many bytes whose directories have the tags alone that decoding needs; what the others said is zeros. None where its
    structure is broken, or has what is not understood: directories of further pictures, values of unknown types, 64-bit offsets, more
    directories and entries than cameras write."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return None
    found = _Found(data, order, kept=[(0, 8)])
    try:
        (at,) = struct.unpack_from(f"{order}I", data, 4)
        while at:
            at = _page(found, at)
    except (struct.error, ValueError, KeyError):
        return None
    if overlap(found.cleared, found.kept):
        return None
    out = bytearray(data)
    done = 0
    for begin, end in sorted(found.cleared):  # values may share bytes: each is written once
        out[max(begin, done) : end] = bytes(max(0, end - max(begin, done)))
        done = max(done, end)
    for at, directory in found.written:
        out[at : at + len(directory)] = directory
    return bytes(out)


def _page(found: _Found, at: int) -> int:
    """Note what of a picture's directory stays and goes; where the next one lies, 0 for none."""
    entries, end = found.entries(at)
    by_tag = {entry[0]: entry for entry in entries}
    if PICTURES & by_tag.keys() or len(by_tag) < len(entries):
        raise ValueError("further pictures, or a tag twice")
    kept = []
    for k, entry in enumerate(entries):
        if entry[0] in KEPT:
            place = at + 2 + 12 * k
            kept.append(found.data[place : place + 12])
            found.kept.append(entry[3])
        else:
            _clear(found, entry, (at, end))
    for where, size in STRETCHES.items():
        if where in by_tag:
            places, sizes = found.numbers(by_tag[where]), found.numbers(by_tag[size])
            found.kept += [(begin, begin + size) for begin, size in zip(places, sizes, strict=True)]
    following = found.data[end - 4 : end]
    (after,) = struct.unpack(f"{found.order}I", following)
    directory = struct.pack(f"{found.order}H", len(kept)) + b"".join(kept) + following
    found.kept.append((at, end))
    found.written.append((at, directory.ljust(end - at, b"\0")))
    return after


def _clear(found: _Found, entry: tuple[int, int, int, Stretch], directory: Stretch, depth: int = 0) -> None:
    """Note an entry's value, and the directories that it leads to, for zeros. `directory`: in which it lies, which is written anew, in
    `depth` others."""
    if entry[0] in DIRECTORIES:
        if depth == DEEPEST:
            raise ValueError("directories too deep within each other")
        for at in found.numbers(entry):
            entries, end = found.entries(at)
            for each in entries:
                _clear(found, each, (at, end), depth + 1)
            found.cleared.append((at, end))
    begin, end = entry[3]
    if not directory[0] <= begin < directory[1]:
        found.cleared.append((begin, end))


def overlap(cleared: list[Stretch], kept: list[Stretch]) -> bool:
    """Whether what is to be zeros has a byte of what is to stay."""
    last = gone = 0  # where what stays, and what goes, ends, of all that begins before
    for begin, end, stays in _sorted(cleared, kept):
        if (stays and begin < gone) or (not stays and begin < last):
            return True
        last, gone = (max(last, end), gone) if stays else (last, max(gone, end))
    return False


def _sorted(cleared: list[Stretch], kept: list[Stretch]) -> Iterator[tuple[int, int, bool]]:
    every = [(*each, False) for each in cleared] + [(*each, True) for each in kept]
    yield from sorted(each for each in every if each[1] > each[0])
