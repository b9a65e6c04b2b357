"""Files that are hard to read."""

from __future__ import annotations

import zlib

import numpy as np

from mapsto.core.codecs import encode


def bomb() -> bytes:
    """A PNG of a few bytes whose header claims 60,000×60,000 pixels."""
    data = bytearray(encode(np.zeros((8, 8, 3), np.uint8), "png"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2  # the header's width and height, then its checksum
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)
