"""Encoded bytes ↔ pixels. One decoder for ingest, training, prediction and the endpoint."""

from __future__ import annotations

import io
import math
import os
import struct
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageCms, ImageOps

from .errors import UserError
from .jpeg import EXIF, ICC, XMP, content, segments

MAX_PIXELS = 100_000_000
"""Images above this are refused at the door, before a pixel is decoded (a decompression bomb, or a mistake): by `ingest` where the recipe has
no other limit, by the endpoint, `predict` and `search`. What a data set holds has passed it, and is read whatever its size."""

HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")

SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
}
"""By which a file that no decoder takes is told to be damaged, rather than something else."""

BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
)
"""What Pillow raises for damaged files: each plugin has its own (AVIF RuntimeError, DDS NotImplementedError, which is one)."""

_SRGB = ImageCms.createProfile("sRGB")

Image.MAX_IMAGE_PIXELS = None  # ours is checked from the header, with a clear message, before Pillow decodes
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image say. Sizes are in pixels as stored, before EXIF orientation."""

    format: str
    width: int
    height: int
    mode: str
    orientation: int
    """EXIF orientation, 1..8; 1 when absent."""


def header(data: bytes, max_pixels: int | None = None) -> Header:
    """Read an image's header; raises UserError for empty, unknown or too large input (None: of any size)."""
    if not data:
        raise UserError("empty file")
    if (plain := _jpeg_header(data)) is not None:
        _check_size(plain.width, plain.height, max_pixels)
        return plain
    _know_heif(data)
    try:
        with quiet(data), Image.open(io.BytesIO(data)) as image:
            _check_size(image.width, image.height, max_pixels)  # first: a PNG's EXIF may lie behind its pixels
            orientation = _valid_orientation(image.getexif().get(0x0112, 1))
            return Header((image.format or "?").lower(), image.width, image.height, image.mode, orientation)
    except BROKEN as error:
        raise UserError(f"not an image that can be read: {_reason(error, data)}") from error


class _Hush:
    """File descriptor 2 on /dev/null as long as any thread asks for it: the first one in turns it away, the last one out back."""

    def __init__(self) -> None:
        self.lock, self.inside, self.saved = threading.Lock(), 0, -1

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 2)
                os.close(null)
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                os.dup2(self.saved, 2)
                os.close(self.saved)


_HUSH = _Hush()


@contextmanager
def quiet(data: bytes) -> Generator[None]:
    """Decoders of the rarer formats (libtiff, and others) write warnings to file descriptor 2, past Python: they would flood the
    workers' logs. Threads may overlap."""
    if data[:3] == b"\xff\xd8\xff" or data[:4] == b"\x89PNG":
        yield
        return
    with _HUSH:
        yield


def _check_size(width: int, height: int, max_pixels: int | None) -> None:
    if max_pixels is not None and width * height > max_pixels:
        raise UserError(
            f"too large: {width}x{height} is {width * height / 1e6:.0f} megapixels, over the limit of "
            f"{max_pixels / 1e6:.0f} (max_pixels)"
        )


def _jpeg_header(data: bytes) -> Header | None:
    """A JPEG's that Pillow has nothing to add to: without Exif, XMP or further pictures. None for any other."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    marker = 0
    frame = b""
    for marker, begin, end in segments(data):
        if marker == 0xE1 or (marker == 0xE2 and not content(data, begin, end).startswith(ICC)):
            return None
        if 0xC0 <= marker <= 0xC2:  # baseline, extended, progressive
            frame = content(data, begin, end)
    if marker != 0xDA or len(frame) < 6 or frame[0] != 8:
        return None
    mode = {1: "L", 3: "RGB"}.get(frame[5])
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    return Header("jpeg", width, height, mode, 1) if mode and height and width else None


def _know_heif(data: bytes) -> None:
    """HEIF's decoder is loaded by the first such file (ISO/IEC 23008-12, 10.2); AVIF is Pillow's own."""
    if data[4:8] != b"ftyp" or "HEIF" in Image.OPEN:
        return
    brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    if b"avif" in brands or not any(brand in brands for brand in HEIF_BRANDS):
        return
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise UserError("HEIC needs pillow-heif, which is not installed: pip install 'mapsto[formats]'") from error
    register_heif_opener(thumbnails=False)


def upright_size(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels of an encoded image, upright as `decode` gives it, from its header alone. Raises as
    `header` does."""
    return _upright(header(data))


