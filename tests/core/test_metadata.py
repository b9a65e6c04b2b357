"""Metadata taken out: what must go is gone, what must stay does, and the pixels are the same to the bit."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from mapsto.core.codecs import decode, header
from mapsto.core.errors import UserError
from mapsto.core.metadata import exif, stripped
from mapsto.data.transforms import upright_size

MOST = 10**7
SECRETS = (b"SecretMaker", b"SecretNote", b"SecretXMP", b"SecretIPTC", b"SecretComment", b"SecretTail")
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="r"><rdf:Description tiff:Orientation="6" a="SecretXMP"/></rdf:RDF></x:xmpmeta>'
PLAIN_XMP = XMP.replace(b'tiff:Orientation="6"', b"")
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
WIDE = PROFILE.replace(b"Lab ", b"RGB ")
"""A profile that does not call itself sRGB: what decoding makes of it, it has to make of it afterwards."""


def picture(mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    base = Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8)).resize((45, 30), Image.Resampling.BICUBIC)
    return base.convert(mode)


def photographed(orientation: int = 1) -> bytes:
    """Exif with a maker, a note and a place, and an orientation."""
    tags = Image.Exif()
    if orientation != 1:
        tags[0x0112] = orientation
    tags[0x010F] = "SecretMaker"
    tags.get_ifd(0x8769)[0x927C] = b"SecretNote"
    tags.get_ifd(0x8825).update({1: "N", 2: (52.0, 22.0, 11.0), 3: "E", 4: (4.0, 53.0, 24.0)})
    return tags.tobytes()


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg(orientation: int = 1, mode: str = "RGB", more: bytes = b"", tail: bytes = b"", **options) -> bytes:
    out = io.BytesIO()
    picture(mode).save(out, "JPEG", exif=photographed(orientation), comment=b"SecretComment", **options)
    data = out.getvalue()
    iptc = segment(0xED, b"Photoshop 3.0\0" + b"SecretIPTC")
    at = 20 if data[3] == 0xE0 else 2  # JFIF's segment comes first, where there is one
    return data[:at] + iptc + more + data[at:] + tail


def tags(data: bytes) -> tuple[dict, dict]:
    with Image.open(io.BytesIO(data)) as image:
        found = image.getexif()
        return dict(found), dict(found.get_ifd(0x8825))


def check(data: bytes) -> bytes:
    """Nothing secret in it, the same pixels by our decoder and by Pillow's, the same again when stripped again."""
    bare = stripped(data, MOST)
    assert bare is not None
    for secret in SECRETS:
        assert secret not in bare
    np.testing.assert_array_equal(decode(bare), decode(data))
    first, second = (ImageOps.exif_transpose(Image.open(io.BytesIO(d))) for d in (data, bare))
    np.testing.assert_array_equal(np.asarray(second), np.asarray(first))
    assert first.info.get("icc_profile") == second.info.get("icc_profile")
    place = tags(bare)[1]
    assert place == {} and set(tags(bare)[0]) <= {0x0112}
    assert stripped(bare, MOST) == bare
    return bare


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_keeps_its_orientation_and_its_compressed_pixels(orientation):
    data = jpeg(orientation, icc_profile=WIDE)
    assert tags(data)[1]
    bare = check(data)
    assert header(bare, MOST).orientation == orientation
    assert bare[bare.index(b"\xff\xda") :] == data[data.index(b"\xff\xda", 900) :]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_of_every_kind(mode, progressive):
    check(jpeg(6, mode, progressive=progressive, restart_marker_blocks=2))


def test_orientation_that_only_xmp_gives_stays():
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)
    out = io.BytesIO()
    picture().save(out, "JPEG")
    data = out.getvalue()[:2] + xmp + out.getvalue()[2:]
    assert decode(data).shape == (45, 30, 3) and upright_size(data) == (45, 30)
    assert header(check(data), MOST).orientation == 6


def test_exif_behind_other_segments_is_found():
    data = jpeg(8, more=segment(0xE5, b"x" * 9000))
    assert decode(data).shape == (45, 30, 3) and upright_size(data) == (
        45,
        30,
    )  # turned, although its Exif is far from the start
    assert len(check(data)) < len(data) - 9000


def test_adobes_mark_stays_and_what_follows_the_end_goes():
    data = jpeg(1, "CMYK", tail=b"SecretTail" * 9)
    bare = check(data)
    assert b"Adobe" in bare and bare.endswith(b"\xff\xd9")
    second = io.BytesIO()
    picture(seed=1).save(second, "JPEG", exif=photographed())
    check(jpeg(3, tail=second.getvalue()))  # a second picture, as phones append


