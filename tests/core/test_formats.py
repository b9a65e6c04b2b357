"""Formats that are met more rarely, each against Pillow's own reading or a closed form."""

from __future__ import annotations

import io
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from mapsto.core.codecs import decode, decode_mask, header
from mapsto.core.errors import UserError
from mapsto.data.sources.item import is_image


def picture(height: int = 32, width: int = 48) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 5, y * 7, (x + y) * 3], -1).astype(np.uint8)


def saved(image: Image.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


LOSSLESS = [
    ("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_deflate"}),
    ("WEBP", {"lossless": True}), ("JPEG2000", {}), ("BMP", {}), ("PPM", {}), ("TGA", {}), ("PCX", {}), ("QOI", {}),
]  # fmt: skip


@pytest.mark.parametrize(("format", "options"), LOSSLESS)
def test_what_keeps_its_pixels_gives_them_back(format, options):
    data = saved(Image.fromarray(picture()), format, **options)
    np.testing.assert_array_equal(decode(data), picture())


@pytest.mark.parametrize(("format", "options"), [("AVIF", {"quality": 90}), ("WEBP", {"quality": 90}), ("JPEG2000", {"irreversible": True}), ("TIFF", {"compression": "jpeg"})])  # fmt: skip
def test_what_does_not_is_read_as_pillow_does(format, options):
    data = saved(Image.fromarray(picture()), format, **options)
    np.testing.assert_array_equal(decode(data), pillow(data))
    assert np.abs(decode(data).astype(int) - picture()).mean() < 8


