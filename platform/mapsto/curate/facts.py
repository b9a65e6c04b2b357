"""What the rules look at: one row of small values per image, in arrays over a whole data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from ..core.sample import SPLITS
from .fingerprints import thumbnail
from .quality import MEASURES, measure

NO_IDENTITY = -1


@dataclass(frozen=True)
class Facts:
    """N images, in the order of the data set's files and of the rows in them."""

    row_id: np.ndarray
    """int64."""
    file: np.ndarray
    """int32: number of the shard, over all splits."""
    place: np.ndarray
    """int32: row in the shard."""
    split: np.ndarray
    """uint8: index into SPLITS."""
    label: np.ndarray
    """int64; -1 is none."""
    identity: np.ndarray
    """int64: `code` of the row's identity; -1 is none."""
    content: np.ndarray
    """S16: the start of the encoded bytes' sha256."""
    pixels: np.ndarray
    """S16: the start of the decoded pixels' sha256, which covers their shape."""
    width: np.ndarray
    height: np.ndarray
    """int32, pixels."""
    measures: np.ndarray
    """N×6 float32: `quality.MEASURES`."""
    outside: np.ndarray
    """float32: pixels by which the furthest box lies outside the image; 0 without boxes."""
    left_out: np.ndarray
    """int32: boxes without area inside the image that `ingest` left out of the row."""
    largest_id: np.ndarray
    """int16: of the mask, void (255, `task.void`) left aside; -1 without mask."""
    present: np.ndarray
    """N×W uint8: the classes of the row's `labels`, or else of its boxes, a bit for each, the first the highest of its byte; W is 1 where
    no row of the data set has either."""
    listed: np.ndarray
    """bool: it has `labels`, none of the classes among them."""
    kinds: np.ndarray
    """uint8: number of the format in `formats`."""
    formats: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.row_id)

    def measured(self, name: str) -> np.ndarray:
        return self.measures[:, MEASURES.index(name)]


def code(name: str) -> int:
    """A name as a number of 63 bits, never -1."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 1


def of_image(image: np.ndarray) -> dict[str, object]:
    """The facts that need the pixels: H×W×3 uint8 RGB → `pixels`, `measures`, `thumb` as bytes."""
    seen = hashlib.sha256(repr(image.shape).encode())
    seen.update(np.ascontiguousarray(image).data)
    return {
        "pixels": seen.digest()[:16],
        "measures": measure(image).tobytes(),
        "thumb": thumbnail(image).tobytes(),
    }


def of_annotations(
    width: int, height: int, boxes: np.ndarray | None, mask: np.ndarray | None, void: Sequence[int] = ()
) -> dict[str, object]:
    """The facts of an image's annotations: `outside`, `largest_id`. `void`: ids of masks that mark no class, besides 255."""
    outside, largest = 0.0, -1
    if boxes is not None and len(boxes):
        over = np.maximum(boxes - np.array([width, height, width, height]), -boxes)
        outside = float(max(over.max(), 0))
    if mask is not None:
        largest = largest_id(mask, void)
    return {"outside": outside, "largest_id": largest}


def of_classes(labels: Sequence[int] | None, box_labels: Sequence[int] | None, classes: int) -> dict[str, object]:
    """The facts of an image's several classes, of so many that there are: `present` as bytes, `listed`."""
    return {
        "present": bits(labels if labels is not None else box_labels or (), classes).tobytes(),
        "listed": labels is not None,
    }


def bits(ids: Sequence[int], classes: int) -> np.ndarray:
    """Class ids → W uint8, one byte at least."""
    held = np.zeros(max(1, classes), bool)
    held[[k for k in ids if k >= 0]] = True
    return np.packbits(held)


def largest_id(mask: np.ndarray, void: Sequence[int] = ()) -> int:
    """Of an H×W mask of class ids; -1 where all of it is void (255, and `void`)."""
    ids = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    return int(ids[~np.isin(ids, (255, *void))].max(initial=-1))


def joined(parts: list[dict[str, np.ndarray]], splits: list[str]) -> Facts:
    """Facts from each shard's columns, in order; `splits`: that of each shard."""
    names = [part["format"] for part in parts]
    formats = tuple(sorted({str(name) for each in names for name in np.unique(each)}))
    kinds = [np.searchsorted(np.array(formats), each.astype(str)).astype(np.uint8) for each in names]
    files = [np.full(len(part["row_id"]), k, np.int32) for k, part in enumerate(parts)]
    places = [np.arange(len(part["row_id"]), dtype=np.int32) for part in parts]
    where = [np.full(len(file), SPLITS.index(split), np.uint8) for file, split in zip(files, splits, strict=True)]
    made = {"file": files, "place": places, "split": where, "kinds": kinds}
    columns = {}
    for name in (f.name for f in fields(Facts) if f.name != "formats"):
        columns[name] = np.concatenate(made[name] if name in made else [part[name] for part in parts])
    return Facts(**columns, formats=formats)
