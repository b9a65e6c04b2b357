"""Image classification: one label per image, softmax cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field as Setting

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.metrics.classification import ClassificationMetrics, softmax
from ..core.picture import banner
from ..core.preprocess import Preprocess
from ..core.sample import Arrays, Batch, Geometry, Prediction, Sample, Split
from ..core.task import Context, ExportSpec, Field, Phase, Signature, Stream, Task, TaskConfig
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
from .distill import Distill, distilled

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
    mixup: float = Setting(0.0, ge=0)
    """α of mixup; 0: none. With `cutmix` too, each batch takes one of them."""
    cutmix: float = Setting(0.0, ge=0)
    """α of CutMix; 0: none."""


class ClassifyConfig(TaskConfig):
    kind: Literal["classify"]
    model: Model = Model()
    image_size: int = Setting(224, ge=8, le=1024)
    """Side of the square input, pixels."""
    crop_fraction: float = Setting(1.0, gt=0.1, le=1)
    """Share of the shorter side that evaluation's centre crop keeps."""
    label_smoothing: float = Setting(0.0, ge=0, lt=1)
    augment: Augment = Augment()
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """`balanced`: an epoch draws every class alike often, however rare it is; rows of rare classes come several times."""
    role: str = "train"
    """Which of the recipe's data sets."""
    distill: Distill | None = None
    """Learn from another model's answers, too."""

    def artifacts(self) -> Mapping[str, str]:
        return {"distill.teacher": self.distill.teacher} if self.distill else {}


class Classify(Task):
    Config = ClassifyConfig
    about: ClassVar[str] = "one label per image"
    config: ClassifyConfig
    _parents: Mapping[str, Artifact] = {}
    """Of training."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.datasets[self.config.role].classes

    def check(self) -> None:
        info = self.datasets[self.config.role]
        if not info.classes:
            raise UserError(
                f"{info.uri}: no labels; classify needs a folder per class, or a manifest with a `label` column"
            )
        if len(info.classes) < 2:
            raise UserError(f"{info.uri}: one class only ('{info.classes[0]}'); classify needs two or more")

    def build(self, parents: Mapping[str, Artifact]) -> nn.Module:
        self._parents = parents
        return network(self.config.model, self.datasets[self.config.role], self.config.image_size, fetch=bool(parents))

    def streams(self, split: Split) -> Mapping[str, Stream]:
        config, keep = self.config, Keep("image", "label")
        if split != "train":
            transform = Compose(Prepare(self.preprocess), keep)
            return {"": Stream(config.role, split, transform, ("image", "label"), "sequential")}
        transform = Compose(*self._augmentation(), keep)
        return {"": Stream(config.role, split, transform, ("image", "label"), config.sampling)}

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
            red, green, blue = (round(255 * v) for v in self.datasets[self.config.role].mean)
            yield RandomErasing(augment.erase, value=(red, green, blue))

    def phases(self, model: nn.Module) -> tuple[Phase, ...]:
        config = self.config
        loss = distilled(self._loss, config.distill, self._parents, self) if config.distill else self._loss
        return (Phase("train", loss),)

    def _loss(
        self, model: nn.Module, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Cross-entropy. Of mixed images `train_top1` is the share of the label that the answer has."""
        import torch.nn.functional as F

        from ..models.mixing import Mixing

        target, mix = batch["label"], Mixing(self.config.augment.mixup, self.config.augment.cutmix)
        if mix:
            image, target = mix(batch["image"], target, batch["valid"], len(self.classes), context.shared)
            batch = batch | {"image": image}
        logits = self.forward(model, batch)["logits"].float()
        valid = batch["valid"].float()
        each = F.cross_entropy(logits, target, reduction="none", label_smoothing=self.config.label_smoothing)
        best = logits.detach().argmax(1)
        right = target.gather(1, best[:, None])[:, 0] if mix else (best == target).float()
        return (each * valid).sum(), valid.sum(), {"train_top1": (right * valid).sum()}

    def decode(self, output: Arrays, geometry: Sequence[Geometry]) -> list[Prediction]:
        probability = softmax(np.asarray(output["logits"]))
        best = np.argsort(-probability, axis=1, kind="stable")[:, :5]
        return [
            {
                "label": self.classes[top[0]],
                "probability": round(float(p[top[0]]), 6),
                "top": [{"label": self.classes[i], "probability": round(float(p[i]), 6)} for i in top],
            }
            for p, top in zip(probability, best, strict=True)
        ]

    def metrics(self) -> ClassificationMetrics:
        return ClassificationMetrics(self.classes)

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(self.config.image_size, "crop", self.config.crop_fraction)

    def signature(self) -> Signature:
        outputs = (
            Field("label", "label"),
            Field("probability", "number"),
            Field("top", "probabilities", about="the five most probable"),
        )
        return Signature((Field("image", "image"),), outputs)

    def export(self) -> ExportSpec:
        size = self.config.image_size
        return ExportSpec({"image": np.zeros((2, size, size, 3), np.uint8)}, ("logits",))

    def render(self, sample: Sample, prediction: Prediction) -> np.ndarray:
        return banner(sample["image"], f"{prediction['label']} {prediction['probability']:.0%}")

    def truth(self, sample: Sample) -> str:
        return self.classes[int(sample["label"])]
