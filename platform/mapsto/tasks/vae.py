"""A variational autoencoder: images to codes and back, new images from noise, images between two others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field as Setting

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.metrics.generation import ReconstructionMetrics
from ..core.preprocess import Preprocess
from ..core.sample import Arrays, Batch, Geometry, Prediction, Sample
from ..core.task import Context, ExportSpec, Field, Phase, Signature
from .generative import SHOWN, Generative, GenerativeConfig

if TYPE_CHECKING:
    import torch
    from torch import nn


class VaeConfig(GenerativeConfig):
    kind: Literal["vae"]
    latent: int = Setting(128, ge=2)
    """Length of an image's code."""
    width: int = Setting(32, ge=4)
    """Channels at the finest level."""
    beta: float = Setting(1.0, ge=0)
    """Weight of the codes' divergence from a standard normal: above 1 smoother codes and worse copies (Higgins et al.,
    beta-VAE, ICLR 2017), below 1 the reverse."""


class Vae(Generative):
    Config = VaeConfig
    about: ClassVar[str] = "images to codes and back, new images, images between two (VAE)"
    config: VaeConfig

    @property
    def preprocess(self) -> Preprocess:
        return self.square

    def build(self, parents: Mapping[str, Artifact]) -> nn.Module:
        from ..models.vae import VAE

        return VAE(self.config.image_size, self.config.latent, self.config.width)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """A batch of the data set has no wishes of its own: its images are reconstructed."""
        if "weight" in batch:
            return {name: batch[name] for name in ("image", "other", "weight", "z")}
        image, z = batch["image"], batch["z"]
        copy = np.zeros((len(z), 3), np.float32) if isinstance(z, np.ndarray) else z.new_zeros(len(z), 3)
        copy[:, 0] = 1
        return {"image": image, "other": image, "weight": copy, "z": z}

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return model(**self.inputs(batch))

    def phases(self, model: nn.Module) -> tuple[Phase, ...]:
        return (Phase("train", self._loss),)

    def _loss(
        self, model: Any, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Negative evidence lower bound, nats per pixel and channel."""
        valid = batch["valid"].float()
        likelihood, divergence, apart = model.losses(batch["image"], batch["z"])
        logs = {"likelihood_loss": likelihood, "KL_loss": divergence, "train_mse": apart / 4}
        loss = ((likelihood + self.config.beta * divergence) * valid).sum()
        return loss, valid.sum(), {name: (value.detach() * valid).sum() for name, value in logs.items()}

    def metrics(self) -> ReconstructionMetrics:
        return ReconstructionMetrics(self.config.extractor.name, self.config.extractor, self.config.neighbours)

    def signature(self) -> Signature:
        inputs = (
            Field("image", "image", required=False, about="to be coded and decoded again"),
            Field("to", "image", required=False, about="another one: the answer lies between the two"),
            Field("t", "number", required=False, about="how far on the way to it, 0..1; default: 0.5"),
            Field("seed", "seed", required=False, about="without an image: a new one; the same seed, the same image"),
        )
        return Signature(inputs, (Field("image", "image"),))

    def prepare(self, request: Mapping[str, Any]) -> tuple[Sample, Geometry]:
        size, sample = self.config.image_size, {"z": np.zeros(self.shape, np.float32)}
        if request.get("image") is None:
            if request.get("seed") is None:
                raise UserError("the request has neither an `image` to reconstruct nor a `seed` to draw from")
            blank = np.zeros((size, size, 3), np.uint8)
            sample = self.drawn(request) | {"image": blank, "other": blank, "weight": np.array([0, 0, 1], np.float32)}
            return sample, self.geometry()
        image, geometry = super().prepare(request)
        other, t = image["image"], 0.0
        if request.get("to") is not None:
            t = float(request.get("t", 0.5))
            if not 0 <= t <= 1:
                raise UserError(f"`t` must be from 0 (`image`) to 1 (`to`), not {t:g}")
            other, _ = self.preprocess(request["to"])
        return sample | image | {"other": other, "weight": np.array([1 - t, t, 0], np.float32)}, geometry

    def export(self) -> ExportSpec:
        size = self.config.image_size
        image = np.zeros((2, size, size, 3), np.uint8)
        inputs = {"image": image, "other": image, "weight": np.zeros((2, 3), np.float32), **self.traced()}
        return ExportSpec(inputs, ("decoded", "generated"), quantize=False)

    def decode(self, output: Arrays, geometry: Sequence[Geometry]) -> list[Prediction]:
        return super().decode({"generated": output["decoded"]}, geometry)

    def render(self, sample: Sample, prediction: Prediction) -> np.ndarray:
        """A copy beside what it is of; other answers alone."""
        if sample["weight"][0] != 1:
            return prediction["image"]
        return np.concatenate([sample["image"], prediction["image"]], 1)

    def showcase(self, images: Sequence[bytes]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        between = [
            {"image": a, "to": b, "t": max(t / 7, 1e-6)}
            for a, b in zip(images[::2], images[1::2], strict=False)
            for t in range(8)
        ]
        return {
            "Reconstructions: an image, and its copy": [{"image": image} for image in images],
            "Samples": [{"seed": seed} for seed in range(SHOWN)],
            "From an image to another": between,
        }
