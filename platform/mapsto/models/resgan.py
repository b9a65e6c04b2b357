"""A residual GAN (the nets of Miyato et al., Spectral Normalization for GANs, arXiv 1802.05957, for 32 pixels, at any size),
the generator's batch norm by class as in Brock et al., BigGAN, arXiv 1809.11096."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from .class_norm import ClassNorm
from .projection import Head, maybe_spectral

WIDEST = 4
"""Channels of the coarse levels, in those of the finest."""


class Up(nn.Module):
    """norm, ReLU, enlarge, convolve, norm, ReLU, convolve, beside an enlarged 1×1 convolution."""

    def __init__(self, low: int, high: int, classes: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ClassNorm(low, classes), ClassNorm(high, classes)
        self.conv1, self.conv2 = nn.Conv2d(low, high, 3, padding=1, bias=False), nn.Conv2d(high, high, 3, padding=1)
        self.skip = nn.Conv2d(low, high, 1)

    def forward(self, x: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        y = F.interpolate(F.relu(self.norm1(x, label)), scale_factor=2.0)
        y = self.conv2(F.relu(self.norm2(self.conv1(y), label)))
        return y + F.interpolate(self.skip(x), scale_factor=2.0)


class Generator(nn.Module):
    """forward(z: N×latent float, label: N int64 or None) → N×3×size×size float in -1..1."""

    def __init__(self, latent: int, size: int, width: int, classes: int = 0) -> None:
        super().__init__()
        widths = _widths(size, width)[::-1]
        self.coarse = widths[0]
        self.start = nn.Linear(latent, widths[0] * 16)
        self.blocks = nn.ModuleList(Up(a, b, classes) for a, b in pairwise(widths))
        self.end = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1), nn.Tanh())

    def forward(self, z: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        x = self.start(z).view(-1, self.coarse, 4, 4)
        for block in self.blocks:
            x = block(x, label)
        return self.end(x)


class Down(nn.Module):
    """ReLU, convolve, ReLU, convolve, beside a 1×1 convolution; both halved where `halve`."""

    def __init__(self, low: int, high: int, spectral: bool, halve: bool) -> None:
        super().__init__()
        norm = maybe_spectral(spectral)
        self.first, self.halve = low == 3, halve
        self.conv1, self.conv2 = norm(nn.Conv2d(low, high, 3, padding=1)), norm(nn.Conv2d(high, high, 3, padding=1))
        self.skip = norm(nn.Conv2d(low, high, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if not self.halve:
            return y + self.skip(x)
        return F.avg_pool2d(y, 2) + self.skip(F.avg_pool2d(x, 2))


class Discriminator(nn.Module):
    """forward(N×3×size×size float in -1..1, label: N int64 or None) → N logits, positive for real."""

    def __init__(self, size: int, width: int, classes: int = 0, spectral: bool = True) -> None:
        super().__init__()
        widths = _widths(size, width)[1:]
        pairs = zip((3, *widths), widths, strict=False)
        last = Down(widths[-1], widths[-1], spectral, halve=False)
        self.blocks = nn.Sequential(*(Down(a, b, spectral, halve=True) for a, b in pairs), last)
        self.head = Head(widths[-1], classes, spectral)

    def forward(self, x: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(F.relu(self.blocks(x)).mean((2, 3)), label)


def _widths(size: int, width: int) -> list[int]:
    """Channels by level, from the finest (size pixels) to the coarsest (4)."""
    return [width * min(2**k, WIDEST) for k in range((size // 4).bit_length())]
