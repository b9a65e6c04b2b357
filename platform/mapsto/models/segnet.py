"""SegNet (Badrinarayanan et al., SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation,
arXiv 1511.00561): the decoder puts values back where max pooling found them, and learns no upsampling."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

WIDTHS = (32, 64, 128, 128)
"""A small one; the paper's, VGG-16's, is (64, 128, 256, 512, 512)."""


class SegNet(nn.Module):
    """forward(N×3×H×W float) → N×classes×H×W logits; H and W multiples of 2 ** len(widths).

    Encoder levels are VGG-16's: two 3×3 convolutions each, three from the third level on, with batch norm; the decoder
    mirrors them.
    """

    def __init__(self, classes: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        before = [3, *widths[:-1]]
        self.down = nn.ModuleList(
            _block([i, *[o] * _depth(level)]) for level, (i, o) in enumerate(zip(before, widths, strict=True))
        )
        after = [widths[0], *widths[:-1]]
        self.up = nn.ModuleList(
            _block([*[i] * _depth(level), o])
            for level, (i, o) in reversed(list(enumerate(zip(widths, after, strict=True))))
        )
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = []
        for block in self.down:
            x, place = F.max_pool2d(block(x), 2, return_indices=True)
            places.append(place)
        for block, place in zip(self.up, reversed(places), strict=True):
            x = block(unpool(x, place))
        return self.head(x)


def build(classes: int, widths: Sequence[int] | None = None) -> nn.Module:
    """The network by its settings; see `SegNet`."""
    return SegNet(classes, widths or WIDTHS)


def unpool(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """N×C×H×W values and the places (int64, in the plane of 2H·2W) where 2×2 max pooling found them → N×C×2H×2W, 0
    elsewhere: `max_unpool2d`, written as a scatter, which ONNX has."""
    batch, channels, height, width = x.shape
    flat = torch.zeros(batch, channels, 4 * height * width, dtype=x.dtype, device=x.device)
    return flat.scatter(2, places.flatten(2), x.flatten(2)).reshape(batch, channels, 2 * height, 2 * width)


def _depth(level: int) -> int:
    return 2 if level < 2 else 3


def _block(widths: Sequence[int]) -> nn.Sequential:
    """3×3 convolutions through `widths`, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
