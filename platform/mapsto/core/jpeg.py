"""The marker segments of a JPEG file: ISO/IEC 10918-1 (ITU-T T.81), annex B."""

from __future__ import annotations

import re
from collections.abc import Iterator

EXIF, XMP, ICC = b"Exif\x00\x00", b"http://ns.adobe.com/xap/1.0/\x00", b"ICC_PROFILE\x00"


_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Within a scan: no stuffed byte, no restart, no fill."""


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, where its segment begins, where it ends) up to the start of the picture's first scan; a segment begins
    with 0xFF (before any fill bytes), and its content four bytes after its last one. Ends early where it is broken."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        begin = place
        while place + 4 < len(data) and data[place + 1] == 0xFF:  # fill bytes
            place += 1
        marker, size = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in (0xD9, 0xFF) or size < 2 or place + 2 + size > len(data):
            return
        yield marker, begin, place + 2 + size
        if marker == 0xDA:
            return
        place += 2 + size


def content(data: bytes, begin: int, end: int) -> bytes:
    """A segment's bytes after its length."""
    while data[begin + 1] == 0xFF:
        begin += 1
    return data[begin + 4 : end]


def picture_end(data: bytes, place: int) -> int | None:
    """Where the picture ends, after its end marker, from within a scan; None where it has none."""
    while found := _MARKER.search(data, place):
        place = found.start()
        if data[place + 1] == 0xD9:
            return place + 2
        size = int.from_bytes(data[place + 2 : place + 4], "big")  # the next scan's tables and header
        place += 2 + max(size, 2)
    return None
