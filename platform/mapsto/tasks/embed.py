"""Metric learning: a vector per image, near for one identity and far for two: faces, products, any `label`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field as Setting
from pydantic import model_validator

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.metrics.folds import Pairs, parse_pairs
from ..core.metrics.verification import VerificationMetrics
from ..core.preprocess import Preprocess
from ..core.sample import Arrays, Batch, Geometry, Prediction, Sample, Split, finite
from ..core.section import Section
from ..core.storage import Storage
from ..core.task import Context, ExportSpec, Field, Phase, Signature, Stream, Task, TaskConfig
from ..data.transforms import ColorJitter, Compose, IdentityKey, Keep, Prepare, RandomFlip, RandomResizedCrop, Step
from .whole import labelled

if TYPE_CHECKING:
    import torch
    from torch import nn

MARGINS = {"arcface": 0.5, "cosface": 0.35, "triplet": 0.2}


class EmbedModel(Section):
    name: str = "resnet18"
    """A timm model, or `airbench`, a small fast net for images of 32 to 64 pixels."""
    pretrained: bool = False
    dimensions: int = Setting(128, ge=2, le=4096)
    """Length of the embedding."""
    small_input: bool | None = None
    """Keep the stem's resolution; default: for images of at most 64 pixels."""


class EmbedLoss(Section):
    name: Literal["arcface", "cosface", "triplet"] = "arcface"
    """arcface and cosface learn a direction for each training label; triplet compares the rows of a batch, over all
    workers, and needs batches that hold several rows of an identity."""
    scale: float | None = Setting(None, gt=0)
    """arcface, cosface: of the logits; default: 32."""
    margin: float | None = Setting(None, gt=0, lt=1.5)
    """Default: 0.5 radians (arcface), 0.35 of the cosine (cosface), 0.2 of the distance (triplet)."""
    soft_margin: bool = False
    """triplet: log(1 + exp(d)) in place of a margin."""

    @model_validator(mode="after")
    def _own(self) -> EmbedLoss:
        if self.name == "triplet" and self.scale is not None:
            raise ValueError("scale is no setting of triplet")
        if self.soft_margin and (self.name != "triplet" or self.margin is not None):
            raise ValueError("soft_margin is triplet's, in place of margin")
        return self


class EmbedAugment(Section):
    scale: tuple[float, float] = (0.7, 1.0)
    """Share of the image's area that a training crop takes."""
    flip: float = Setting(0.5, ge=0, le=1)
    brightness: float = Setting(0.2, ge=0, le=1)
    contrast: float = Setting(0.2, ge=0, le=1)


class EmbedConfig(TaskConfig):
    kind: Literal["embed"]
    model: EmbedModel = EmbedModel()
    loss: EmbedLoss = EmbedLoss()
    column: Literal["label", "identity"] = "label"
    """Which rows are of one identity: those that share it. Of `identity` alone only triplet learns."""
    pairs: str | None = None
    """URI of a list of pairs of <person>_<number> files (LFW's pairs.txt) to measure by, read with the environment's keys;
    default: ten folds of identities drawn apart."""
    sampling: Literal["shuffled", "identities"] = "shuffled"
    """identities: batches of few identities with several `pictures` of each, which triplet needs where identities are many."""
    pictures: int = Setting(4, ge=2, le=256)
    """Of sampling identities: how many of one identity follow each other; a batch holds about batch_size / pictures of them."""
    image_size: int = Setting(112, ge=16, le=1024)
    """Side of the square input, pixels."""
    augment: EmbedAugment = EmbedAugment()
    role: str = "train"

    @model_validator(mode="after")
    def _labels(self) -> EmbedConfig:
        if self.column == "identity" and self.loss.name != "triplet":
            raise ValueError(f"column identity: {self.loss.name} learns a direction per label; use label, or triplet")
        return self