def heic(image: Image.Image, **options) -> bytes:
    import pillow_heif

    out = io.BytesIO()
    pillow_heif.from_pillow(image).save(out, quality=90, **options)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_heic(mode):
    import pillow_heif

    image = Image.fromarray(picture()).convert(mode)
    if mode == "RGBA":
        image.putalpha(255)
    data = heic(image)
    assert header(data).format == "heif" and (header(data).width, header(data).height) == (48, 32)
    theirs = np.asarray(pillow_heif.open_heif(data, convert_hdr_to_8bit=True).to_pillow().convert("RGB"))
    np.testing.assert_array_equal(decode(data), theirs)
    assert np.abs(decode(data).astype(int) - np.asarray(image.convert("RGB"))).mean() < 8
    with pytest.raises(UserError, match=r"decoded|not an image"):
        decode(data[: len(data) // 2])


def test_heics_own_rotation_is_applied_once():
    """An `irot` box of one quarter turn, counter-clockwise (ISO/IEC 23008-12, 6.5.10), put where a plain one has none."""
    data = heic(Image.fromarray(picture()))
    for quarter in range(1, 4):
        turned = rotated(data, quarter)
        theirs = np.rot90(decode(data), quarter)
        assert decode(turned).shape == theirs.shape
        np.testing.assert_array_equal(decode(turned), theirs)


def rotated(data: bytes, quarter: int) -> bytes:
    """The file with an `irot` property, associated with its one item."""

    def grown(text: bytes, name: bytes, by: int) -> bytes:
        at = text.index(name) - 4
        return text[:at] + (int.from_bytes(text[at : at + 4], "big") + by).to_bytes(4, "big") + text[at + 4 :]

    ipco = data.index(b"ipco") - 4
    end = ipco + int.from_bytes(data[ipco : ipco + 4], "big")
    count, at = 0, ipco + 8
    while at < end:
        at, count = at + int.from_bytes(data[at : at + 4], "big"), count + 1
    out = data[:end] + b"\0\0\0\x09irot" + bytes([quarter]) + data[end:]
    ipma = out.index(b"ipma") + 4  # version and flags, entries, item, associations
    number = ipma + 4 + 4 + 2
    last = number + 1 + out[number]
    assert out[number + 1 : last].count(0) == 0
    out = out[:number] + bytes([out[number] + 1]) + out[number + 1 : last] + bytes([0x80 | count + 1]) + out[last:]
    out = grown(grown(out, b"ipco", 9), b"ipma", 1)
    out = grown(grown(out, b"iprp", 10), b"meta", 10)
    iloc = out.index(b"iloc") + 4
    place = out.index(data[data.index(b"mdat") + 4 :][:40])  # where the item's bytes are now
    old = data.index(b"mdat") + 4
    begin = out.index(old.to_bytes(4, "big"), iloc)
    return out[:begin] + place.to_bytes(4, "big") + out[begin + 4 :]


def test_the_import_of_the_codecs_does_not_load_the_heif_decoder():
    code = "import sys, mapsto.core.codecs; print(any(name.startswith('pillow_heif') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_without_pillow_heif_the_extra_is_named(monkeypatch):
    data = heic(Image.fromarray(picture()))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(UserError, match=r"pip install 'mapsto\[formats\]'"):
        decode(data)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_an_animation_gives_its_first_frame(format):
    first = Image.fromarray(picture()).quantize(64).convert("RGB")
    options = {"lossless": True} if format == "WEBP" else {"quality": 100} if format == "AVIF" else {}
    data = saved(first, format, save_all=True, append_images=[Image.new("RGB", first.size, "red")], **options)
    assert np.abs(decode(data).astype(int) - np.asarray(first)).max() <= (40 if format == "AVIF" else 0)


@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_sixteen_bits_per_colour(extension):
    wide = picture().astype(np.uint16) * 257
    data = cv2.imencode(extension, np.ascontiguousarray(wide[:, :, ::-1]))[1].tobytes()
    np.testing.assert_array_equal(decode(data), picture())


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG2000"])
@pytest.mark.parametrize("top", [200, 4095, 65535])
def test_sixteen_bit_grey_has_its_range_however_dark(format, top):
    values = (np.arange(600).reshape(20, 30) * (top / 599)).astype(np.uint16)
    got = decode(saved(Image.fromarray(values), format))
    np.testing.assert_array_equal(got[..., 0], (values / 257).round())


def test_cmyk_is_turned_back_as_adobe_stores_it():
    inks = np.zeros((16, 64, 4), np.uint8)
    for k, ink in enumerate([(255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)]):
        inks[:, 16 * k : 16 * k + 16] = ink
    data = saved(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0)
    assert header(data).mode == "CMYK" and b"Adobe" in data
    seen = decode(data)[8, 8::16].astype(int)
    np.testing.assert_allclose(seen, [[0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0]], atol=6)
    np.testing.assert_array_equal(decode(data), pillow(data))


def test_ycck_is_turned_back_too():
    """The same file whose Adobe mark says YCCK: its first three channels are then luma and chroma of inverted inks."""
    rng = np.random.default_rng(0)
    inks = np.repeat(np.repeat(rng.integers(60, 200, (2, 3, 4)).astype(np.uint8), 16, 0), 16, 1)
    data = bytearray(saved(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0))
    data[data.index(b"Adobe") + 11] = 2
    stored = 255.0 - inks[8::16, 8::16].astype(float)  # as Adobe has it: inverted
    y, cb, cr, k = np.moveaxis(stored, -1, 0)
    inverted = np.stack(
        [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)], -1
    )
    # libjpeg gives 255 minus the RGB of luma and chroma; that, inverted inks again, is the colour on paper without black.
    wanted = np.clip(255 - inverted, 0, 255) * k[..., None] / 255
    np.testing.assert_allclose(decode(bytes(data))[8::16, 8::16], wanted, atol=4)
    np.testing.assert_array_equal(decode(bytes(data)), pillow(bytes(data)))


def test_bilevel_palette_and_alpha():
    grid = np.random.default_rng(0).integers(0, 2, (9, 13)).astype(bool)
    for format in ("PNG", "TIFF", "PPM", "BMP"):
        np.testing.assert_array_equal(decode(saved(Image.fromarray(grid), format))[..., 1], grid * 255)
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    np.testing.assert_array_equal(decode(saved(palette, "PNG"))[0], [[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    half = saved(palette, "PNG", transparency=bytes([0, 128, 255]))  # over white
    np.testing.assert_allclose(decode(half)[0], [[255] * 3, 255 - (255 - np.array([40, 50, 60])) * 128 / 255, [70, 80, 90]], atol=1)  # fmt: skip
    np.testing.assert_array_equal(decode_mask(saved(palette, "PNG")), [[0, 1, 2]])


def test_the_names_of_all_these_are_known():
    for name in (
        "a.HEIC",
        "a.heif",
        "a.hif",
        "a.avif",
        "a.jp2",
        "a.j2k",
        "a.jpx",
        "a.tif",
        "a.webp",
        "a.apng",
        "a.qoi",
    ):
        assert is_image(name)
    assert not is_image("a.mp4") and not is_image("a.nii.gz") and not is_image("a.mdb")
