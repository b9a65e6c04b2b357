"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field as Setting
from pydantic import field_validator, model_validator

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.metrics.segmentation import VOID, SegmentationMetrics
from ..core.picture import overlay
from ..core.preprocess import Preprocess
from ..core.sample import Arrays, Batch, Geometry, Prediction, Sample, Split, finite
from ..core.task import Context, ExportSpec, Field, Phase, Signature, Stream, Task, TaskConfig
from ..core.windows import Window, Windows
from ..data.transforms import (
    AsVoid,
    ColorJitter,
    Compose,
    Keep,
    Placed,
    Prepare,
    RandomFlip,
    RandomResizedCrop,
    Step,
)
from .augment import Changes
from .detect_targets import Objects
from .segment_model import SegmentLoss, SegmentModel
from .segment_targets import OBJECTS, Flat, Painted, ids_of_objects

if TYPE_CHECKING:
    import torch
    from torch import nn


class SegmentAugment(Changes):
    scale: tuple[float, float] = (0.5, 1.0)
    """Share of the image's area that a training crop takes."""
    brightness: float = Setting(0.2, ge=0, le=1)
    contrast: float = Setting(0.2, ge=0, le=1)


class SegmentConfig(TaskConfig):
    kind: Literal["segment"]
    answering: ClassVar[tuple[str, ...]] = ("boundary_tolerance",)
    measuring: ClassVar[tuple[str, ...]] = ("measure_at", "windows")
    classes: tuple[str, ...] = Setting(min_length=2, max_length=255)
    """Names of the mask's ids, from 0 (often the background). 255 is void: not trained on, not measured. Where a data set has
    objects' segments and no masks: the background, and then the objects' classes that count."""
    void: tuple[Annotated[int, Setting(ge=0, le=255)], ...] = ()
    """Further ids that are void: `[11]` for CamVid."""
    model: SegmentModel = SegmentModel()
    loss: SegmentLoss = SegmentLoss()
    boundary_tolerance: float = Setting(0.0075, gt=0, le=100)
    """Of the boundary F: below 1 a share of the image's diagonal, rounded up to pixels; from 1 on pixels."""
    measure_at: Literal["original", "input"] = "original"
    """Whose pixels the metrics count: the original's, the logits enlarged to it as answers are, or the input's, the mask
    taken at its pixels: quicker where originals are large, but numbers of another thing."""
    image_size: int = Setting(128, ge=16, le=2048)
    """Side of the square input, pixels."""
    augment: SegmentAugment = SegmentAugment()
    windows: Windows | None = None
    """Evaluate, predict and serve large images through overlapping windows, whose logits are blended. Train on parts of
    about the windows' size, too (`augment.scale`)."""
    role: str = "train"

    @field_validator("classes")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("class names must differ")
        return names

    @model_validator(mode="after")
    def _measurable(self) -> SegmentConfig:
        if self.windows and self.measure_at == "input":
            raise ValueError("measure_at: input has no one size with windows; original is measured then")
        return self


