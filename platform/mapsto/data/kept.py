"""What a node's cache may keep in place of the stored bytes: images shrunk once, as JPEG or as bare pixels.

Applied to whole row groups before anything is drawn from them, from the first epoch on: so the pixels of a draw are the
same on every node and in every epoch, cached or not. Boxes, masks and keypoints follow the size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import codecs
from ..core.errors import UserError
from .pack import shrunk
from .transforms.moving import upright_size

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Kept:
    longest_side: int | None
    """Pixels; smaller images keep their size. None: all do."""
    quality: int | None
    """Of JPEG, 1..100, for images that were shrunk; None: pixels, which need no decoding any more."""


def kept(table: pa.Table, how: Kept) -> pa.Table:
    """A row group with its images as they are kept: pixels have the columns `width` and `height` beside them. Raises
    UserError, with the row_id, for an image that cannot be decoded."""
    import pyarrow as pa

    schema = table.schema
    if how.quality is None:
        schema = schema.set(schema.get_field_index("image"), pa.field("image", pa.large_binary()))
        for name in ("width", "height"):
            if name not in schema.names:
                schema = schema.append(pa.field(name, pa.int32()))
    return pa.Table.from_pylist([_row(row, how) for row in table.to_pylist()], schema)


def image(values: Mapping[str, pa.Array], offset: int) -> np.ndarray:
    """The pixels of a kept row, H×W×3 uint8, read-only: a view of the cache's memory."""
    height, width = values["height"][offset].as_py(), values["width"][offset].as_py()
    return np.frombuffer(values["image"][offset].as_buffer(), np.uint8).reshape(height, width, 3)


def _row(row: dict[str, Any], how: Kept) -> dict[str, Any]:
    try:
        small = how.longest_side is None or max(upright_size(row["image"])) <= how.longest_side
        if small and how.quality is not None:
            return row
        pixels = codecs.decode(row["image"])
        out, pixels = (row, pixels) if how.longest_side is None else shrunk(row, pixels, how.longest_side)
    except UserError as error:
        raise UserError(f"row {row['row_id']}: {error}") from error
    pixels = np.ascontiguousarray(pixels)
    data = pixels.tobytes() if how.quality is None else codecs.encode(pixels, "jpeg", how.quality)
    return out | {"image": data, "width": pixels.shape[1], "height": pixels.shape[0]}
