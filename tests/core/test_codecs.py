import io

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
    ],
)
def test_broken_input_is_one_clear_line(data, reason):
    with pytest.raises(UserError, match=reason) as caught:
        codecs.decode(data)
    assert "\n" not in str(caught.value)


def test_a_bomb_is_refused_from_its_header():
    data = saved(Image.new("1", (30_000, 30_000)), "PNG")
    with pytest.raises(UserError, match="900 megapixels, over the limit of 100"):
        codecs.decode(data)


def test_masks_keep_ids_of_palettes_and_grey():
    ids = np.array([[0, 1], [2, 255]], np.uint8)
    coloured = Image.fromarray(ids)
    coloured.putpalette([v for i in range(256) for v in (i, 255 - i, 7)])
    assert np.array_equal(codecs.decode_mask(saved(coloured, "PNG")), ids)
    assert np.array_equal(codecs.decode_mask(saved(Image.fromarray(ids), "PNG")), ids)
    with pytest.raises(UserError, match="mode is RGB"):
        codecs.decode_mask(saved(Image.fromarray(picture()), "PNG"))