def _upright(head: Header) -> tuple[int, int]:
    return (head.width, head.height) if head.orientation >= 5 else (head.height, head.width)


Part = tuple[int, int, int, int]
"""Top, left, height and width in pixels of the whole image, upright."""


def decode(
    data: bytes, max_pixels: int | None = None, *, at_least: int | None = None, part: Part | None = None
) -> np.ndarray:
    """Decode any image to H×W×3 uint8 sRGB, upright (EXIF orientation applied), its colour profile applied, first
    frame, alpha over white.

    `at_least`: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side stays at least so many
    pixels (the scaled DCT of libjpeg); None decodes at full size. `part`: only this part comes back, at the size at which
    the image was decoded. Raises UserError for what cannot be decoded whole, and for more than `max_pixels`.
    """
    if data[:3] == b"\xff\xd8\xff":
        fast = _jpeg(data, max_pixels, at_least, part)
        if fast is not None:
            return fast
    head = header(data, max_pixels)
    try:
        with quiet(data), Image.open(io.BytesIO(data)) as image:
            if at_least is not None:  # JPEG only; the others ignore it
                factor = at_least / min(image.size)
                image.draft(None, (math.ceil(image.width * factor), math.ceil(image.height * factor)))
            image.load()
            upright = ImageOps.exif_transpose(image)
            if part is not None:
                y0, x0, y1, x1 = window(part, _upright(head), (upright.height, upright.width))
                upright = upright.crop((x0, y0, x1, y1))
            return np.asarray(_to_rgb(_to_srgb(upright)))
    except UserError:
        raise
    except BROKEN as error:
        raise UserError(f"cannot be decoded: {_reason(error)}") from error


def decode_mask(data: bytes, max_pixels: int | None = None) -> np.ndarray:
    """Decode a mask of class ids to H×W uint8: a palette's indices or grey values as they are, never its colours."""
    head = header(data, max_pixels)
    try:
        with quiet(data), Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode not in ("P", "L", "1", "I", "I;16"):
                raise UserError(f"a mask of class ids is grey or has a palette; this one's mode is {image.mode}")
            array = np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)
    except BROKEN as error:
        raise UserError(f"mask cannot be decoded: {_reason(error)}") from error
    if array.max(initial=0) > 255:
        raise UserError(f"mask ids must be 0..255, this {head.format} has {array.max()}")
    return array.astype(np.uint8)


def encode(image: np.ndarray, format: str = "jpeg", quality: int = 90) -> bytes:
    """Encode H×W×3 uint8 RGB or H×W uint8 as `jpeg`, `png` or `webp`."""
    if format == "jpeg" and image.ndim == 3:
        return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorspace="RGB")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=format.upper(), **({} if format == "png" else {"quality": quality}))
    return buffer.getvalue()


