"""A convolutional variational autoencoder (Kingma and Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from .gan import pixels, to_pixels

WIDEST = 4


class Block(nn.Module):
    """x + two 3×3 convolutions, group norm and SiLU before each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                layer
                for _ in range(2)
                for layer in (
                    nn.GroupNorm(groups(channels), channels),
                    nn.SiLU(),
                    nn.Conv2d(channels, channels, 3, padding=1),
                )
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class VAE(nn.Module):
    """forward(image, other: N×H×W×3 uint8, weight: N×3 float, z: N×latent float) → `decoded`, `generated`: N×H×W×3 uint8.

    `decoded` is of weight · (code of `image`, code of `other`, z): (1, 0, 0) reconstructs, (0, 0, 1) samples,
    (1 - t, t, 0) lies between two images. `generated` is of z. With `image` alone: its code, `embedding`.
    """

    def __init__(self, size: int, latent: int, width: int) -> None:
        super().__init__()
        widths = [width * min(2**k, WIDEST) for k in range((size // 4).bit_length())]  # from size pixels to 4
        down: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        up: list[nn.Module] = []
        for fine, coarse in pairwise(widths):
            down += [Block(fine), nn.Conv2d(fine, coarse, 3, 2, 1)]
            up = [nn.Upsample(scale_factor=2.0), nn.Conv2d(coarse, fine, 3, padding=1), Block(fine), *up]
        self.coarse = widths[-1]
        self.encoder = nn.Sequential(*down, Block(self.coarse), nn.SiLU(), nn.Flatten())
        self.code = nn.Linear(16 * self.coarse, 2 * latent)
        self.start = nn.Linear(latent, 16 * self.coarse)
        end = (nn.GroupNorm(groups(width), width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))
        self.decoder = nn.Sequential(Block(self.coarse), *up, *end)
        self.log_sigma = nn.Parameter(torch.zeros(()))

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """N×H×W×3 uint8 → mean and log variance, N×latent each."""
        mean, log_variance = self.code(self.encoder(pixels(image))).float().chunk(2, 1)
        return mean, log_variance.clamp(-12, 8)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """N×latent → N×3×H×W float, about -1..1."""
        return self.decoder(self.start(z).view(-1, self.coarse, 4, 4)).float()

    def forward(
        self,
        image: torch.Tensor,
        other: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
        z: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        mean, _ = self.encode(image)
        if other is None or weight is None or z is None:
            return {"embedding": mean}
        code = weight[:, :1] * mean + weight[:, 1:2] * self.encode(other)[0] + weight[:, 2:] * z
        return {"decoded": to_pixels(self.decode(code)), "generated": to_pixels(self.decode(z))}

    def losses(self, image: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(negative log likelihood, KL divergence, squared error in -1..1), N each, means over the pixels' channels; the
        Gaussian's width is learnt with the rest (Rybkin et al., Simple and Effective VAE Training with Calibrated
        Decoders, arXiv 2006.13202)."""
        x = pixels(image)
        mean, log_variance = self.encode(image)
        apart = (self.decode(mean + (log_variance / 2).exp() * z) - x).square().mean((1, 2, 3))
        log_sigma = -6 + F.softplus(self.log_sigma + 6)  # a floor: a set learnt by heart must not divide by nothing
        likelihood = apart / (2 * (2 * log_sigma).exp()) + log_sigma + math.log(2 * math.pi) / 2
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return likelihood, divergence / x[0].numel(), apart


def groups(channels: int) -> int:
    """Groups of a group norm: at most 8, of equal size."""
    return math.gcd(8, channels)
