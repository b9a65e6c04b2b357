import io
import os
import struct
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from mapsto.core import codecs
from mapsto.core.errors import UserError


def picture(height=24, width=40, seed=0):
    """Smooth, so that JPEG keeps it nearly."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 6, y * 9, (x + y) * 4], -1).astype(np.uint8)


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_back_their_pixels(format):
    data = saved(Image.fromarray(picture()), format, **({"lossless": True} if format == "WEBP" else {}))
    assert np.array_equal(codecs.decode(data), picture())


def test_jpeg_agrees_with_pillow():
    data = saved(Image.fromarray(picture()), "JPEG", quality=95)
    theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(codecs.decode(data).astype(int) - theirs).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_applies_it(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(picture()), "JPEG", quality=95, exif=exif.tobytes())
    theirs = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    ours = codecs.decode(data)
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((9, 7), 40_000, np.uint16))
    else:
        image = Image.fromarray(picture(9, 7)).convert(mode)
    data = saved(image, "TIFF" if mode in ("CMYK", "I;16") else "PNG")
    decoded = codecs.decode(data)
    assert decoded.shape == (9, 7, 3)
    if mode == "I;16":
        assert np.all(decoded == round(40_000 * 255 / 65_535))


def test_alpha_is_laid_over_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    assert np.all(codecs.decode(saved(image, "PNG")) == 255)


def test_scaled_decoding_keeps_the_shorter_side():
    data = saved(Image.fromarray(picture(200, 320)), "JPEG")
    small = codecs.decode(data, at_least=48)
    assert 48 <= min(small.shape[:2]) < 100
    assert codecs.decode(data, at_least=500).shape == (200, 320, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"no image at all", "not an image"),
        (saved(Image.fromarray(picture(200, 200)), "JPEG")[:-400], "cannot be decoded"),
        (saved(Image.fromarray(picture()), "PNG")[:-30], "cannot be decoded|not an image"),
        (
            b"\x89PNG\r\n\x1a\n" + bytes(40),
            "not an image that can be read: it begins as a PNG, whose header is damaged$",
        ),
    ],
)
def test_broken_input_is_one_clear_line(data, reason):
    with pytest.raises(UserError, match=reason) as caught:
        codecs.decode(data)
    assert "\n" not in str(caught.value)


def damaged_dds() -> bytes:
    """A DDS file whose pixel format says that it has a code (flag 4), and whose code is none (Microsoft's DDS_HEADER)."""
    head = struct.pack("<7I", 124, 0x1007, 8, 8, 0, 0, 0) + bytes(44)
    return b"DDS " + head + struct.pack("<2I4s5I", 32, 4, b"NONE", 0, 0, 0, 0, 0) + bytes(20 + 64)


def damaged_avif() -> bytes:
    data = saved(Image.fromarray(picture()), "AVIF")
    pixels = data.index(b"mdat") + 4
    return data[:pixels] + bytes(len(data) - pixels)


@pytest.mark.parametrize("data", [damaged_dds(), damaged_avif()], ids=["dds", "avif"])
def test_what_a_plugin_raises_of_its_own_is_one_clear_line(data):
    with pytest.raises((RuntimeError, NotImplementedError)), Image.open(io.BytesIO(data)) as image:
        image.load()  # Pillow's own way
    for read in (codecs.decode, codecs.decode_mask):
        with pytest.raises(UserError, match=r"cannot be decoded|not an image that can be read") as caught:
            read(data)
        assert "\n" not in str(caught.value)


def test_overlapping_threads_leave_the_error_stream_as_it_was():
    """Of two blocks that overlap, the first to begin ends first: the second must not give back what the first had turned away."""
    before = os.fstat(2)
    null = os.stat(os.devnull).st_rdev
    first, second = codecs.quiet(b"II*\0"), codecs.quiet(b"II*\0")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert os.fstat(2).st_rdev == null  # the second is not done
    second.__exit__(None, None, None)
    after = os.fstat(2)
    assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)


def test_a_bomb_is_refused_from_its_header():
    data = saved(Image.new("1", (30_000, 30_000)), "PNG")
    with pytest.raises(UserError, match="900 megapixels, over the limit of 100"):
        codecs.decode(data, codecs.MAX_PIXELS)


def test_masks_keep_ids_of_palettes_and_grey():
    ids = np.array([[0, 1], [2, 255]], np.uint8)
    coloured = Image.fromarray(ids)
    coloured.putpalette([v for i in range(256) for v in (i, 255 - i, 7)])
    assert np.array_equal(codecs.decode_mask(saved(coloured, "PNG")), ids)
    assert np.array_equal(codecs.decode_mask(saved(Image.fromarray(ids), "PNG")), ids)
    with pytest.raises(UserError, match="mode is RGB"):
        codecs.decode_mask(saved(Image.fromarray(picture()), "PNG"))


