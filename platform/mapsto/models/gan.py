"""A generator and a discriminator in one module, so that one checkpoint and one artifact hold them."""

from __future__ import annotations

import torch
from torch import nn

from ..core.errors import BrokenModel
from . import dcgan, resgan


class Gan(nn.Module):
    """forward(z: N×latent, label: N int64 where there are classes) → N×H×W×3 uint8."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator

    def forward(self, z: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        return to_pixels(self.generator(z, label))


def gan(name: str, latent: int, size: int, width: int, classes: int, spectral: bool) -> Gan:
    """`name`: dcgan or residual; `size`: a power of two from 16; `classes`: 0 where they are not told apart."""
    nets = {"dcgan": dcgan, "residual": resgan}[name]
    return Gan(nets.Generator(latent, size, width, classes), nets.Discriminator(size, width, classes, spectral))


def to_pixels(x: torch.Tensor) -> torch.Tensor:
    """N×3×H×W float in -1..1 → N×H×W×3 uint8. BrokenModel as of `rounded`."""
    return rounded((x.float().permute(0, 2, 3, 1) + 1) * 127.5)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """N×... floats in about 0..255 → uint8. BrokenModel where one is not finite, which would become a pixel like any other; a
    graph that is traced has no such check."""
    if not torch.compiler.is_compiling():
        good = x.isfinite().flatten(1).all(1)
        if not good.all():
            row = int((~good).nonzero()[0])
            raise BrokenModel(f"the model's pixels are not finite (row {row} of its batch): it is broken")
    return x.round().clamp(0, 255).to(torch.uint8)


def pixels(image: torch.Tensor) -> torch.Tensor:
    """N×H×W×3 uint8 → N×3×H×W float in -1..1."""
    return image.permute(0, 3, 1, 2).float() / 127.5 - 1
