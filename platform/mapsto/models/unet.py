"""U-Net (Ronneberger et al., U-Net: Convolutional Networks for Biomedical Image Segmentation, arXiv 1505.04597),
with batch norm and padded convolutions, so that the output has the input's size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

WIDTHS = (16, 32, 64, 128)


class UNet(nn.Module):
    """forward(N×3×H×W float) → N×classes×H×W logits; H and W multiples of 2 ** (len(widths) - 1)."""

    def __init__(self, classes: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        inputs = [3, *widths[:-1]]
        self.down = nn.ModuleList(_double(i, o) for i, o in zip(inputs, widths, strict=True))
        self.pool = nn.MaxPool2d(2)
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.lift = nn.ModuleList(nn.ConvTranspose2d(deep, wide, 2, 2) for deep, wide in pairs)
        self.up = nn.ModuleList(_double(2 * wide, wide) for _, wide in pairs)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(self.pool(x) if level else x)
            skips.append(x)
        for lift, block, skip in zip(self.lift, self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([skip, lift(x)], dim=1))
        return self.head(x)


def build(classes: int, widths: Sequence[int] | None = None) -> nn.Module:
    """The network by its settings; see `UNet`."""
    return UNet(classes, widths or WIDTHS)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    def unit(i: int) -> list[nn.Module]:
        return [nn.Conv2d(i, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    return nn.Sequential(*unit(inputs), *unit(outputs))
