"""DeepLabv3+ (Chen et al., Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation,
arXiv 1802.02611) on a timm backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .backbones import features

RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}
"""Output stride → atrous rates; the paper gives those of 8 and 16."""
LOW = 48
"""Channels of the low-level features in the decoder, as in the paper."""


class DeepLabV3Plus(nn.Module):
    """forward(N×3×H×W float) → N×classes×H×W logits, any H and W from 32 on.

    ASPP with separable atrous convolutions over the deepest features, upsampled and joined with those at a quarter of the
    resolution; `width`: channels of both (the paper: 256). The image-level branch has no batch norm, so that a batch of
    one row trains.
    """

    def __init__(self, classes: int, backbone: str, *, pretrained: bool, output_stride: int, width: int) -> None:
        super().__init__()
        self.backbone, channels = features(
            backbone, pretrained=pretrained, output_stride=output_stride, reductions=(4, output_stride)
        )
        self.aspp = ASPP(channels[1], width, RATES[output_stride])
        self.low = _unit(channels[0], LOW, 1)
        self.decoder = nn.Sequential(_separable(width + LOW, width), _separable(width, width))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, deep = self.backbone(x)
        deep = _resize(self.aspp(deep), low.shape[2:])
        y = self.decoder(torch.cat([deep, self.low(low)], dim=1))
        return _resize(self.head(y), x.shape[2:])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: N×inputs×H×W → N×width×H×W, from a 1×1, three atrous 3×3 and an image-level branch."""

    def __init__(self, inputs: int, width: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([_unit(inputs, width, 1), *(_separable(inputs, width, rate) for rate in rates)])
        self.image = nn.Sequential(nn.Conv2d(inputs, width, 1), nn.ReLU(inplace=True))
        self.project = _unit((2 + len(rates)) * width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = self.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.project(torch.cat([*(branch(x) for branch in self.branches), whole], dim=1))


def build(
    classes: int, backbone: str = "resnet18", *, pretrained: bool = False, output_stride: int = 16, width: int = 128
) -> nn.Module:
    """The network by its settings; see `DeepLabV3Plus`. UserError for a backbone that timm has not, or not so."""
    return DeepLabV3Plus(classes, backbone, pretrained=pretrained, output_stride=output_stride, width=width)


def _resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)


def _unit(inputs: int, outputs: int, size: int, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    padding = dilation * (size // 2)
    conv = nn.Conv2d(inputs, outputs, size, padding=padding, dilation=dilation, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _separable(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    """Depthwise 3×3, then pointwise, each with batch norm and ReLU."""
    return nn.Sequential(_unit(inputs, inputs, 3, dilation, groups=inputs), _unit(inputs, outputs, 1))
