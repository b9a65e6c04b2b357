"""Image generation by a GAN: no input image, two optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field as Setting

from ..core.artifact import Artifact
from ..core.sample import Batch, Geometry, Sample
from ..core.task import Context, ExportSpec, Field, Phase, Signature
from .generative import SEED, ConditionalConfig, Generative

if TYPE_CHECKING:
    import torch
    from torch import nn


class GanConfig(ConditionalConfig):
    kind: Literal["gan"]
    model: Literal["dcgan", "residual"] = "dcgan"
    """`dcgan`: convolutions alone. `residual`: residual blocks in both nets. In both the generator's batch norm is by class."""
    loss: Literal["hinge", "relativistic"] = "hinge"
    """`relativistic` scores each generated image against a real one; it wants `r1` and `r2`."""
    latent: int = Setting(64, ge=2)
    """Length of the noise vector."""
    width: int = Setting(32, ge=4)
    """Channels at the finest level of both nets."""
    spectral_norm: bool = True
    """Of the discriminator's layers."""
    r1: float = Setting(0.0, ge=0)
    """Weight of the discriminator's squared gradient at real images (0.05 to 10); costs a second backward pass."""
    r2: float = Setting(0.0, ge=0)
    """The same at generated ones."""
    augment: tuple[Literal["colour", "translation", "cutout"], ...] = ()
    """Differentiable augmentation of all that the discriminator sees: for small data sets."""
    discriminator_lr: float = Setting(2e-4, gt=0)
    """The generator's is train.optimizer.lr."""
    every: int = Setting(1, ge=1)
    """Discriminator steps per generator step."""


class Gan(Generative):
    Config = GanConfig
    about: ClassVar[str] = "new images like those of a data set: DCGAN, residual GAN, by class"
    config: GanConfig

    def build(self, parents: Mapping[str, Artifact]) -> nn.Module:
        from ..models.gan import gan

        config = self.config
        return gan(
            config.model, config.latent, config.image_size, config.width, len(self.classes), config.spectral_norm
        )

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {name: batch[name] for name in (("z", "label") if self.classes else ("z",))}

    def phases(self, model: nn.Module) -> tuple[Phase, ...]:
        slow = {"lr": self.config.discriminator_lr}
        return (
            Phase("discriminator", self._discriminator, ("discriminator.",), slow),
            Phase("generator", self._generator, ("generator.",), every=self.config.every),
        )

    def _scores(
        self, model: Any, real: torch.Tensor, fake: torch.Tensor, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The discriminator's, of real and generated images in one pass, as batch statistics and spectral norm want it."""
        import torch

        from ..models.diffaugment import augment

        images = augment(torch.cat([real, fake]), self.config.augment, context.generator)
        label = batch["label"].repeat(2) if self.classes else None
        on_real, on_fake = model.discriminator(images, label).float().chunk(2)
        return on_real, on_fake

    def _discriminator(
        self, model: Any, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Hinge loss (Lim and Ye, Geometric GAN, arXiv 1705.02894), or the relativistic pairing one (Jolicoeur-Martineau,
        arXiv 1807.00734); r1, r2: Mescheder et al., arXiv 1801.04406, both with the latter as Huang et al., The GAN is dead;
        long live the GAN! A Modern Baseline GAN, arXiv 2501.05441."""
        import torch
        import torch.nn.functional as F

        from ..models.gan import pixels

        config, valid = self.config, batch["valid"].float()
        real = pixels(batch["image"])
        with torch.no_grad():
            fake = model.generator(**self.inputs(batch)).float()
        penalised = config.r1 > 0 or config.r2 > 0
        with torch.set_grad_enabled(penalised or torch.is_grad_enabled()):
            real, fake = real.requires_grad_(penalised), fake.requires_grad_(penalised)
            on_real, on_fake = self._scores(model, real, fake, batch, context)
            if config.loss == "hinge":
                loss = F.relu(1 - on_real) + F.relu(1 + on_fake)
            else:
                loss = F.softplus(on_fake - on_real)
            logs = {"D_loss": loss, "D_real": on_real, "D_fake": on_fake}
            if penalised:
                slopes = torch.autograd.grad((on_real + on_fake).sum(), (real, fake), create_graph=True)
                at_real, at_fake = (slope.float().square().sum((1, 2, 3)) for slope in slopes)
                loss = loss + (config.r1 * at_real + config.r2 * at_fake) / 2
                logs["D_slope"] = at_real
        return (
            (loss * valid).sum(),
            valid.sum(),
            {name: (value.detach() * valid).sum() for name, value in logs.items()},
        )

    def _generator(
        self, model: Any, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        import torch
        import torch.nn.functional as F

        from ..models.gan import pixels

        valid = batch["valid"].float()
        z = torch.randn(batch["z"].shape, generator=context.generator).to(batch["z"].device)
        fake = model.generator(**self.inputs({**batch, "z": z})).float()
        on_real, on_fake = self._scores(model, pixels(batch["image"]), fake, batch, context)
        loss = (-on_fake if self.config.loss == "hinge" else F.softplus(on_real.detach() - on_fake)) * valid
        return loss.sum(), valid.sum(), {"G_loss": loss.detach().sum()}

    def signature(self) -> Signature:
        return Signature((SEED, *self.inputs_of_class()), (Field("image", "image"),))

    def prepare(self, request: Mapping[str, Any]) -> tuple[Sample, Geometry]:
        return self.drawn(request), self.geometry()

    def export(self) -> ExportSpec:
        return ExportSpec(self.traced(), ("generated",), quantize=False)