def adobe_rgb() -> bytes:
    """An ICC profile of gamma 563/256 and Adobe RGB's D50 primaries, as ICC.1:2001-04 lays it out."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + fixed(*values)

    name = b"wide\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78)
    gamma = b"curv\0\0\0\0" + struct.pack(">IH", 1, 563)
    tags = {
        b"desc": described, b"cprt": b"text\0\0\0\0none\0", b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.60974, 0.31111, 0.01947), b"gXYZ": xyz(0.20528, 0.62567, 0.06087),
        b"bXYZ": xyz(0.14919, 0.06322, 0.74457), b"rTRC": gamma, b"gTRC": gamma, b"bTRC": gamma,
    }  # fmt: skip
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for key, value in tags.items():
        value += bytes(-len(value) % 4)
        table += key + struct.pack(">II", offset + len(body), len(value))
        body += value
    size = offset + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"none", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1.0, 0.8249) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


def wide_to_srgb(pixels: np.ndarray) -> np.ndarray:
    """The independent reference: both spaces' matrices and curves, by hand (IEC 61966-2-1 for sRGB's)."""
    to_xyz = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
    srgb = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
    linear = ((pixels / 255) ** (563 / 256)) @ to_xyz.T @ np.linalg.inv(srgb).T
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_an_embedded_profile_is_applied(format):
    colours = np.array([[200, 60, 60], [60, 180, 90], [70, 90, 200], [128, 128, 128]], np.uint8)
    flat = np.repeat(np.repeat(colours[None], 16, 1), 16, 0)  # JPEG keeps flat blocks
    out = io.BytesIO()
    extra = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    Image.fromarray(flat).save(out, format, icc_profile=adobe_rgb(), **extra)
    seen = codecs.decode(out.getvalue())[8, 8::16]
    np.testing.assert_allclose(seen, wide_to_srgb(colours), atol=2)
    assert np.abs(seen.astype(int) - colours).max() > 10  # it does something
    # Scaled decoding goes the same way.
    half = codecs.decode(out.getvalue(), at_least=8)
    assert half.shape == ((8, 32, 3) if format == "JPEG" else (16, 64, 3))
    np.testing.assert_allclose(half[half.shape[0] // 2, half.shape[1] // 8 :: half.shape[1] // 4], seen, atol=3)


def test_a_profile_of_several_pieces_is_put_together_in_order():
    profile = adobe_rgb() + bytes(100_000)  # more than a segment holds; what lies behind the tags is not read
    flat = np.full((16, 16, 3), (200, 60, 60), np.uint8)
    data = saved(Image.fromarray(flat), "JPEG", quality=100, subsampling=0, icc_profile=profile)
    first, second = data.index(b"ICC_PROFILE"), data.rindex(b"ICC_PROFILE")
    begin, end = first - 4, second - 4
    size = int.from_bytes(data[end + 2 : end + 4], "big") + 2
    swapped = data[:begin] + data[end : end + size] + data[begin:end] + data[end + size :]
    assert first != second
    for each in (data, swapped):
        np.testing.assert_allclose(codecs.decode(each)[8, 8], wide_to_srgb(flat[0, 0]), atol=2)


@pytest.mark.parametrize(
    ("format", "mode", "settings"),
    [
        ("JPEG", "RGB", {}), ("JPEG", "L", {}), ("JPEG", "CMYK", {}), ("PNG", "RGBA", {}), ("PNG", "P", {}),
        ("JPEG", "RGB", {"icc_profile": adobe_rgb()}), ("PNG", "RGB", {"icc_profile": adobe_rgb()}),
        ("JPEG", "RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
        ("JPEG", "RGB", {"icc_profile": adobe_rgb(), "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0\0\0\0\0"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else value,
)  # fmt: skip
@pytest.mark.parametrize("at_least", [None, 30])
def test_a_part_is_the_same_pixels_as_of_the_whole(format, mode, settings, at_least):
    data = saved(Image.fromarray(picture(120, 200)).convert(mode), format, **settings)
    whole = codecs.decode(data, at_least=at_least)
    height, width = codecs.upright_size(data)
    assert (height, width) == ((200, 120) if "exif" in settings else (120, 200))
    assert whole.shape[:2] == ((height // 4, width // 4) if at_least and format == "JPEG" else (height, width))
    for part in ((0, 0, height, width), (13, 22, 57, 70), (height - 1, width - 1, 1, 1)):
        y0, x0, y1, x1 = codecs.window(part, (height, width), whole.shape)
        cut = codecs.decode(data, at_least=at_least, part=part)
        assert cut.size and np.array_equal(cut, whole[y0:y1, x0:x1])


def test_srgb_profiles_and_broken_ones_leave_the_pixels():
    from PIL import ImageCms

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    for profile in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"not a profile"):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG", icc_profile=profile)
        np.testing.assert_array_equal(codecs.decode(out.getvalue()), pixels)


@pytest.mark.parametrize(("mode", "key"), [("RGB", (0, 255, 52)), ("L", 90)])
def test_a_png_whose_one_colour_is_transparent_is_laid_over_white(mode, key):
    image = Image.new(mode, (8, 6), key)
    image.paste(20 if mode == "L" else (20, 20, 20), (0, 0, 4, 6))
    pixels = codecs.decode(saved(image, "PNG", transparency=key))
    assert (pixels[:, :4] == 20).all() and (pixels[:, 4:] == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"progressive": True}, {"subsampling": 2}, {"comment": b"a word"}, {"icc_profile": b"x" * 70_000}],
    ids=lambda settings: " ".join(settings) or "plain",
)
def test_a_plain_jpegs_header_is_pillows(mode, settings):
    data = saved(Image.fromarray(picture()).convert(mode), "JPEG", **settings)
    with Image.open(io.BytesIO(data)) as opened:
        said = codecs.Header("jpeg", *opened.size, opened.mode, 1)
    assert codecs.header(data) == said
    for end in (4, 60, len(data) // 2):  # cut short: read or refused, in words
        with suppress(UserError):
            assert codecs.header(data[:end]) == said
