"""DCGAN (Radford et al., Unsupervised Representation Learning with Deep Convolutional GANs, arXiv 1511.06434), the
discriminator with spectral norm (Miyato et al., arXiv 1802.05957) in place of batch norm."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


class Generator(nn.Module):
    """forward(z: N×latent float) → N×3×size×size float in -1..1; size is 8 × a power of two."""

    def __init__(self, latent: int, size: int, width: int) -> None:
        super().__init__()
        steps = _steps(size)
        channels = width * 2**steps
        self.start = nn.Linear(latent, channels * 16)
        self.channels = channels
        blocks: list[nn.Module] = [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        for _ in range(steps):
            blocks += [
                nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1, bias=False),
                nn.BatchNorm2d(channels // 2),
                nn.ReLU(inplace=True),
            ]
            channels //= 2
        self.blocks = nn.Sequential(*blocks, nn.ConvTranspose2d(channels, 3, 4, 2, 1), nn.Tanh())

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.start(z).view(-1, self.channels, 4, 4))


class Discriminator(nn.Module):
    """forward(N×3×size×size float in -1..1) → N logits, positive for real."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [spectral_norm(nn.Conv2d(3, width, 4, 2, 1)), nn.LeakyReLU(0.2, inplace=True)]
        for _ in range(_steps(size)):
            blocks += [spectral_norm(nn.Conv2d(width, 2 * width, 4, 2, 1)), nn.LeakyReLU(0.2, inplace=True)]
            width *= 2
        self.blocks = nn.Sequential(*blocks, nn.Flatten(), spectral_norm(nn.Linear(width * 16, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x).squeeze(1)


class Gan(nn.Module):
    """Both nets in one module, so that one checkpoint and one artifact hold them. forward(z: N×latent) → N×H×W×3 uint8."""

    def __init__(self, latent: int, size: int, width: int) -> None:
        super().__init__()
        self.generator = Generator(latent, size, width)
        self.discriminator = Discriminator(size, width)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        pixels = (self.generator(z).permute(0, 2, 3, 1) + 1) * 127.5
        return pixels.round().clamp(0, 255).to(torch.uint8)


def _steps(size: int) -> int:
    """Doublings between 4 and size / 2 pixels."""
    return (size // 8).bit_length() - 1