class Embed(Task):
    Config = EmbedConfig
    about: ClassVar[str] = "a vector per image, near for one identity"
    config: EmbedConfig

    def check(self) -> None:
        info, column = self.datasets[self.config.role], self.config.column
        if column == "identity" and "identity" not in info.columns:
            raise UserError(
                f"{info.uri}: no identities; embed needs an `identity` column (layout faces, a manifest), or task.column label"
            )
        if column == "label" and len(self.known) < 2:
            raise UserError(
                f"{info.uri}: {len(self.known)} labels in training; embed needs two or more: a folder per person, or a manifest with a `label` column"
            )
        for split in ("val", "test"):
            self._measurable(split)
        if column == "label":
            labelled(info)
        self._pairs  # noqa: B018  # a list that cannot be read stops here

    def _measurable(self, split: Split) -> None:
        """UserError for a split that has rows, and no pair of one identity, or of two. Of labels, whose numbers are known."""
        info = self.datasets[self.config.role]
        if self.config.column != "label" or not info.rows.get(split) or split not in info.counts:
            return
        held = {name: count for name, count in info.counts[split].items() if count}
        if len(held) > 1 and max(held.values()) > 1:
            return
        found = (
            "no label has two pictures"
            if len(held) > 1
            else f"all labelled rows are of '{next(iter(held))}'"
            if held
            else "no row has a label"
        )
        raise UserError(
            f"{info.uri}: its {info.rows[split]} rows in '{split}' cannot be measured: {found}; embed compares pictures of one "
            f"label and of two: set data.{self.config.role}.splits.{split} larger or to 0, and data.{self.config.role}.group to keep whole identities together"
        )

    @cached_property
    def known(self) -> dict[int, int]:
        """Label of the data set → its number among those that occur in training: nobody else has a direction to learn."""
        info = self.datasets[self.config.role]
        counts = info.counts.get("train", {})
        held = [k for k, name in enumerate(info.classes) if counts.get(name)] or range(len(info.classes))
        return {k: number for number, k in enumerate(held)}

    @cached_property
    def _pairs(self) -> Pairs | None:
        uri = self.config.pairs
        return parse_pairs(Storage().read(uri).decode("utf-8-sig"), uri) if uri else None

    def build(self, parents: Mapping[str, Artifact]) -> nn.Module:
        from ..models.backbones import classifier
        from ..models.embedder import Embedder
        from ..models.normalize import normalized

        model, info = self.config.model, self.datasets[self.config.role]
        small = self.config.image_size <= 64 if model.small_input is None else model.small_input
        net = classifier(
            model.name,
            model.dimensions,
            pretrained=model.pretrained and bool(parents),
            small_input=small,
            image_size=self.config.image_size,
        )
        own: Any = getattr(net, "default_cfg", None) if model.pretrained else None
        directions = 0 if self.config.loss.name == "triplet" else len(self.known)
        return Embedder(normalized(net, info, own), model.dimensions, directions)

    def streams(self, split: Split) -> Mapping[str, Stream]:
        config, augment, column = self.config, self.config.augment, self.config.column
        key: tuple[Step, ...] = (IdentityKey("identity"),) if column == "identity" else ()
        if split != "train":
            names, columns = ["image", column], ["image", column]
            if config.pairs:
                key, names, columns = (*key, IdentityKey("picture")), [*names, "picture"], [*columns, "source"]
            transform = Compose(Prepare(self.preprocess), *key, Keep(*names))
            return {"": Stream(config.role, split, transform, tuple(columns), "sequential")}
        transform = Compose(
            RandomResizedCrop(config.image_size, augment.scale),
            RandomFlip(augment.flip),
            ColorJitter(augment.brightness, augment.contrast, 0.0),
            *key,
            Keep("image", column),
        )
        drawn = Stream(config.role, split, transform, ("image", column), config.sampling)
        return {"": replace(drawn, by=column, together=config.pictures)}

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"embedding": model(**self.inputs(batch))}

    def phases(self, model: nn.Module) -> tuple[Phase, ...]:
        if self.config.loss.name != "triplet":
            return (Phase("train", self._directions),)
        return (
            Phase(
                "train",
                self._triplet,
                uncounted=f"no batch held two pictures of one {self.config.column} beside one of another, which triplet compares; set "
                "task.sampling: identities, or raise train.batch_size",
            ),
        )

    def _directions(
        self, model: Any, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Cross-entropy over the training labels with a margin; sums and counts are rows."""
        import torch
        import torch.nn.functional as F

        from ..models import embedder

        loss, table = self.config.loss, torch.zeros(max(self.known) + 1, dtype=torch.int64)
        table[list(self.known)] = torch.arange(len(self.known))
        label = table.to(batch["label"].device)[batch["label"]]
        embedding = self.forward(model, batch)["embedding"]
        with torch.autocast(embedding.device.type, enabled=False):  # a margin is finer than bf16's digits
            cosine = F.linear(embedding.float(), F.normalize(model.centres, dim=1))
        margin = loss.margin or MARGINS[loss.name]
        logits = getattr(embedder, loss.name)(cosine, label, loss.scale or 32.0, margin)
        valid = batch["valid"].float()
        right = (cosine.detach().argmax(1) == label).float()
        each = F.cross_entropy(logits, label, reduction="none")
        return (each * valid).sum(), valid.sum(), {"train_top1": (right * valid).sum()}

    def _triplet(
        self, model: nn.Module, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Batch-hard triplets over all workers' rows; sums and counts are anchors that have both others."""
        import torch

        from ..models.embedder import batch_hard

        loss, key, valid = self.config.loss, batch[self.config.column].long(), batch["valid"].bool()
        embedding = self.forward(model, batch)["embedding"].float()
        margin = None if loss.soft_margin else loss.margin or MARGINS["triplet"]
        everyone, keys, there = context.gather(embedding), context.gather(key), context.gather(valid.long()).bool()
        counts = context.gather(key.new_full((1,), len(key)))
        first = int(counts[: context.rank].sum())
        with torch.autocast(embedding.device.type, enabled=False):
            each, counted = batch_hard(embedding, key, first, everyone, keys, there, margin)
        active = ((each > 0) & counted).sum().float()
        return each.sum(), counted.sum().float(), {"train_active": active}

    def decode(self, output: Arrays, geometry: Sequence[Geometry]) -> list[Prediction]:
        return [
            {"embedding": [round(float(v), 6) for v in row]}
            for row in finite(np.asarray(output["embedding"]), "embed: the model's embedding")
        ]

    def metrics(self) -> VerificationMetrics:
        return VerificationMetrics(self.config.column, self._pairs)

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(self.config.image_size, "crop")

    def signature(self) -> Signature:
        about = "of length 1: the product of two is their likeness, -1..1"
        return Signature((Field("image", "image"),), (Field("embedding", "embedding", about=about),))

    def export(self) -> ExportSpec:
        size = self.config.image_size
        return ExportSpec({"image": np.zeros((2, size, size, 3), np.uint8)}, ("embedding",))

    def truth(self, sample: Sample) -> str:
        value = sample[self.config.column]
        return self.datasets[self.config.role].classes[int(value)] if self.config.column == "label" else str(value)
