"""One sample of several rows, and several views of one row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core import codecs
from ...core.errors import UserError
from ...core.preprocess import Preprocess, resize, sample_nearest
from ...core.sample import Geometry, Sample
from ..annotations import PER_BOX
from .moving import VOID, carry, image_of, keypoints_of, mask_of, upright_size
from .step import Prepare, Step


@dataclass(frozen=True)
class Mosaic:
    """Four rows in one picture of size×size, about a random crossing (Bochkovskiy et al., YOLOv4, arXiv 2004.10934). The
    stream brings the other three: `partners=3`.

    Each image's longer side becomes size times a factor from `scale`, its inner corner lies at the crossing (within
    `centre`, shares of the side), and what is left is grey. `least`: a box of which no more than this share stays inside
    goes. With probability 1 - p the row is letterboxed alone. Raises UserError for rows that do not fit each other.
    """

    size: int
    scale: tuple[float, float] = (0.5, 1.5)
    centre: tuple[float, float] = (0.25, 0.75)
    least: float = 0.1
    p: float = 1.0
    fill: int = 114

    def join(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return Prepare(Preprocess(self.size, "letterbox")).apply(samples[0], rng)
        if len(samples) < 4:
            raise ValueError(f"a mosaic needs four rows, not {len(samples)}: Stream(..., partners=3)")
        low, high = self.centre
        cross = [int((low + rng.random() * (high - low)) * self.size) for _ in range(2)]
        zoom = self.scale[0] + rng.random() * (self.scale[1] - self.scale[0])
        return self.compose(samples, (cross[0], cross[1]), zoom)

    def compose(self, samples: Sequence[Sample], cross: tuple[int, int], zoom: float) -> Sample:
        """Exactly this crossing (x, y) and zoom; in the order top left, top right, bottom left, bottom right."""
        out: Sample = dict(samples[0])
        out["image"] = np.full((self.size, self.size, 3), self.fill, np.uint8)
        masked = samples[0].get("mask") is not None
        if masked:
            out["mask"] = np.full((self.size, self.size), VOID, np.uint8)
        parts: list[Sample] = []
        for k, sample in enumerate(samples[:4]):
            height, width = upright_size(sample["image"])
            ratio = self.size * zoom / max(height, width)
            h, w = max(1, round(height * ratio)), max(1, round(width * ratio))
            x, y = cross[0] - w * (k % 2 == 0), cross[1] - h * (k < 2)
            self._paste(out["image"], resize(_decoded(sample["image"], h, w), w, h), x, y)
            matrix = np.array([[w / width, 0, x], [0, h / height, y], [0, 0, 1]])
            if masked:
                seen = sample_nearest(mask_of(sample), Geometry(np.linalg.inv(matrix), height, width), self.size, VOID)
                inside = (slice(max(y, 0), max(y + h, 0)), slice(max(x, 0), max(x + w, 0)))
                out["mask"][inside] = seen[inside]
            parts.append(carry(sample, matrix, self.size, self.size, least=self.least))
        return out | {name: _together(name, parts) for name in parts[0]}

    def _paste(self, canvas: np.ndarray, image: np.ndarray, x: int, y: int) -> None:
        x0, y0 = max(x, 0), max(y, 0)
        seen = image[y0 - y : self.size - y, x0 - x : self.size - x]
        canvas[y0 : y0 + seen.shape[0], x0 : x0 + seen.shape[1]] = seen


@dataclass(frozen=True, init=False)
class MultiCrop:
    """Several views of one image, each through steps of its own, for self-supervision (Caron et al., SwAV,
    arXiv 2006.09882).

    `MultiCrop(large, large, small, small)`, each a tuple of steps, gives `view0`, `view1`, ... in the place of `image`;
    with `stack="views"` one array, views×H×W×3, which needs views of one size. The image is decoded once. What lies in the
    image's own pixels (mask, boxes, keypoints) fits none of the views, and is left out.
    """

    views: tuple[tuple[Step, ...], ...]
    stack: str | None

    def __init__(self, *views: tuple[Step, ...], stack: str | None = None) -> None:
        object.__setattr__(self, "views", views)
        object.__setattr__(self, "stack", stack)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        whole = {"image": image_of(sample)}
        images: list[np.ndarray] = []
        for steps in self.views:
            view: Sample = whole
            for step in steps:
                view = step.apply(view, rng)
            images.append(view["image"])
        left_out = ("image", "mask", "masks", "boxes", "keypoints", *PER_BOX)
        rest = {name: value for name, value in sample.items() if name not in left_out}
        if self.stack is None:
            return rest | {f"view{k}": image for k, image in enumerate(images)}
        sizes = {image.shape for image in images}
        if len(sizes) > 1:
            raise ValueError(f"views of different sizes cannot be stacked: {sorted(sizes)}")
        return rest | {self.stack: np.stack(images)}


def _decoded(data: bytes | np.ndarray, height: int, width: int) -> np.ndarray:
    return data if isinstance(data, np.ndarray) else codecs.decode(data, at_least=math.ceil(min(height, width)))


def _together(name: str, parts: Sequence[Sample]) -> Any:
    """A column of all four: boxes and what belongs to them, one after the other."""
    values = [part[name] for part in parts if name in part]
    if len(values) < len(parts):
        raise UserError(f"mosaic: some of its rows have no {name}")
    if name == "boxes":
        return np.concatenate(values)
    if name in (*PER_BOX, "masks"):
        filled = [len(part["boxes"]) == len(part[name]) for part in parts if "boxes" in part]
        if all(filled) is False and not any(len(value) for value in values):
            return values[0]  # no row has this column
        if not all(filled):
            raise UserError(f"mosaic: some of its rows have boxes without {name}")
    if name in ("segments", "masks"):
        return [each for value in values for each in value]
    if name != "keypoints":
        return np.concatenate([np.asarray(value) for value in values])
    points = [keypoints_of({"keypoints": value}) for value in values]
    most = max(array.shape[1] for array in points)
    wrong = next((array.shape[1] for array in points if array.shape[1] not in (0, most)), None)
    if wrong is not None:
        raise UserError(f"mosaic: its rows have {wrong} and {most} keypoints a box")
    return np.concatenate([a if a.shape[1] else np.zeros((len(a), most, 3), np.float32) for a in points])
