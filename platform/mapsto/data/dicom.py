"""DICOM → PNG: modality rescale, window, MONOCHROME1 turned over, palettes and YBR to RGB; the first frame of several.

Source: DICOM PS3.3, C.7.6.3 (Image Pixel), C.11.1 (Modality LUT), C.11.2 (VOI LUT). A window's output, or a table's, becomes 0..255,
whatever of it the frame uses; without one, the frame's own range does. Patients' names and all other fields stay behind.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from ..core.codecs import encode
from ..core.errors import UserError


def is_dicom(data: bytes) -> bool:
    return data[128:132] == b"DICM"


def to_png(data: bytes, max_pixels: int) -> bytes:
    """The picture of a DICOM file as 8-bit PNG, grey or RGB. Raises UserError for a file without pixels (a report, a plan),
    a broken one, and a compression that no installed decoder knows."""
    import pydicom
    from pydicom.pixels import pixel_array

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = pydicom.dcmread(io.BytesIO(data))
            if "PixelData" not in found and "FloatPixelData" not in found and "DoubleFloatPixelData" not in found:
                raise UserError(f"a DICOM file without a picture ({found.get('Modality', 'no modality')})")
            if missing := [name for name in ("Rows", "Columns") if found.get(name) is None]:
                raise UserError(f"cannot be decoded as DICOM: it lacks {' and '.join(missing)}")
            if int(found.Rows) * int(found.Columns) > max_pixels:
                raise UserError(f"too large: {found.Columns}x{found.Rows} is over the limit of max_pixels")
            frame = pixel_array(found, index=0)
            return encode(_grey(frame, found) if frame.ndim == 2 else _colour(frame, found), "png")
        except UserError:
            raise
        except Exception as error:  # pydicom raises whatever a broken field leads to
            lines = [line for line in str(error).strip().splitlines() if line.strip()]
            raise UserError(f"cannot be decoded as DICOM: {' '.join(lines[:2])[:160]}") from error


def _grey(frame: np.ndarray, found: Any) -> np.ndarray:
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

    kind = str(found.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        colours = np.asarray(apply_color_lut(frame, found))
        # Tables of 16-bit entries may hold 8-bit values all the same.
        return _scaled(colours.astype(np.float64), 0, 65535 if colours.max(initial=0) > 255 else 255)
    values = np.asarray(apply_modality_lut(frame, found))
    low, high = _output(found)
    if (low, high) != (0, 0):
        values = np.asarray(apply_voi_lut(values, found))  # in the modality's units
    else:
        low, high = float(values.min()), float(values.max())
    grey = _scaled(values.astype(np.float64), low, high)
    return 255 - grey if kind == "MONOCHROME1" else grey


def _output(found: Any) -> tuple[float, float]:
    """What black and white are in the output of a file's table of values or, without one, of its first window; zeros without
    either. Of a negative rescale slope, black is the larger one."""
    from pydicom.pixels import apply_voi, apply_windowing

    table: Any = (found.get("VOILUTSequence") or [{}])[0]
    if table.get("LUTDescriptor") is not None and table.get("LUTData") is not None:
        entries, first = int(table.LUTDescriptor[0]) or 2**16, int(table.LUTDescriptor[1])
        return 0.0, float(np.max(apply_voi(np.arange(first, first + entries), found)))
    if found.get("WindowCenter") is None or found.get("WindowWidth") is None:
        return 0.0, 0.0
    low, high = apply_windowing(np.array([-np.inf, np.inf]), found)
    return float(low), float(high)


def _colour(frame: np.ndarray, found: Any) -> np.ndarray:
    return _scaled(frame.astype(np.float64), 0, 2 ** int(found.BitsStored) - 1)


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if high == low:
        return np.zeros(values.shape, np.uint8)
    return ((values - low) * 255 / (high - low)).round().clip(0, 255).astype(np.uint8)
