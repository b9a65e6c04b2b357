"""Batch norm by class in a generator, as in Brock et al., Large Scale GAN Training for High Fidelity Natural Image Synthesis
(BigGAN), arXiv 1809.11096."""

from __future__ import annotations

import torch
from torch import nn


class ClassNorm(nn.Module):
    """forward(N×C×H×W, label: N int64 or None) → the same shape: batch norm whose scale and shift are the class's own; one
    for all where there are no classes.

    The class scales what comes of the noise, too, and cannot drown it however large its values grow, as a class beside the
    noise can: the norm then divides by what the classes differ in, and a picture of each class is left, whatever the noise.
    The values begin standard normal: from equal ones a generator takes many hundred steps to heed the class.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=not classes)
        self.table = nn.Embedding(classes, 2 * channels) if classes else None

    def forward(self, x: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        x = self.norm(x)
        if self.table is None:
            return x
        scale, shift = self.table(label)[:, :, None, None].chunk(2, 1)
        return x * (1 + scale) + shift
