"""How alike two pictures look: the learned perceptual image patch similarity (Zhang et al., The Unreasonable Effectiveness of
Deep Features as a Perceptual Metric, CVPR 2018, arXiv 1801.03924), version 0.1 of its published code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

TAPS = {"alexnet": (1, 4, 7, 9, 11), "vgg16": (3, 8, 15, 22, 29)}
"""Network → the layers of torchvision's `features` that are compared: rectified maps."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of pixels in -1..1, in the published code."""


class Lpips(nn.Module):
    """forward(a, b: N×H×W×3 uint8, or float in 0..255) → N float: 0 for equal pictures.

    `backbone`: torchvision's state dict of the network (`features.0.weight`, ...; others are passed over). `linear`: the
    published weights of the channels, `lin0.model.1.weight` and so on, 1×C×1×1 each. Raises ValueError where either lacks
    something or has another shape.
    """

    def __init__(self, network: str, backbone: Mapping[str, torch.Tensor], linear: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        from torchvision import models

        net: Any = getattr(models, network)(weights=None).features
        prefix = "features."
        given = {name.removeprefix(prefix): value for name, value in backbone.items() if name.startswith(prefix)}
        own = net.state_dict()
        for name, value in own.items():
            if name not in given or given[name].shape != value.shape:
                has = "is missing" if name not in given else f"is {list(given[name].shape)}, not {list(value.shape)}"
                raise ValueError(f"no {network} by torchvision's names: {prefix}{name} {has}")
        net.load_state_dict({name: given[name] for name in own})
        for module in net.modules():
            if getattr(module, "inplace", False):
                module.inplace = False
        self.layers, self.taps = nn.ModuleList(net[: TAPS[network][-1] + 1]), TAPS[network]
        widths = [self._width(tap) for tap in self.taps]
        for number, width in enumerate(widths):
            name = f"lin{number}.model.1.weight"
            value = linear.get(name, linear.get(f"lin{number}.1.weight"))
            if value is None or tuple(value.shape) != (1, width, 1, 1):
                has = "is missing" if value is None else f"is {list(value.shape)}, not {[1, width, 1, 1]}"
                raise ValueError(f"no linear weights of LPIPS for {network}: {name} {has}")
            self.register_buffer(f"lin{number}", value.detach().clone().float())
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])
        self.requires_grad_(False).eval()

    def _width(self, tap: int) -> int:
        convolutions = [layer for layer in list(self.layers)[: tap + 1] if isinstance(layer, nn.Conv2d)]
        return convolutions[-1].out_channels

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(len(a), device=a.device)
        for number, (ours, theirs) in enumerate(zip(self._maps(a), self._maps(b), strict=True)):
            apart = (ours - theirs).square() * self.get_buffer(f"lin{number}")
            total = total + apart.sum(1).mean((1, 2))
        return total

    def _maps(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Of each tap, every pixel's channels brought to length 1."""
        x = image.permute(0, 3, 1, 2).float() / 127.5 - 1
        x, found = (x - self.get_buffer("shift")) / self.get_buffer("scale"), []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in self.taps:
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found