class Segment(Task):
    Config = SegmentConfig
    about: ClassVar[str] = "a class for every pixel"
    config: SegmentConfig

    def check(self) -> None:
        info = self.datasets[self.config.role]
        if self._drawn:
            if "segments" not in info.columns:
                raise UserError(
                    f"{info.uri}: no masks; segment needs a column `mask` (URI of a grey or palette image of class ids) or `segments` (objects' outlines or run lengths)"
                )
            ids_of_objects(info, self.config.classes)
        size, step = self.config.image_size, self.config.model.step
        if size % step:
            raise UserError(
                f"task.image_size: {size} must be a multiple of {step} for {self.config.model.name} of these widths"
            )
        last, void = len(self.config.classes) - 1, (VOID, *self.config.void)
        held: Counter[int] = Counter()
        for split in info.mask_pixels:
            held.update(self._pixels(split))
        unknown = {k: n for k, n in held.items() if k > last and k not in void}
        if unknown:
            shown = ", ".join(f"{k} ({n:,} pixels)" for k, n in sorted(unknown.items())[:8])
            raise UserError(
                f"{info.uri}: masks hold ids {shown}; task.classes names {last + 1} (0..{last}): name them there, or in task.void"
            )
        self._class_weights()

    @property
    def windows(self) -> Windows | None:
        return self.config.windows

    @property
    def _drawn(self) -> bool:
        """Whether masks are drawn from objects."""
        return "mask" not in self.datasets[self.config.role].columns

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return self.stacked(samples, ("mask",) if "size" in samples[0] else ())

    def _pixels(self, split: str) -> dict[int, int]:
        """Mask id → pixels of a split, as ingest counted them."""
        return {int(k): n for k, n in self.datasets[self.config.role].mask_pixels.get(split, {}).items()}

    def _class_weights(self) -> np.ndarray | None:
        """C float32, whose mean over the training pixels is 1: all pixels / (classes that occur · the class's pixels), 0
        for a class that does not occur; None where all weigh alike. UserError where ingest counted no pixels."""
        if self.config.loss.class_weights == "none":
            return None
        void, held = (VOID, *self.config.void), self._pixels("train")
        pixels = np.array([0 if k in void else held.get(k, 0) for k in range(len(self.config.classes))], float)
        if not pixels.any():
            mend = "set none" if self._drawn else "ingest it again with --force, or set none"
            raise UserError(
                f"{self.datasets[self.config.role].uri}: task.loss.class_weights balanced needs the masks' pixels by class, which this data set does not say; {mend}"
            )
        return (pixels.sum() / np.maximum(pixels, 1) / np.count_nonzero(pixels) * (pixels > 0)).astype(np.float32)

    def build(self, parents: Mapping[str, Artifact]) -> nn.Module:
        from ..models.crf import CRF, WithCRF
        from ..models.normalize import normalized
        from ..models.segmenters import segmenter

        info, model, classes = self.datasets[self.config.role], self.config.model, len(self.config.classes)
        settings = model.model_dump(exclude={"crf", "mirror", "scales", "pretrained"})
        net = segmenter(classes=classes, pretrained=model.pretrained and bool(parents), **settings)
        own: Any = getattr(getattr(net, "backbone", None), "default_cfg", None) if model.pretrained else None
        whole = normalized(model.around(net, self.config.image_size, model.step), info, own)
        return WithCRF(whole, CRF(classes, **model.crf.model_dump())) if model.crf else whole

    def streams(self, split: Split) -> Mapping[str, Stream]:
        augment, keep, columns = self.config.augment, Keep("image", "mask"), ("image", "mask")
        paint: tuple[Step, ...] = ()
        if self._drawn:
            info, columns = self.datasets[self.config.role], ("image", *OBJECTS)
            paint = (Objects(train=False, masks=True), Painted(ids_of_objects(info, self.config.classes)))
        void = (AsVoid(self.config.void),) if self.config.void else ()
        if split != "train" and self.config.measure_at == "original":
            placed = Keep("image", "mask", "matrix", "size")
            transform = Compose(*paint, Placed(self.preprocess, self.windows), *void, Flat(), placed)
            return {
                "": Stream(self.config.role, split, transform, columns, "sequential", beside=self._original_bytes())
            }
        pixels = self.config.image_size**2
        if split != "train":
            transform = Compose(*paint, Prepare(self.preprocess), *void, keep)
            return {"": Stream(self.config.role, split, transform, columns, "sequential", beside=pixels)}
        moving = [RandomResizedCrop(self.config.image_size, augment.scale), RandomFlip(augment.flip)]
        colour = ColorJitter(augment.brightness, augment.contrast, augment.saturation, augment.hue)
        steps = Compose(*paint, *moving, *augment.turns(), colour, *augment.blurs(), *void, keep)
        return {"": Stream(self.config.role, split, steps, columns, beside=pixels)}

    def _original_bytes(self) -> int | None:
        """Of an original's mask: the mean of the split whose masks are largest, any of which may be evaluated. None where
        ingest counted no pixels."""
        info = self.datasets[self.config.role]
        means = [sum(self._pixels(split).values()) // rows for split, rows in info.rows.items() if rows]
        return max(means) if means and all(means) else None

    def phases(self, model: nn.Module) -> tuple[Phase, ...]:
        return (Phase("train", self._loss),)

    def _loss(
        self, model: nn.Module, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Over the valid rows' pixels that are not void: the count is pixels, or the sum of their weights."""
        import torch

        from ..models.segmentation_loss import segmentation_loss

        logits, mask = self.forward(model, batch)["logits"].float(), batch["mask"].long()
        counted = (mask != VOID) & batch["valid"][:, None, None]
        wrong = counted & (mask >= len(self.config.classes))
        if wrong.any():
            raise UserError(
                f"a mask holds id {int(mask[wrong].max())}, task.classes names {len(self.config.classes)} (0..{len(self.config.classes) - 1}), task.void {list(self.config.void)}; rows {batch['row_id'][wrong.flatten(1).any(1)].tolist()}"
            )
        balance, parts = self._class_weights(), self.config.loss.model_dump(exclude={"class_weights"})
        weights = None if balance is None else torch.as_tensor(balance, device=logits.device)
        total, weight = segmentation_loss(logits, mask, counted, weights=weights, **parts)
        right = ((logits.detach().argmax(1) == mask) * weight).sum()
        return total, weight.sum(), {f"train_{'pixel' if balance is None else 'mean'}_accuracy": right}

    def decode(self, output: Arrays, geometry: Sequence[Geometry]) -> list[Prediction]:
        predictions = []
        for mask in self.answers(output, geometry):
            share = np.bincount(mask.ravel(), minlength=len(self.config.classes)) / mask.size
            predictions.append(
                {
                    "mask": mask,
                    "share": {n: round(float(s), 6) for n, s in zip(self.config.classes, share, strict=True)},
                }
            )
        return predictions

    def answers(self, output: Arrays, geometry: Sequence[Geometry]) -> list[np.ndarray]:
        """Each image's class ids in the original's pixels, H×W uint8; with windows `output` has a row for each of them,
        image by image."""
        rows = iter(finite(np.asarray(output["logits"]), "segment: the model's logits"))
        if self.windows is None:
            return [_to_original(logits, place) for logits, place in zip(rows, geometry, strict=True)]
        found = []
        for place in geometry:
            windows = self.windows.cut(place.height, place.width)
            parts = [next(rows) for _ in windows]
            if len(windows) == 1:
                alone = self.preprocess.geometry(place.height, place.width)
                found.append(_to_original(parts[0], alone))
            else:
                found.append(_blended(parts, windows, place.height, place.width))
        return found

    def metrics(self) -> SegmentationMetrics:
        return SegmentationMetrics(self.config.classes, self.config.boundary_tolerance, self.answers)

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(self.config.image_size, "stretch")

    def signature(self) -> Signature:
        outputs = (
            Field("mask", "mask", about="class ids in the image's own size, a grey PNG"),
            Field("share", "number", about="of the pixels, by class"),
        )
        return Signature((Field("image", "image"),), outputs)

    def export(self) -> ExportSpec:
        size = self.config.image_size
        quantize = self.config.model.crf is None  # mean field is differences of small numbers, a product per neighbour
        return ExportSpec({"image": np.zeros((2, size, size, 3), np.uint8)}, ("logits",), quantize)

    def render(self, sample: Sample, prediction: Prediction) -> np.ndarray:
        image, mask = sample.get("original", sample["image"]), prediction["mask"]
        if mask.shape != image.shape[:2]:  # the page shows the model's input, the prediction is in the original's size
            mask = mask[np.arange(image.shape[0]) * mask.shape[0] // image.shape[0]][
                :, np.arange(image.shape[1]) * mask.shape[1] // image.shape[1]
            ]
        return np.concatenate([image, overlay(image, mask, len(self.config.classes))], axis=1)


BAND = 512
"""Rows of an image that are answered at once: the logits of a whole large one would not fit."""


def _to_original(logits: np.ndarray, geometry: Geometry) -> np.ndarray:
    """C×S×S logits of a stretched input → the original's class ids, H×W uint8: the logits are enlarged before the largest is
    taken, so that outlines are no staircases."""
    height, width = geometry.height, geometry.width
    out = np.zeros((height, width), np.uint8)
    for top in range(0, height, BAND):
        ids = out[top : top + BAND]
        best = np.full(ids.shape, -np.inf, np.float32)
        for k, seen in enumerate(_enlarged(logits, height, width, np.arange(top, top + len(ids)))):
            np.copyto(ids, np.uint8(k), where=seen > best)
            np.maximum(best, seen, out=best)
    return out


def _blended(parts: Sequence[np.ndarray], windows: Sequence[Window], height: int, width: int) -> np.ndarray:
    """H×W uint8 class ids: at each pixel the largest of the mean logits, enlarged, of the windows that see it, which weigh
    the less the nearer the pixel is to their edges."""
    out = np.empty((height, width), np.uint8)
    for top in range(0, height, BAND):
        rows = np.arange(top, min(height, top + BAND))
        total = np.zeros((parts[0].shape[0], len(rows), width), np.float32)
        for logits, window in zip(parts, windows, strict=True):
            mine = rows[(rows >= window.top) & (rows < window.top + window.height)]
            if not len(mine):
                continue
            down, columns = mine - window.top, slice(window.left, window.left + window.width)
            weight = _tent(down, window.height)[:, None] * _tent(np.arange(window.width), window.width)
            for sums, seen in zip(total, _enlarged(logits, window.height, window.width, down), strict=True):
                sums[mine[0] - top : mine[-1] + 1 - top, columns] += seen * weight
        out[top : top + len(rows)] = total.argmax(0)
    return out


def _enlarged(logits: np.ndarray, height: int, width: int, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Of C×S×S logits, class by class, the given rows of what bilinear interpolation makes of them at height × width."""
    import cv2

    side = logits.shape[1]
    at = ((rows + 0.5) * (side / height) - 0.5).clip(0, side - 1)
    low = np.floor(at).astype(int)
    high, share = np.minimum(low + 1, side - 1), (at - low).astype(np.float32)[:, None]
    for each in logits:
        first, last = each[low].astype(np.float32), each[high].astype(np.float32)
        yield cv2.resize(first + (last - first) * share, (width, len(rows)), interpolation=cv2.INTER_LINEAR)


def _tent(at: np.ndarray, length: int) -> np.ndarray:
    """1 in the middle, falling to the edges, above 0 everywhere."""
    return (1 - np.abs((at + 0.5) * 2 / length - 1)).astype(np.float32)
