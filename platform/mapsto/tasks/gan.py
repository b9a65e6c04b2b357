"""Image generation by a GAN: no label, no input image, two optimizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field as Setting
from pydantic import field_validator

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.metrics.frechet import FrechetMetrics
from ..core.preprocess import Preprocess
from ..core.sample import Arrays, Batch, Geometry, Prediction, Sample, Split
from ..core.task import Context, ExportSpec, Field, Phase, Signature, Stream, Task, TaskConfig, Unsupported
from ..data.transforms import Compose, Keep, Prepare, RandomFlip

if TYPE_CHECKING:
    import torch
    from torch import nn


class GanConfig(TaskConfig):
    kind: Literal["gan"]
    image_size: int = Setting(32, ge=16, le=256)
    """Side of the generated image; a power of two."""
    latent: int = Setting(64, ge=2)
    """Length of the noise vector."""
    width: int = Setting(32, ge=4)
    """Channels at the finest level of both nets."""
    discriminator_lr: float = Setting(2e-4, gt=0)
    """The generator's is train.optimizer.lr."""
    every: int = Setting(1, ge=1)
    """Discriminator steps per generator step."""
    flip: float = Setting(0.5, ge=0, le=1)
    role: str = "train"

    @field_validator("image_size")
    @classmethod
    def _power_of_two(cls, size: int) -> int:
        if size & (size - 1):
            raise ValueError(f"{size} is not a power of two")
        return size


@dataclass(frozen=True)
class Noise:
    """Adds `z`, a standard normal vector, to a sample: the same for the same draw on any worker."""

    length: int

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return {**sample, "z": rng.standard_normal(self.length, np.float32)}


class Gan(Task):
    Config = GanConfig
    about: ClassVar[str] = "new images like those of a data set (DCGAN, hinge loss, spectral norm)"
    config: GanConfig

    def build(self, parents: Mapping[str, Artifact]) -> nn.Module:
        from ..models.dcgan import Gan as Net

        return Net(self.config.latent, self.config.image_size, self.config.width)

    def streams(self, split: Split) -> Mapping[str, Stream]:
        flip = (RandomFlip(self.config.flip),) if split == "train" and self.config.flip else ()
        prepare = Prepare(Preprocess(self.config.image_size, "crop"))
        transform = Compose(prepare, *flip, Noise(self.config.latent), Keep("image", "z"))
        return {
            "": Stream(self.config.role, split, transform, ("image",), "shuffled" if split == "train" else "sequential")
        }

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {"z": batch["z"]}

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"image": model(**self.inputs(batch))}

    def phases(self, model: nn.Module) -> tuple[Phase, ...]:
        slow = {"lr": self.config.discriminator_lr}
        return (
            Phase("discriminator", self._discriminator, ("discriminator.",), slow),
            Phase("generator", self._generator, ("generator.",), every=self.config.every),
        )

    def _discriminator(
        self, model: nn.Module, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Hinge loss (Lim and Ye, Geometric GAN, arXiv 1705.02894)."""
        import torch
        import torch.nn.functional as F

        valid = batch["valid"].float()
        real = batch["image"].permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            fake = model.get_submodule("generator")(batch["z"])
        score = model.get_submodule("discriminator")(torch.cat([real, fake.float()])).float()
        on_real, on_fake = score.chunk(2)
        loss = (F.relu(1 - on_real) + F.relu(1 + on_fake)) * valid
        return loss.sum(), valid.sum(), {"D_loss": loss.detach().sum(), "D_real": (on_real.detach() * valid).sum()}

    def _generator(
        self, model: nn.Module, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        import torch

        valid = batch["valid"].float()
        z = torch.randn(batch["z"].shape, generator=context.generator).to(batch["z"].device)
        score = model.get_submodule("discriminator")(model.get_submodule("generator")(z)).float()
        loss = -score * valid
        return loss.sum(), valid.sum(), {"G_loss": loss.detach().sum()}

    def decode(self, output: Arrays, geometry: Sequence[Geometry]) -> list[Prediction]:
        return [{"image": np.asarray(image, np.uint8)} for image in output["image"]]

    def metrics(self) -> FrechetMetrics:
        return FrechetMetrics()

    def signature(self) -> Signature:
        return Signature(
            (Field("seed", "seed", about="an integer; the same seed, the same image"),), (Field("image", "image"),)
        )

    def prepare(self, request: Mapping[str, Any]) -> tuple[Sample, Geometry]:
        seed, size = request.get("seed"), self.config.image_size
        if isinstance(seed, bool) or not isinstance(seed, (int, str)) or not str(seed).lstrip("-").isdigit():
            raise UserError(f"`seed` must be an integer, not {seed!r}")
        rng = np.random.default_rng(int(seed) % 2**64)
        return {"z": rng.standard_normal(self.config.latent, np.float32)}, Geometry(np.eye(3), size, size)

    def export(self) -> ExportSpec | Unsupported:
        return ExportSpec({"z": np.zeros((2, self.config.latent), np.float32)}, ("image",), quantize=False)

    def render(self, sample: Sample, prediction: Prediction) -> np.ndarray:
        return prediction["image"]
