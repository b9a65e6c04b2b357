"""Image classification: one label per image, softmax cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from pydantic import Field as Setting

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.metrics.classification import ClassificationMetrics, softmax
from ..core.picture import banner
from ..core.preprocess import Preprocess
from ..core.sample import Arrays, Batch, Geometry, Prediction, Sample, Split
from ..core.task import Context, ExportSpec, Field, Phase, Signature, Stream, Task, TaskConfig
from ..data.transforms import (
    ColorJitter,
    Compose,
    Keep,
    PadCrop,
    Prepare,
    RandomFlip,
    RandomResizedCrop,
    RandomRotate,
    Step,
)
from .classify_model import Model, network
from .distill import Distill, distilled

if TYPE_CHECKING:
    import torch
    from torch import nn


class Augment(BaseModel):
    """What a training image goes through; geometry is drawn anew for every draw."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    crop: Literal["random_resized", "pad", "none"] = "random_resized"
    """`pad`: pad by `pad` pixels (reflected) and crop back, for small images."""
    scale: tuple[float, float] = (0.35, 1.0)
    """Of random_resized: share of the image's area."""
    ratio: tuple[float, float] = (0.75, 1.3333)
    pad: int = Setting(4, ge=0)
    flip: float = Setting(0.5, ge=0, le=1)
    rotate: float = Setting(0.0, ge=0, le=180)
    """Largest angle, degrees."""
    brightness: float = Setting(0.0, ge=0, le=1)
    contrast: float = Setting(0.0, ge=0, le=1)
    saturation: float = Setting(0.0, ge=0, le=1)


class ClassifyConfig(TaskConfig):
    kind: Literal["classify"]
    model: Model = Model()
    image_size: int = Setting(224, ge=8, le=1024)
    """Side of the square input, pixels."""
    crop_fraction: float = Setting(1.0, gt=0.1, le=1)
    """Share of the shorter side that evaluation's centre crop keeps."""
    label_smoothing: float = Setting(0.0, ge=0, lt=1)
    augment: Augment = Augment()
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
        return network(self.config.model, self.datasets[self.config.role], self.config.image_size)

    def streams(self, split: Split) -> Mapping[str, Stream]:
        config, augment, keep = self.config, self.config.augment, Keep("image", "label")
        prepare = Prepare(self.preprocess)
        if split != "train":
            return {"": Stream(config.role, split, Compose(prepare, keep), ("image", "label"), "sequential")}
        crops: dict[str, tuple[Step, ...]] = {
            "random_resized": (RandomResizedCrop(config.image_size, augment.scale, augment.ratio),),
            "pad": (prepare, PadCrop(augment.pad)),
            "none": (prepare,),
        }
        steps = list(crops[augment.crop])
        if augment.flip:
            steps.append(RandomFlip(augment.flip))
        if augment.rotate:
            steps.append(RandomRotate(augment.rotate))
        if augment.brightness or augment.contrast or augment.saturation:
            steps.append(ColorJitter(augment.brightness, augment.contrast, augment.saturation))
        return {"": Stream(config.role, split, Compose(*steps, keep), ("image", "label"))}

    def phases(self, model: nn.Module) -> tuple[Phase, ...]:
        config = self.config
        loss = distilled(self._loss, config.distill, self._parents, self) if config.distill else self._loss
        return (Phase("train", loss),)

    def _loss(
        self, model: nn.Module, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        import torch.nn.functional as F

        logits = self.forward(model, batch)["logits"].float()
        valid = batch["valid"].float()
        each = F.cross_entropy(logits, batch["label"], reduction="none", label_smoothing=self.config.label_smoothing)
        right = (logits.detach().argmax(1) == batch["label"]).float()
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
