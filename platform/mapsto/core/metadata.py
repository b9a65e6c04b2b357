"""Metadata that an image does not need for its pixels, taken out without decoding them: places, people, cameras, texts.

What stays is a list of what decoding needs, colour profile and orientation with it; the compressed pixels are the same
bytes. In HEIC, AVIF and TIFF, whose parts point to each other's places, it is overwritten where it lies. Specifications: JPEG, ITU-T T.81; PNG, third edition (W3C); WebP, RFC 9649; Exif, CIPA DC-008.
"""

from __future__ import annotations

import struct
import zlib

from .codecs import HEIF_BRANDS, header
from .errors import UserError
from .jpeg import EXIF, ICC, content, picture_end, segments
from .metadata_heif import heif
from .metadata_tiff import tiff

FREE = ("bmp", "dib", "ppm", "pcx", "ico", "tga", "qoi", "dds")
"""Formats, by `Header.format`, that hold no such metadata."""
PNG_KEPT = {
    b"tRNS",
    b"gAMA",
    b"cHRM",
    b"sRGB",
    b"iCCP",
    b"sBIT",
    b"bKGD",
    b"pHYs",
    b"hIST",
    b"cICP",
    b"mDCV",
    b"cLLI",
} | {
    b"acTL",
    b"fcTL",
    b"fdAT",
}
"""Besides the critical chunks, whose names begin with a capital."""
WEBP_KEPT = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"}
PNG, EXIF_FLAG, XMP_FLAG = b"\x89PNG\r\n\x1a\n", 8, 4


def stripped(data: bytes, max_pixels: int) -> bytes | None:
    """A JPEG, PNG or WebP without Exif (but its orientation), XMP, IPTC, maker notes, comments, thumbnails, further
    pictures and whatever follows its end; a HEIC, AVIF or TIFF with Exif, XMP, IPTC and texts overwritten. It decodes to the same pixels.
    None where that cannot be done: other formats, and files whose structure is broken. Raises UserError for what `codecs.header` refuses."""
    if data[:3] == b"\xff\xd8\xff":
        return _jpeg(data, max_pixels)
    if data[:8] == PNG:
        return _png(data, max_pixels)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data, max_pixels)
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _same(data, tiff(data), max_pixels)
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", *HEIF_BRANDS):
        return _same(data, heif(data, exif(1)), max_pixels)
    return None


def _same(data: bytes, bare: bytes | None, max_pixels: int) -> bytes | None:
    """What is left of a file that was overwritten; None where it does not say the same of its pixels."""
    if bare is None or bare == data:
        return bare
    before = header(data, max_pixels)
    try:
        return bare if header(bare, max_pixels) == before else None
    except UserError:
        return None


def exif(orientation: int) -> bytes:
    """Exif of an orientation alone, as a TIFF file of one entry."""
    return b"MM\x00*\x00\x00\x00\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


def _jpeg(data: bytes, max_pixels: int) -> bytes | None:
    head, place, dropped = [data[:2]], 2, False
    scan = None
    for marker, begin, end in segments(data):
        if begin != place:
            return None
        place = end
        if marker == 0xDA:
            scan = begin
            break
        if _needed(marker, content(data, begin, end)):
            head.append(data[begin:end])
        else:
            dropped = True
    if scan is None:
        return None
    stop = picture_end(data, place) or len(data)
    if not dropped and stop == len(data):
        return data
    orientation = header(data, max_pixels).orientation
    if orientation != 1:
        minimal = EXIF + exif(orientation)
        after = 2 if len(head) > 1 and head[1][1] == 0xE0 else 1  # JFIF's segment comes first
        head.insert(after, b"\xff\xe1" + struct.pack(">H", len(minimal) + 2) + minimal)
    return b"".join([*head, data[scan:stop]])


def _needed(marker: int, inside: bytes) -> bool:
    """Whether a segment is needed to decode: no APPn but JFIF's, a colour profile and Adobe's; no comment."""
    if marker == 0xE0:
        return inside[:5] == b"JFIF\x00"
    if marker == 0xE2:
        return inside.startswith(ICC)
    if marker == 0xEE:
        return inside[:5] == b"Adobe"
    return not (0xE0 <= marker <= 0xEF or marker == 0xFE)


def _png(data: bytes, max_pixels: int) -> bytes | None:
    kept, place, dropped = [PNG], 8, False
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        name, end = data[place + 4 : place + 8], place + 12 + size
        if end > len(data):
            return None
        if name[:1].isupper() or name in PNG_KEPT:
            kept.append(data[place:end])
        else:
            dropped = True
        place = end
        if name == b"IEND":
            break
    else:
        return None
    if not dropped and place == len(data):
        return data
    orientation = header(data, max_pixels).orientation
    if orientation != 1:
        body = b"eXIf" + exif(orientation)
        kept.insert(2, struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
    return b"".join(kept)


def _webp(data: bytes, max_pixels: int) -> bytes | None:
    stop = 8 + int.from_bytes(data[4:8], "little")
    if stop > len(data):
        return None
    kept, place, dropped = [], 12, stop < len(data)
    while place + 8 <= stop:
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        end = place + 8 + size + (size & 1)
        if place + 8 + size > stop:
            return None
        if name in WEBP_KEPT:
            kept.append(data[place:end])
        else:
            dropped = True
        place = end
    if not dropped:
        return data
    orientation = header(data, max_pixels).orientation
    if kept and kept[0][:4] == b"VP8X":
        flags = kept[0][8] & ~(EXIF_FLAG | XMP_FLAG) | (EXIF_FLAG if orientation != 1 else 0)
        kept[0] = kept[0][:8] + bytes([flags]) + kept[0][9:]
        if orientation != 1:
            body = exif(orientation)
            kept.append(b"EXIF" + struct.pack("<I", len(body)) + body)
    inside = b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(inside) + 4) + b"WEBP" + inside
