"""A classifier that looks at an image and at its mirror image."""

from __future__ import annotations

import torch
from torch import nn


class Mirrored(nn.Module):
    """forward(N×3×H×W float) → N×classes logits: in training the net's own; otherwise the mean of those for the image and
    for the image flipped left to right, in one pass of twice the batch. Exported with the model.

    For classes that a mirror does not change, and a net trained with flips (Krizhevsky et al., ImageNet Classification
    with Deep Convolutional Neural Networks, 2012, averages over flips and crops likewise).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self.net(images)
        logits = self.net(torch.cat([images, images.flip(3)]))
        return logits.reshape(2, -1, logits.shape[1]).mean(0)
