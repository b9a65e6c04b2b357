"""What the tasks share that answer with a few numbers for a whole image: a timm model or one of our own, a classifier's crops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field as Setting

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.preprocess import Preprocess
from ..core.sample import Batch, DatasetInfo, Split
from ..core.task import Context, ExportSpec, Phase, Stream, Task, TaskConfig
from ..data.transforms import (
    AutoAugment,
    ColorJitter,
    Compose,
    Keep,
    PadCrop,
    Prepare,
    RandAugment,
    RandomErasing,
    RandomFlip,
    RandomResizedCrop,
    Step,
    TrivialAugment,
)
from .augment import Changes
from .classify_model import Model, network

if TYPE_CHECKING:
    import torch
    from torch import nn


class Augment(Changes):
    """What a training image goes through; geometry is drawn anew for every draw."""

    crop: Literal["random_resized", "pad", "none"] = "random_resized"
    """`pad`: pad by `pad` pixels (reflected) and crop back, for small images."""
    scale: tuple[float, float] = (0.35, 1.0)
    """Of random_resized: share of the image's area."""
    ratio: tuple[float, float] = (0.75, 1.3333)
    pad: int = Setting(4, ge=0)
    policy: Literal["none", "randaugment", "autoaugment", "trivialaugment"] = "none"
    """A published policy of operations, after the crop and the flips."""
    operations: int = Setting(2, ge=0, le=14)
    """Of randaugment: how many, in turn."""
    magnitude: int = Setting(9, ge=0, le=30)
    """Of randaugment: how strong."""
    policy_for: Literal["imagenet", "cifar10", "svhn"] = "imagenet"
    """Of autoaugment: the data set for which its policy was found."""
    erase: float = Setting(0.0, ge=0, le=1)
    """Probability of a rectangle filled with the data set's mean colour."""


class WholeConfig(TaskConfig):
    model: Model = Model()
    image_size: int = Setting(224, ge=8, le=1024)
    """Side of the square input, pixels."""
    crop_fraction: float = Setting(1.0, gt=0.1, le=1)
    """Share of the shorter side that evaluation's centre crop keeps."""
    augment: Augment = Augment()
    role: str = "train"
    """Which of the recipe's data sets."""


def labelled(info: DatasetInfo) -> None:
    """UserError where a row has no label."""
    for split, missing in info.unlabelled().items():
        raise UserError(
            f"{info.uri}: {missing} of {info.rows[split]} rows of {split} have no label; label them (mapsto data review), or leave them out: "
            "clean: {rules: {missing_label: {policy: quarantine}}}"
        )


class WholeImage(Task):
    """`outputs` numbers for each image: the model gives N×outputs logits. `config` is a WholeConfig."""

    keeps: ClassVar[str] = "label"
    """A sample's truth."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the rows, besides the image."""
        return (self.keeps,)

    @property
    def info(self) -> DatasetInfo:
        return self.datasets[self.config.role]

    @property
    def outputs(self) -> int:
        return len(self.info.classes)

    def build(self, parents: Mapping[str, Artifact]) -> nn.Module:
        return network(self.config.model, self.info, self.outputs, self.config.image_size, fetch=bool(parents))

    def phases(self, model: nn.Module) -> tuple[Phase, ...]:
        return (Phase("train", self._loss),)

    def _loss(
        self, model: nn.Module, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        raise NotImplementedError

    def targets(self) -> tuple[Step, ...]:
        """What makes the learnt value of a row, under the name that `keeps` gives it."""
        return ()

    def streams(self, split: Split) -> Mapping[str, Stream]:
        keep, columns = Keep("image", self.keeps), ("image", *self.columns)
        if split != "train":
            transform = Compose(*self.targets(), Prepare(self.preprocess), keep)
            return {"": Stream(self.config.role, split, transform, columns, "sequential")}
        return {"": self.training(Compose(*self.targets(), *self._augmentation(), keep), columns)}

    def training(self, transform: Compose, columns: tuple[str, ...]) -> Stream:
        """How the training rows are drawn."""
        return Stream(self.config.role, "train", transform, columns, "shuffled")

    def _augmentation(self) -> Iterator[Step]:
        """What a training image goes through, in order: what moves pixels, what changes them, what hides them."""
        augment, size = self.config.augment, self.config.image_size
        if augment.crop == "random_resized":
            yield RandomResizedCrop(size, augment.scale, augment.ratio)
        else:
            yield Prepare(self.preprocess)
        if augment.crop == "pad":
            yield PadCrop(augment.pad)
        if augment.flip:
            yield RandomFlip(augment.flip)
        yield from augment.turns()
        if augment.policy == "randaugment":
            yield RandAugment(augment.operations, augment.magnitude)
        elif augment.policy == "autoaugment":
            yield AutoAugment(augment.policy_for)
        elif augment.policy == "trivialaugment":
            yield TrivialAugment()
        if augment.brightness or augment.contrast or augment.saturation or augment.hue:
            yield ColorJitter(augment.brightness, augment.contrast, augment.saturation, augment.hue)
        yield from augment.blurs()
        if augment.erase:
            red, green, blue = (round(255 * v) for v in self.info.mean)
            yield RandomErasing(augment.erase, value=(red, green, blue))

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(self.config.image_size, "crop", self.config.crop_fraction)

    def export(self) -> ExportSpec:
        size = self.config.image_size
        return ExportSpec({"image": np.zeros((2, size, size, 3), np.uint8)}, ("logits",))
