"""Files that look like images by name and fail to decode: one way of going wrong each."""

import io
import struct
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


def _encoded(image: Pixels, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind)
    return out.getvalue()


def truncated_jpeg(image: Pixels) -> bytes:
    """A JPEG whose second half was never written."""
    whole = _encoded(image, "JPEG")
    return whole[: len(whole) // 2]


def empty(image: Pixels) -> bytes:
    """No bytes at all."""
    return b""


def text(image: Pixels) -> bytes:
    """An error page saved under an image's name."""
    return b"<html><body>404: the photograph you asked for is not here</body></html>\n"


def corrupt_png(image: Pixels) -> bytes:
    """A PNG with a sound header and zeros over the first half of its pixel data.

    From the very start: zeros further in can pass for pixels, and Pillow checks no checksum there.
    """
    whole = bytearray(_encoded(image, "PNG"))
    start = whole.index(b"IDAT")
    (length,) = struct.unpack(">I", whole[start - 4 : start])
    for at in range(start + 4, start + 4 + length // 2):
        whole[at] = 0
    return bytes(whole)


WAYS: tuple[tuple[str, Callable[[Pixels], bytes]], ...] = (  # the file's name and what is in it
    ("truncated.jpg", truncated_jpeg),
    ("empty.jpg", empty),
    ("text.jpg", text),
    ("corrupt.png", corrupt_png),
)
