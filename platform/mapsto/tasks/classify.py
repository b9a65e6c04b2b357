"""Image classification: one label per image, softmax cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field as Setting

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.metrics.classification import ClassificationMetrics, softmax
from ..core.picture import banner
from ..core.sample import Arrays, Batch, Geometry, Prediction, Sample, finite
from ..core.task import Context, Field, Phase, Signature, Stream
from ..data.transforms import Compose
from . import whole
from .distill import Distill, distilled

if TYPE_CHECKING:
    import torch
    from torch import nn


class Augment(whole.Augment):
    mixup: float = Setting(0.0, ge=0)
    """α of mixup; 0: none. With `cutmix` too, each batch takes one of them."""
    cutmix: float = Setting(0.0, ge=0)
    """α of CutMix; 0: none."""


class ClassifyConfig(whole.WholeConfig):
    kind: Literal["classify"]
    label_smoothing: float = Setting(0.0, ge=0, lt=1)
    augment: Augment = Augment()
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """`balanced`: an epoch draws every class alike often, however rare it is; rows of rare classes come several times."""
    distill: Distill | None = None
    """Learn from another model's answers, too."""

    def artifacts(self) -> Mapping[str, str]:
        return {"distill.teacher": self.distill.teacher} if self.distill else {}


class Classify(whole.WholeImage):
    Config = ClassifyConfig
    about: ClassVar[str] = "one label per image"
    config: ClassifyConfig
    _parents: Mapping[str, Artifact] = {}
    """Of training."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.info.classes

    def check(self) -> None:
        info = self.info
        if not info.classes:
            raise UserError(
                f"{info.uri}: no labels; classify needs a folder per class, or a manifest with a `label` column"
            )
        if len(info.classes) < 2:
            raise UserError(f"{info.uri}: one class only ('{info.classes[0]}'); classify needs two or more")
        whole.labelled(info)

    def build(self, parents: Mapping[str, Artifact]) -> nn.Module:
        self._parents = parents
        return super().build(parents)

    def training(self, transform: Compose, columns: tuple[str, ...]) -> Stream:
        mixed = self.config.augment.mixup > 0 or self.config.augment.cutmix > 0
        return Stream(self.config.role, "train", transform, columns, self.config.sampling, pairs=mixed)

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
        probability = softmax(finite(np.asarray(output["logits"]), "classify: the model's logits"))
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

    def signature(self) -> Signature:
        outputs = (
            Field("label", "label"),
            Field("probability", "number"),
            Field("top", "probabilities", about="the five most probable"),
        )
        return Signature((Field("image", "image"),), outputs)

    def render(self, sample: Sample, prediction: Prediction) -> np.ndarray:
        return banner(sample["image"], f"{prediction['label']} {prediction['probability']:.0%}")

    def truth(self, sample: Sample) -> str:
        return self.classes[int(sample["label"])]
