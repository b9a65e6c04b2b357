"""DICOM to PNG: values by hand from PS3.3's formulas, on files made here."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from mapsto.core.codecs import decode
from mapsto.core.errors import UserError
from mapsto.data.dicom import is_dicom, to_png


def file(pixels: np.ndarray, kind: str = "MONOCHROME2", **fields: Any) -> bytes:
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.SOPClassUID = found.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    found.SOPInstanceUID = found.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    found.PatientName, found.Modality = "Secret^Name", "OT"
    bits = 8 * pixels.itemsize
    found.Rows, found.Columns = pixels.shape[:2]
    found.BitsAllocated = found.BitsStored = bits
    found.HighBit, found.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
    found.SamplesPerPixel, found.PhotometricInterpretation = (3 if pixels.ndim == 3 else 1), kind
    if pixels.ndim == 3:
        found.PlanarConfiguration = 0
    found.PixelData = pixels.tobytes()
    for name, value in fields.items():
        setattr(found, name, value)
    out = io.BytesIO()
    pydicom.dcmwrite(out, found, enforce_file_format=True)
    return out.getvalue()


def grey(data: bytes) -> np.ndarray:
    assert is_dicom(data)
    image = decode(to_png(data, 10**6))
    assert (image[..., :1] == image).all()
    return image[..., 0]


RAMP = np.array([[0, 100], [200, 400]], np.uint16)


def test_a_frame_without_a_window_spans_its_own_range():
    np.testing.assert_array_equal(grey(file(RAMP)), [[0, 64], [128, 255]])


def test_monochrome1_is_turned_over():
    np.testing.assert_array_equal(grey(file(RAMP, "MONOCHROME1")), [[255, 191], [127, 0]])


def test_the_window_is_in_rescaled_units():
    # Rescaled: 0, 50, 100, 200 minus 100. Window of 101 about 0.5 (C.11.2.1.2): 0 lies at 0.495 of it, -50 just below it, 100 above.
    data = file(RAMP, RescaleSlope="0.5", RescaleIntercept="-100", WindowCenter="1", WindowWidth="101")
    np.testing.assert_array_equal(grey(data), [[0, 0], [126, 255]])


def by_window(
    pixels: np.ndarray, center: float, width: float, slope: float = 1.0, intercept: float = 0.0
) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1 by hand, for an output of 0..255."""
    x = pixels * slope + intercept
    between = ((x - (center - 0.5)) / (width - 1) + 0.5) * 255
    return np.where(x <= center - 0.5 - (width - 1) / 2, 0, np.where(x > center - 0.5 + (width - 1) / 2, 255, between))


@pytest.mark.parametrize(
    ("center", "width", "slope", "intercept"),
    [(500, 2001, 1, 0), (200, 301, 1, 0), (-1000, 4001, 2, -1024), (100, 801, -1, 300), (50, 41, 1, 0)],
)
@pytest.mark.parametrize("signed", [False, True])
def test_a_window_that_the_frame_does_not_fill_keeps_its_own_scale(center, width, slope, intercept, signed):
    pixels = RAMP.astype(np.int16) - 100 if signed else RAMP
    fields = {"RescaleSlope": str(slope), "RescaleIntercept": str(intercept)} if (slope, intercept) != (1, 0) else {}
    for turned in (False, True):
        kind = "MONOCHROME1" if turned else "MONOCHROME2"
        got = grey(file(pixels, kind, WindowCenter=str(center), WindowWidth=str(width), **fields)).astype(float)
        wanted = by_window(pixels.astype(float), center, width, slope, intercept)
        np.testing.assert_allclose(255 - got if turned else got, wanted, atol=0.51)


def test_the_first_of_several_windows_is_taken_and_half_a_window_is_none():
    data = file(RAMP, WindowCenter=["500", "20"], WindowWidth=["2001", "5"])
    np.testing.assert_allclose(grey(data), by_window(RAMP.astype(float), 500, 2001), atol=0.51)
    np.testing.assert_array_equal(grey(file(RAMP, WindowCenter="500")), [[0, 64], [128, 255]])


def test_a_table_of_values_spans_what_it_can_give():
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [1001, 0, 16], list(range(0, 4004, 4))  # four times the value, up to 4000
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    data = file(RAMP, VOILUTSequence=[table], WindowCenter="1", WindowWidth="2")
    np.testing.assert_allclose(grey(data), RAMP.astype(float) * 4 * 255 / 4000, atol=0.51)


def test_colours_stay():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    np.testing.assert_array_equal(decode(to_png(file(pixels, "RGB"), 10**6)), pixels)


def test_nothing_but_the_picture_comes_along():
    assert b"Secret" not in to_png(file(RAMP), 10**6)


def test_what_is_no_picture_says_so():
    whole = file(RAMP)
    report = pydicom.dcmread(io.BytesIO(whole))
    del report.PixelData
    out = io.BytesIO()
    report.save_as(out)
    sizeless, bare = pydicom.dcmread(io.BytesIO(whole)), io.BytesIO()
    del sizeless.Rows, sizeless.Columns
    sizeless.save_as(bare)
    for data, says in (
        (out.getvalue(), r"without a picture \(OT\)"),
        (bare.getvalue(), "cannot be decoded as DICOM: it lacks Rows and Columns$"),
        (whole[:-4], "cannot be decoded as DICOM"),
        (whole[:200], "without a picture|cannot be decoded as DICOM"),
    ):
        with pytest.raises(UserError, match=says) as told:
            to_png(data, 10**6)
        assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="max_pixels"):
        to_png(whole, 3)