def window(part: Part, full: tuple[int, int], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """(y0, x0, y1, x1) of a part of an image of `full` size (height, width), in one of `shape`, which may be smaller; at
    least a pixel."""
    top, left, height, width = part
    down, across = shape[0] / full[0], shape[1] / full[1]
    y0, x0 = min(round(top * down), shape[0] - 1), min(round(left * across), shape[1] - 1)
    return y0, x0, max(y0 + 1, round((top + height) * down)), max(x0 + 1, round((left + width) * across))


def _jpeg(data: bytes, max_pixels: int | None, at_least: int | None, part: Part | None) -> np.ndarray | None:
    """The fast path; None hands CMYK, broken, oriented ones and grey ones with a colour profile to the careful path."""
    try:
        head: Any = simplejpeg.decode_jpeg_header(data)
        height, width, colorspace = head[:3]
        if colorspace not in ("YCbCr", "RGB", "Gray") or data[-2:] != b"\xff\xd9":
            return None
        _check_size(width, height, max_pixels)
        pieces = [
            (marker, content(data, begin, end)) for marker, begin, end in segments(data) if marker in (0xE1, 0xE2)
        ]
        turned = any(marker == 0xE1 and piece.startswith((EXIF, XMP)) for marker, piece in pieces)
        if turned and header(data, max_pixels).orientation != 1:
            return None
        # In order of their numbers; the first has the description.
        pieces = sorted(piece for marker, piece in pieces if marker == 0xE2 and piece.startswith(ICC))
        profile = b"".join(piece[len(ICC) + 2 :] for piece in pieces)
        if not (plain := _is_srgb(profile)) and colorspace == "Gray":
            return None
        # Whole powers of two only: libjpeg-turbo's other scales (7/8, 5/8, ...) take longer than the full size.
        scale = 1 if at_least is None else 2 ** min(max(math.floor(math.log2(min(height, width) / at_least)), 0), 3)
        image = simplejpeg.decode_jpeg(
            data,
            colorspace="RGB",
            min_height=math.ceil(height / scale),
            min_width=math.ceil(width / scale),
            min_factor=1.0,
        )
    except ValueError:
        return None
    if part is not None:
        y0, x0, y1, x1 = window(part, (height, width), image.shape)
        image = image[y0:y1, x0:x1]
    return image if plain else np.asarray(_with_profile(Image.fromarray(image), profile))


def _is_srgb(profile: bytes) -> bool:
    """Whether a profile calls itself sRGB (or is none), in ICC version 2's ASCII or version 4's UTF-16."""
    return not profile or b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile


def _to_srgb(image: Image.Image) -> Image.Image:
    """The image in sRGB, by its embedded profile; as it is where the profile is broken or of other channels."""
    profile = image.info.get("icc_profile") or b""
    if image.mode == "P" and not _is_srgb(profile):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if _is_srgb(profile) or image.mode not in ("RGB", "RGBA", "L", "LA", "CMYK"):
        return image
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    colours = image.convert({"RGBA": "RGB", "LA": "L"}[image.mode]) if alpha else image
    out = _with_profile(colours, profile)
    if out is colours:
        return image
    if alpha:
        out.putalpha(alpha)
    return out


def _with_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """RGB, L or CMYK → sRGB; the image itself where the profile is broken or of other channels."""
    try:
        out = ImageCms.applyTransform(image, _from_profile(profile, image.mode))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    assert out is not None  # not in place
    return out


@lru_cache(maxsize=64)
def _from_profile(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    """A profile's way to sRGB. It takes as long to make as three images to decode, and cameras have few profiles."""
    return ImageCms.buildTransform(ImageCms.ImageCmsProfile(io.BytesIO(profile)), _SRGB, mode, "RGB")


def _to_rgb(image: Image.Image) -> Image.Image:
    # PNG's and GIF's one transparent colour, too.
    keyed = image.mode in ("P", "RGB", "L", "1") and "transparency" in image.info
    if image.mode in ("RGBA", "LA", "PA") or keyed:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        values = np.asarray(image).astype(np.float64)
        # 16 bits have their range, however dark; 32 bits have none of their own.
        top = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
        return Image.fromarray((values.clip(0, top) * (255.0 / top)).round().astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _valid_orientation(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _reason(error: BaseException, data: bytes = b"") -> str:
    text = str(error).split("\n")[0]
    if "cannot identify" in text:
        kind = next((name for first, name in SIGNATURES.items() if data.startswith(first)), None)
        return f"it begins as a {kind}, whose header is damaged" if kind else "unknown format"
    return text or type(error).__name__


def fit(image: np.ndarray, longest: int) -> np.ndarray:
    """Shrink so that the longest side is at most `longest` pixels (area filter); smaller images stay as they are."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
