"""Several labels per image: a sigmoid for each class, binary cross-entropy or one of its focal kin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field as Setting

from ..core.errors import UserError
from ..core.metrics.multilabel import UNKNOWN, MultiLabelMetrics, sigmoid
from ..core.picture import banner
from ..core.sample import Arrays, Batch, Geometry, Prediction, Sample, finite
from ..core.section import Section
from ..core.task import Context, Field, Signature, Stream
from ..data.transforms import Compose, Step
from .whole import WholeConfig, WholeImage

if TYPE_CHECKING:
    import torch
    from torch import nn

TOP = 5


class Loss(Section):
    """-y (1 - p)^positive log p - (1 - y) q^negative log(1 - q) with q = max(p - margin, 0), the mean over an image's labels. All 0:
    binary cross-entropy; equal powers: focal loss (Lin et al., arXiv 1708.02002); `negative: 4, margin: 0.05`: asymmetric loss
    (Ridnik et al., arXiv 2009.14119), for many classes of which few are in an image."""

    positive: float = Setting(0.0, ge=0)
    negative: float = Setting(0.0, ge=0)
    margin: float = Setting(0.0, ge=0, lt=0.5)


class MultiLabelConfig(WholeConfig):
    kind: Literal["multilabel"]
    answering: ClassVar[tuple[str, ...]] = ("threshold",)
    column: Literal["labels", "box_labels"] | None = None
    """Where an image's labels are: a list of their own, or those of its boxes, each once. Default: the first of the two that the
    data set has."""
    loss: Loss = Loss()
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """`balanced`: an image is drawn the more often, the rarer its rarest label is (repeat factors, arXiv 1908.03195)."""
    threshold: float = Setting(0.5, gt=0, lt=1)
    """Probability from which an answer names a class."""


class MultiLabel(WholeImage):
    Config = MultiLabelConfig
    about: ClassVar[str] = "several labels per image"
    config: MultiLabelConfig
    keeps: ClassVar[str] = "target"

    @property
    def column(self) -> str:
        have = self.info.columns
        return self.config.column or ("labels" if "labels" in have else "box_labels")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def check(self) -> None:
        info = self.info
        if self.column not in info.columns:
            raise UserError(
                f"{info.uri}: no column {self.config.column or 'labels, and no box_labels'}; multilabel needs a manifest with a list "
                "`labels` for each image, or boxes with classes"
            )
        if not info.classes:
            raise UserError(f"{info.uri}: no image has a label")

    def training(self, transform: Compose, columns: tuple[str, ...]) -> Stream:
        return Stream(self.config.role, "train", transform, columns, self.config.sampling, by=self.column)

    def targets(self) -> tuple[Step, ...]:
        return (MultiHot(self.column, len(self.info.classes)),)

    def _loss(
        self, model: nn.Module, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        import torch
        import torch.nn.functional as F

        loss, logits, target = self.config.loss, self.forward(model, batch)["logits"].float(), batch["target"]
        known, yes = (target != UNKNOWN).float(), (target == 1).float()
        p, log_p, log_q = torch.sigmoid(logits), F.logsigmoid(logits), F.logsigmoid(-logits)
        q = p
        if loss.margin:
            q = (p - loss.margin).clamp(min=0)
            log_q = torch.log1p(-q.clamp(max=1 - 1e-6))
        each = -yes * _power(1 - p, loss.positive) * log_p - (1 - yes) * _power(q, loss.negative) * log_q
        rows = (each * known).sum(1) / known.sum(1).clamp(min=1)
        valid = batch["valid"].float() * (known.sum(1) > 0)
        return (rows * valid).sum(), valid.sum(), {}

    def decode(self, output: Arrays, geometry: Sequence[Geometry]) -> list[Prediction]:
        probability = sigmoid(finite(np.asarray(output["logits"]), "multilabel: the model's logits"))
        order = np.argsort(-probability, axis=1, kind="stable")
        return [
            {
                "labels": self._told(p, [i for i in best if p[i] >= self.config.threshold]),
                "top": self._told(p, best[:TOP]),
            }
            for p, best in zip(probability, order, strict=True)
        ]

    def _told(self, probability: np.ndarray, picked: Sequence[int]) -> list[dict[str, object]]:
        return [{"label": self.info.classes[i], "probability": round(float(probability[i]), 6)} for i in picked]

    def metrics(self) -> MultiLabelMetrics:
        return MultiLabelMetrics(self.info.classes, self.config.threshold)

    def signature(self) -> Signature:
        outputs = (
            Field("labels", "probabilities", about="those from the threshold on"),
            Field("top", "probabilities", about="the five most probable"),
        )
        return Signature((Field("image", "image"),), outputs)

    def render(self, sample: Sample, prediction: Prediction) -> np.ndarray:
        return banner(sample["image"], ", ".join(each["label"] for each in prediction["labels"]) or "none")

    def truth(self, sample: Sample) -> str:
        found = sample.get(self.column)
        return "unknown" if found is None else ", ".join(self.info.classes[k] for k in sorted(set(found))) or "none"


@dataclass(frozen=True)
class MultiHot:
    """A row's list of class ids as `target`: classes int8, 1 and 0; all unknown where there is no list."""

    column: str
    classes: int

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        ids = sample.get(self.column)
        target = np.full(self.classes, UNKNOWN if ids is None else 0, np.int8)
        if ids is not None:
            target[list(ids)] = 1
        return sample | {"target": target}


def _power(base: torch.Tensor, exponent: float) -> torch.Tensor | float:
    """1 for exponent 0: its gradient is 0 there, and not NaN where the base is."""
    return base.clamp(min=1e-8) ** exponent if exponent else 1.0
