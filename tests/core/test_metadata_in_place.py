"""Metadata of HEIC, AVIF and TIFF overwritten where it lies: what must go is gone, and nothing else has moved or changed."""

from __future__ import annotations

import io
import struct

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from mapsto.core.codecs import decode, header
from mapsto.core.metadata import stripped
from mapsto.core.metadata_tiff import tiff

from .test_metadata import MOST, PLAIN_XMP, SECRETS, WIDE, decodes_as_before, photographed, picture, tags

pillow_heif.register_heif_opener(thumbnails=False)

LATITUDE = [52, 22, 11]
"""Of `photographed`, in degrees, minutes and seconds."""


def saved(format: str, orientation: int = 1, **options) -> bytes:
    out = io.BytesIO()
    picture(seed=2).save(out, format, exif=photographed(orientation), xmp=PLAIN_XMP, icc_profile=WIDE, **options)
    return out.getvalue()


def places(data: bytes) -> bool:
    """Whether the latitude stands in a file, as Exif has it in either byte order."""
    return any(b"".join(struct.pack(f"{order}II", n, 1) for n in LATITUDE) in data for order in "<>")


def check(data: bytes) -> bytes:
    bare = stripped(data, MOST)
    assert bare is not None and bare != data and len(bare) == len(data)
    assert places(data) and not places(bare) and tags(bare)[1] == {}
    assert not [secret for secret in SECRETS if secret in bare]
    np.testing.assert_array_equal(decode(bare), decode(data))
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(bare)) as after:
        assert after.info.get("icc_profile") == before.info.get("icc_profile") and before.info.get("icc_profile")
        np.testing.assert_array_equal(np.asarray(after), np.asarray(before))
    assert header(bare) == header(data) and stripped(bare, MOST) == bare
    return bare


