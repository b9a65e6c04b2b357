"""NIfTI volumes → grey PNG slices: rescaled, turned to RAS, cut along the axis from foot to head, windowed by the volume.

In a slice, the person's left is on the left and the front on top. The window is the 0.5th to the 99.5th percentile of
the whole volume's finite values; what is not a number is black. Voxels that are not square stay as they are stored.
Source: the NIfTI-1 and NIfTI-2 data formats (https://nifti.nimh.nih.gov); 8 bits, as `core/codecs.py` gives.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from typing import Any

import numpy as np

from ..core.errors import UserError

HEAD_BYTES = 2**16
"""Of a file, enough for its header."""
MOST_VOXELS = 2**28
"""A volume is held as float32: 1 GiB."""
WINDOW = (0.5, 99.5)


def slices(head: bytes) -> tuple[int, int]:
    """(slices, bytes of one as stored) by a file's first `HEAD_BYTES`, compressed or not. Raises UserError for what is no
    NIfTI file, for one of more dimensions than three, of colours or complex numbers, and for one that is too large."""
    found = _header(_plain_head(head))
    shape = _shape(found)
    count = shape[_axes(found).index(2)]
    return count, math.prod(shape) // count * found.get_data_dtype().itemsize


def volume(data: bytes) -> np.ndarray:
    """A whole file → slices×H×W uint8. Raises UserError for a broken one, and as `slices` does."""
    import nibabel
    from nibabel.spatialimages import HeaderDataError

    found = _header(_plain_head(data))
    shape = _shape(found)
    _axes(found)
    need = int(found["vox_offset"]) + math.prod(shape) * found.get_data_dtype().itemsize
    kind = nibabel.Nifti2Image if isinstance(found, nibabel.Nifti2Header) else nibabel.Nifti1Image
    try:
        image = nibabel.as_closest_canonical(kind.from_bytes(_plain(data, need)))
        values = np.array(image.dataobj, np.float32).reshape(image.shape[:3])
    except (zlib.error, EOFError, OSError, ValueError, HeaderDataError) as error:
        raise UserError(f"cannot be read as NIfTI: {_line(error)}") from error
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, WINDOW) if finite.size else (0.0, 0.0)
    np.nan_to_num(values, copy=False, nan=low, posinf=high, neginf=low)
    scale = 255 / (high - low) if high > low else 0.0
    grey = ((values - low) * scale).round().clip(0, 255).astype(np.uint8)
    return grey.transpose(2, 1, 0)[:, ::-1]  # x to the right, y upwards


def _axes(found: Any) -> list[int]:
    """The axis of RAS that each stored axis lies nearest to."""
    from nibabel.orientations import io_orientation

    try:
        order = io_orientation(found.get_best_affine())[:, 0]
    except Exception as error:  # whatever a broken matrix leads to
        raise UserError(f"its orientation cannot be read: {_line(error)}") from error
    if sorted(order) != [0, 1, 2]:
        raise UserError("its orientation cannot be read: an axis without a direction")
    return [int(axis) for axis in order]


def _header(head: bytes) -> Any:
    import nibabel
    from nibabel.spatialimages import HeaderDataError

    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        size = kind.template_dtype.itemsize
        if len(head) >= size and kind.may_contain_header(head[:size]):
            try:
                found = kind.from_fileobj(io.BytesIO(head), check=True)
            except (HeaderDataError, ValueError) as error:
                raise UserError(f"not a NIfTI header: {_line(error)}") from error
            if not 0 <= float(found["vox_offset"]) <= MOST_VOXELS:  # NaN, too
                raise UserError(
                    f"vox_offset, where its voxels begin, is {found['vox_offset']}: bytes, 0 to {MOST_VOXELS}"
                )
            return found
    raise UserError("not a NIfTI file")


def _shape(found: Any) -> tuple[int, int, int]:
    try:
        shape, kind = tuple(int(side) for side in found.get_data_shape()), found.get_data_dtype()
    except Exception as error:  # nibabel's own, for a code that it does not know
        raise UserError(f"a NIfTI file of values that cannot be read: {_line(error)}") from error
    said = "x".join(map(str, shape))
    if len(shape) < 3 or min(shape) < 1 or math.prod(shape[3:]) > 1:
        raise UserError(f"a volume has three dimensions, this one is {said}: take one volume of a series out of it")
    if kind.fields is not None or kind.kind not in "iuf":
        raise UserError(f"grey values are read, these are {'colours' if kind.fields else kind}")
    if math.prod(shape) > MOST_VOXELS:
        raise UserError(f"{said} voxels, over the limit of {MOST_VOXELS}")
    return shape[0], shape[1], shape[2]


def _plain_head(head: bytes) -> bytes:
    if head[:2] != b"\x1f\x8b":
        return head[:HEAD_BYTES]
    try:
        return zlib.decompressobj(31).decompress(head[:HEAD_BYTES], HEAD_BYTES)
    except zlib.error as error:
        raise UserError(f"not a gzip file: {error}") from error


def _plain(data: bytes, need: int) -> bytes:
    """The first `need` bytes: what a gzip file holds beyond its volume is not expanded."""
    if data[:2] == b"\x1f\x8b":
        with gzip.open(io.BytesIO(data)) as source:
            data = source.read(need)
    if len(data) < need:
        raise UserError(f"the volume is cut short: {len(data)} of {need} bytes")
    return data


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:160]
