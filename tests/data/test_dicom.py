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
    for data, says in (
        (out.getvalue(), r"without a picture \(OT\)"),
        (whole[:-4], "cannot be decoded as DICOM"),
        (whole[:200], "without a picture|cannot be decoded as DICOM"),
    ):
        with pytest.raises(UserError, match=says) as told:
            to_png(data, 10**6)
        assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="max_pixels"):
        to_png(whole, 3)
