"""Batch norm by class in a generator, as in Brock et al., Large Scale GAN Training for High Fidelity Natural Image Synthesis
(BigGAN), arXiv 1809.11096."""

from __future__ import annotations

import torch
from torch import nn


class ClassNorm(nn.Module):
    """forward(N×C×H×W, label: N int64 or None) → the same shape: batch norm whose scale and shift are the class's own; one
    for all where there are no classes.

    What is normalised has nothing of the class, so its variance is the noise's alone. Of a class beside the noise the norm
    keeps what the classes differ in, beside which the noise may vanish: a picture for each class, whatever the noise. Classes
    begin apart (tables of deviation 1): where they began alike, the noise took their place (both seen on MNIST).
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=not classes)
        self.table = nn.Embedding(classes, 2 * channels) if classes else None
        if self.table is not None:
            nn.init.normal_(self.table.weight)

    def forward(self, x: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        x = self.norm(x)
        if self.table is None:
            return x
        scale, shift = self.table(label)[:, :, None, None].chunk(2, 1)
        return x * (1 + scale) + shift
