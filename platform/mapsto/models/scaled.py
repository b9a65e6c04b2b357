"""A network's number in the unit of what is learnt."""

from __future__ import annotations

import torch
from torch import nn


class Scaled(nn.Module):
    """forward(image) → N float: net(image), N×1, times the values' standard deviation, plus their mean; both are saved with it."""

    def __init__(self, net: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        self.mean: torch.Tensor
        self.std: torch.Tensor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.mean, self.net(image)[:, 0].float(), self.std)
