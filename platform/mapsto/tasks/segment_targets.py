"""What a segmentation is trained on and measured by: a mask of class ids, as it came or drawn from a row's objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.errors import UserError, nearest
from ..core.metrics.segmentation import VOID
from ..core.sample import DatasetInfo, Sample
from ..data.transforms import mask_of, upright_size

OBJECTS = ("boxes", "box_labels", "segments")
"""The columns that masks are drawn from."""


@dataclass(frozen=True)
class Flat:
    """The mask's pixels one after the other: originals differ in size."""

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return sample | {"mask": mask_of(sample).ravel()}


@dataclass(frozen=True)
class Painted:
    """`mask`, drawn from a row's objects as `detect_targets.Objects` leaves them, with their masks: `ids[label]` where an
    object is, the smaller over the larger, and 0 elsewhere. The box of an object that has no segment is void, but for what
    others cover."""

    ids: tuple[int, ...]

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        mask = np.zeros(upright_size(sample["image"]), np.uint8)
        objects = zip(sample["boxes"], sample["box_labels"], sample["masks"], strict=True)
        for box, label, patch in sorted(objects, key=lambda each: (each[2].area > 0, -each[2].area)):
            if patch.area:
                height, width = patch.pixels.shape
                inside = mask[patch.top : patch.top + height, patch.left : patch.left + width]
                inside[patch.pixels] = self.ids[label]
            else:
                left, top = np.floor(box[:2]).clip(0).astype(int)
                right, bottom = np.ceil(box[2:]).clip(0).astype(int)
                mask[top:bottom, left:right] = VOID
        return {"image": sample["image"], "mask": mask}


def ids_of_objects(info: DatasetInfo, classes: Sequence[str]) -> tuple[int, ...]:
    """A data set's class → its id among `classes`, whose first is what no object covers; 0 for a class that is not named. UserError
    where they do not fit."""
    drawn = f"{info.uri}: no `mask` column, so masks are drawn from its objects"
    if classes[0] in info.classes:
        raise UserError(
            f"{drawn}: the first of task.classes is what none of them covers, not {classes[0]}: put background there"
        )
    for name in classes[1:]:
        if name not in info.classes:
            raise UserError(
                f"{drawn}, of which none is called {name} (task.classes){nearest(name, list(info.classes))}"
            )
    return tuple(classes.index(name) if name in classes else 0 for name in info.classes)
