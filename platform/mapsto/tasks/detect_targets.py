"""What a detector is trained on and measured by: a row's boxes and masks as arrays, in the input's pixels or the
original's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..core.instances import NOTHING, from_segment, packed
from ..core.metrics.detection import MASKS
from ..core.sample import Sample
from ..data.transforms import upright_size

RAGGED = ("boxes", "box_labels", "crowd", "difficult", "area", *MASKS)


@dataclass(frozen=True)
class Objects:
    """A row's boxes as arrays, each with its label, flags (`crowd`, `difficult`; False where a data set has none) and `area`
    (pixels; NaN where a data set has none), and with `masks` its Patch, drawn from `segments`.

    A row without boxes has none: an image of nothing but background. With `train`, crowd regions are left out, which
    are no objects, and so is a box without area. Raises UserError for boxes that are none, or fit their labels or
    segments not.
    """

    train: bool
    masks: bool = False

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        boxes = np.asarray(_given(sample, "boxes", []), np.float32).reshape(-1, 4)
        labels = np.asarray(_given(sample, "box_labels", []), np.int64)
        if len(labels) != len(boxes):
            raise UserError(f"{len(boxes)} boxes have {len(labels)} box_labels; each needs one")
        if not np.isfinite(boxes).all():
            raise UserError(f"box {int(np.flatnonzero(~np.isfinite(boxes).all(1))[0])} is not finite")
        none = [False] * len(boxes)
        flags = {name: np.asarray(_given(sample, name, none), bool) for name in ("crowd", "difficult")}
        keep = ~flags["crowd"] & (boxes[:, 2:] > boxes[:, :2]).all(1) if self.train else np.ones(len(boxes), bool)
        drawn = {"masks": self._drawn(sample, keep)} if self.masks else {}
        out = {"image": sample["image"], "boxes": boxes[keep], "box_labels": labels[keep], **drawn}
        return out if self.train else {**sample, **out, **flags, "area": _areas(sample, len(boxes))}

    def _drawn(self, sample: Sample, keep: np.ndarray) -> list[Any]:
        segments = _given(sample, "segments", [])
        if len(segments) not in (0, len(keep)):
            raise UserError(f"{len(keep)} boxes have {len(segments)} segments; each needs one, or none has")
        if not len(segments):
            return [NOTHING] * int(keep.sum())
        height, width = upright_size(sample["image"])
        return [from_segment(text, height, width) for text, kept in zip(segments, keep, strict=True) if kept]


def _areas(sample: Sample, count: int) -> np.ndarray:
    area = np.asarray(_given(sample, "area", []), np.float64)  # None becomes NaN
    if len(area) not in (0, count):
        raise UserError(f"{count} boxes have {len(area)} areas; each needs one, or none has")
    return area if len(area) else np.full(count, np.nan)


def _given(sample: Sample, name: str, default: list[Any]) -> Any:
    value = sample.get(name)
    return default if value is None else value


@dataclass(frozen=True)
class Packed:
    """The masks as what a batch can hold: `masks`, all their pixels, and `mask_places`, each one's left, top, width and
    height."""

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        pixels, places = packed(sample["masks"])
        return {**sample, "masks": pixels, "mask_places": places}