@pytest.mark.parametrize("format", ["AVIF", "HEIF", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_places_cameras_and_texts_go_and_orientation_stays(format, orientation):
    data = saved(format, orientation)
    bare = check(data)
    if format != "HEIF":  # there, decoding turns it
        assert header(bare).orientation == orientation
    assert decode(bare).shape == ((45, 30, 3) if orientation == 6 else (30, 45, 3))


def test_an_own_box_beside_the_items_goes():
    data = saved("AVIF") + struct.pack(">I4s", 40, b"uuid") + b"SecretNote".ljust(32, b"x")
    bare = check(data)
    assert bare[-40:] == struct.pack(">I4s", 40, b"free") + bytes(32)


@pytest.mark.parametrize("options", [{"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"compression": "packbits"}])
def test_tiffs_of_every_compression_and_byte_order(options):
    out = io.BytesIO()
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[271], info[270], info[306], info[700] = "SecretMaker", "SecretNote", "2024:01:01 00:00:00", PLAIN_XMP
    picture().save(out, "TIFF", tiffinfo=info, **options)
    data = out.getvalue()
    bare = stripped(data, MOST)
    assert bare is not None and not [secret for secret in (*SECRETS, b"2024:01") if secret in bare]
    assert len([secret for secret in SECRETS if secret in data]) == 3
    np.testing.assert_array_equal(decode(bare), decode(data))


def test_a_tiff_of_motorolas_byte_order_and_of_several_pages():
    text = b"SecretMaker\0"
    entries = [(256, 3, 1, 2 << 16), (257, 3, 1, 1 << 16), (258, 3, 1, 8 << 16), (262, 3, 1, 1 << 16)]
    entries += [(271, 2, len(text), 200), (273, 4, 1, 190), (279, 4, 1, 2)]
    first = b"MM\0*" + struct.pack(">IH", 8, len(entries)) + b"".join(struct.pack(">HHII", *entry) for entry in entries)
    data = (first + bytes(4)).ljust(190, b"\0") + bytes([7, 200]) + bytes(8) + text
    bare = stripped(data, MOST)
    assert bare is not None and b"Secret" not in bare and decode(bare)[0, :, 0].tolist() == [7, 200]
    out = io.BytesIO()
    picture().save(out, "TIFF", save_all=True, append_images=[picture(seed=1)], tiffinfo={271: "SecretMaker"})
    bare = stripped(out.getvalue(), MOST)
    assert out.getvalue().count(b"SecretMaker") and bare is not None and b"SecretMaker" not in bare
    with Image.open(io.BytesIO(bare)) as pages:
        pages.seek(1)
        np.testing.assert_array_equal(np.asarray(pages), np.asarray(picture(seed=1)))


def test_what_is_not_understood_is_left():
    data = bytearray(saved("TIFF"))
    assert tiff(bytes(data)) is not None
    at = struct.unpack_from("<I", data, 4)[0]
    for k, value in ((0, 330), (2, 99)):  # a directory of further pictures; a type that nobody knows
        broken = bytearray(data)
        count = struct.unpack_from("<H", data, at)[0]
        struct.pack_into("<H", broken, at + 2 + 12 * (count - 1) + k, value)
        assert tiff(bytes(broken)) is None
    assert stripped(saved("TIFF", big_tiff=True), MOST) is None
    sequence = io.BytesIO()
    picture().save(sequence, "AVIF", save_all=True, append_images=[picture(seed=1)], exif=photographed())
    assert stripped(sequence.getvalue(), MOST) is None


def leading_to(directories: list[int]) -> bytes:
    """The beginning of a TIFF, up to where its first further directory may lie, that leads to directories of metadata there."""
    first = b"II*\0" + struct.pack(
        "<IHHHII", 8, 1, 34665, 4, len(directories), 26 if len(directories) > 1 else directories[0]
    )
    return first + bytes(4) + struct.pack(f"<{len(directories)}I", *directories)


def test_directories_without_end_within_each_other_are_left():
    begin = len(leading_to([0]))
    chain = [struct.pack("<HHHIII", 1, 34665, 4, 1, begin + 18 * (k + 1), 0) for k in range(1200)]
    end = struct.pack("<HHHII", 1, 271, 1, 1, 0) + bytes(4)
    assert tiff(leading_to([begin]) + chain[0] + end) is not None
    assert tiff(leading_to([begin]) + b"".join(chain) + end) is None


def test_directories_that_share_their_entries_are_left():
    """As many entries as the square of the file's size would have to be read."""
    begin, many = len(leading_to([0] * 2000)), 2000
    entries = struct.pack("<H", many) + struct.pack("<HHIHH", 271, 1, 1, 0, many) * (2 * many)
    assert tiff(leading_to([begin + 12 * k for k in range(many)]) + entries + bytes(4)) is None


def test_two_items_of_one_number_are_left():
    data = bytearray(saved("HEIF"))
    at = data.index(b"mime\0") - 4
    data[at : at + 2] = bytes([0, 1])  # the picture's
    assert stripped(bytes(data), MOST) is None


def test_metadata_that_lies_in_the_pixels_is_left():
    data = bytearray(saved("TIFF"))
    at = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, at)[0]
    entries = {struct.unpack_from("<H", data, at + 2 + 12 * k)[0]: at + 2 + 12 * k for k in range(count)}
    struct.pack_into("<I", data, entries[271] + 8, struct.unpack_from("<I", data, entries[273] + 8)[0])
    assert tiff(bytes(data)) is None


@pytest.mark.parametrize("format", ["AVIF", "HEIF", "TIFF"])
def test_a_file_without_metadata_stays_as_it_is(format):
    out = io.BytesIO()
    picture().save(out, format)
    assert stripped(out.getvalue(), MOST) == out.getvalue()


WHOLE = {format: saved(format, 6) for format in ("AVIF", "HEIF", "TIFF")}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, 2**11), st.integers(0, 255)), max_size=6),
    st.integers(0, 2**16),
)
def test_damaged_files_decode_as_before_or_are_refused(format, damage, cut):
    """Where the original decodes and is stripped, what comes out decodes to the same."""
    decodes_as_before(WHOLE[format], damage, cut)