def test_multi_picture_files_become_single_ones():
    out = io.BytesIO()
    picture().save(out, "MPO", save_all=True, append_images=[picture(seed=1)], exif=photographed(6))
    assert header(out.getvalue(), MOST).format == "mpo"
    assert header(check(out.getvalue()), MOST).format == "jpeg"


def png(orientation: int = 1, mode: str = "RGB", **options) -> bytes:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "SecretComment")
    texts.add_text("Note", "SecretNote", zip=True)
    texts.add_itxt("XML:com.adobe.xmp", PLAIN_XMP.decode())
    out = io.BytesIO()
    picture(mode).save(out, "PNG", exif=photographed(orientation), pnginfo=texts, **options)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_png(mode, orientation):
    data = sixteen(orientation) if mode == "I;16" else png(orientation, mode)
    bare = check(data)
    assert header(bare, MOST).orientation == orientation
    assert [c for c in chunks(bare) if c[0] == b"IDAT"] == [c for c in chunks(data) if c[0] == b"IDAT"]
    assert {name for name, _ in chunks(bare)} <= {b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"}


def sixteen(orientation: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.arange(70, dtype=np.uint16).reshape(7, 10) * 900).save(
        out, "PNG", exif=photographed(orientation)
    )
    return out.getvalue()


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    out, place = [], 8
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        name, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        assert zlib.crc32(name + body) == int.from_bytes(data[place + 8 + size : place + 12 + size], "big")
        out.append((name, body))
        place += 12 + size
    return out


def test_png_keeps_its_profile_and_transparency():
    out = io.BytesIO()
    picture("P").save(out, "PNG", icc_profile=WIDE, transparency=3, exif=photographed())
    assert {b"iCCP", b"tRNS", b"PLTE"} <= {name for name, _ in chunks(check(out.getvalue()))}


def test_png_with_private_chunks_and_a_tail():
    plain = png()
    body = b"prVtSecretNote"
    private = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    check(plain[:33] + private + plain[33:] + b"SecretTail")


@pytest.mark.parametrize("orientation", [1, 5])
@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}, {"lossless": True, "mode": "RGBA"}])
def test_webp(orientation, options):
    out = io.BytesIO()
    mode = options.get("mode", "RGB")
    image = picture(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    kept = {k: v for k, v in options.items() if k != "mode"}
    image.save(out, "WEBP", exif=photographed(orientation), xmp=PLAIN_XMP, icc_profile=WIDE, **kept)
    bare = check(out.getvalue())
    assert header(bare, MOST).orientation == orientation and int.from_bytes(bare[4:8], "little") == len(bare) - 8


def test_animations_stay_animations():
    for format in ("PNG", "WEBP"):
        out = io.BytesIO()
        picture().save(
            out, format, save_all=True, append_images=[picture(seed=1), picture(seed=2)], exif=photographed()
        )
        bare = check(out.getvalue())
        assert getattr(Image.open(io.BytesIO(bare)), "n_frames", 1) == 3


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_file_without_metadata_stays_as_it_is(format):
    out = io.BytesIO()
    picture().save(out, format)
    assert stripped(out.getvalue(), MOST) == out.getvalue()


@pytest.mark.parametrize("format", ["GIF", "JPEG2000", "BMP"])
def test_other_formats_are_not_touched(format):
    out = io.BytesIO()
    picture().save(out, format)
    assert stripped(out.getvalue(), MOST) is None


def test_the_minimal_exif_is_read_by_pillow():
    for orientation in range(1, 9):
        found = Image.Exif()
        found.load(exif(orientation))
        assert dict(found) == {0x0112: orientation}


def webp() -> bytes:
    out = io.BytesIO()
    picture().save(out, "WEBP", exif=photographed(6), xmp=XMP)
    return out.getvalue()


def decodes_as_before(whole, damage, cut):
    """A file with some bytes changed, and perhaps cut short: where it still decodes and is stripped, it decodes to the same."""
    data = bytearray(whole)
    for place, value in damage:
        data[place % len(data)] = value
    data = bytes(data[: len(data) - (cut % len(data) if cut % 3 == 0 else 0)])
    try:
        bare = stripped(data, MOST)
        before = decode(data, MOST)
    except UserError:
        return
    if bare is not None:
        np.testing.assert_array_equal(decode(bare, MOST), before)


WHOLE = {"jpeg": jpeg(6, icc_profile=WIDE), "png": png(6), "webp": webp()}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=12),
    st.integers(0, 2**16),
)
def test_damaged_files_decode_as_before_or_are_refused(format, damage, cut):
    """Whatever a file is: where the original decodes and is stripped, what comes out decodes to the same."""
    decodes_as_before(WHOLE[format], damage, cut)
