"""DCGAN (Radford et al., Unsupervised Representation Learning with Deep Convolutional GANs, arXiv 1511.06434), the
discriminator with spectral norm (Miyato et al., arXiv 1802.05957) in place of batch norm, the generator's batch norm by
class where there are classes."""

from __future__ import annotations

import torch
from torch import nn

from .class_norm import ClassNorm
from .projection import Head, maybe_spectral


class Generator(nn.Module):
    """forward(z: N×latent float, label: N int64 or None) → N×3×size×size float in -1..1; size is 8 × a power of two."""

    def __init__(self, latent: int, size: int, width: int, classes: int = 0) -> None:
        super().__init__()

        def norm(channels: int) -> nn.Module:
            return ClassNorm(channels, classes) if classes else nn.BatchNorm2d(channels)

        steps = _steps(size)
        channels = width * 2**steps
        self.start = nn.Linear(latent, channels * 16)
        self.channels = channels
        blocks: list[nn.Module] = [norm(channels), nn.ReLU(inplace=True)]
        for _ in range(steps):
            blocks += [
                nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1, bias=False),
                norm(channels // 2),
                nn.ReLU(inplace=True),
            ]
            channels //= 2
        self.blocks = nn.ModuleList([*blocks, nn.ConvTranspose2d(channels, 3, 4, 2, 1), nn.Tanh()])

    def forward(self, z: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        x = self.start(z).view(-1, self.channels, 4, 4)
        for block in self.blocks:
            x = block(x, label) if isinstance(block, ClassNorm) else block(x)
        return x


class Discriminator(nn.Module):
    """forward(N×3×size×size float in -1..1, label: N int64 or None) → N logits, positive for real."""

    def __init__(self, size: int, width: int, classes: int = 0, spectral: bool = True) -> None:
        super().__init__()
        norm = maybe_spectral(spectral)
        blocks: list[nn.Module] = [norm(nn.Conv2d(3, width, 4, 2, 1)), nn.LeakyReLU(0.2, inplace=True)]
        for _ in range(_steps(size)):
            blocks += [norm(nn.Conv2d(width, 2 * width, 4, 2, 1)), nn.LeakyReLU(0.2, inplace=True)]
            width *= 2
        self.blocks = nn.Sequential(*blocks, nn.Flatten())
        self.head = Head(width * 16, classes, spectral)

    def forward(self, x: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(self.blocks(x), label)


def _steps(size: int) -> int:
    """Doublings between 4 and size / 2 pixels."""
    return (size // 8).bit_length() - 1
