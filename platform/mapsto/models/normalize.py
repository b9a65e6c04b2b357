"""The door of every image model: uint8 pixels in, normalised floats to the network. It is exported with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..core.sample import DatasetInfo


class Normalized(nn.Module):
    """forward(image: N×H×W×3 uint8) → net(N×3×H×W float, (x / 255 - mean) / std).

    The permuted view of a contiguous N×H×W×3 array is channels-last already: no copy is made for it.
    """

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("scale", 1.0 / (255.0 * torch.tensor(std, dtype=torch.float32)), persistent=True)
        self.register_buffer("shift", -torch.tensor(mean) / torch.tensor(std), persistent=True)
        self.scale: torch.Tensor
        self.shift: torch.Tensor

    def normalize(self, image: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.shift, image.float(), self.scale).permute(0, 3, 1, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.net(self.normalize(image))


def normalized(net: nn.Module, info: DatasetInfo, weights: Mapping[str, Any] | None) -> Normalized:
    """The net behind the mean and standard deviation with which its pretrained weights were trained, as timm's account of
    them (`default_cfg`) says; without any, behind the training set's."""
    mean, std = (weights["mean"], weights["std"]) if weights else (info.mean, info.std)
    return Normalized(net, mean, std)
