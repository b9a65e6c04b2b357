"""SegFormer (Xie et al., SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers,
arXiv 2105.15203), written from the paper: a Mix Transformer encoder and an all-MLP decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

WIDTHS = (32, 64, 160, 256)
"""MiT-B0's."""
HEAD = 32
"""Channels of an attention head."""
REDUCTIONS = (8, 4, 2, 1)
"""Of the keys' and values' resolution, per stage."""


class SegFormer(nn.Module):
    """forward(N×3×H×W float) → N×classes×H×W logits; H and W multiples of 32.

    `widths`: channels of the four stages, each a multiple of 32; `depth`: blocks per stage (MiT-B0: 2); `width`: the
    decoder's channels (256). No stochastic depth.
    """

    def __init__(self, classes: int, widths: Sequence[int] = WIDTHS, depth: int = 2, width: int = 256) -> None:
        super().__init__()
        inputs = [3, *widths[:-1]]
        self.stages = nn.ModuleList(
            Stage(i, o, (7, 4) if number == 0 else (3, 2), depth, reduction)
            for number, (i, o, reduction) in enumerate(zip(inputs, widths, REDUCTIONS, strict=True))
        )
        self.lift = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in widths)
        self.fuse = nn.Sequential(
            nn.Conv2d(len(widths) * width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size, levels = x.shape[2:], []
        for stage, lift in zip(self.stages, self.lift, strict=True):
            x = stage(x)
            levels.append(lift(x))
        quarter = levels[0].shape[2:]
        levels = [levels[0], *(_resize(level, quarter) for level in levels[1:])]
        return _resize(self.head(self.fuse(torch.cat(levels, dim=1))), size)


class Stage(nn.Module):
    """Overlapping patches, `depth` blocks and a norm: N×inputs×H×W → N×width×(H/stride)×(W/stride)."""

    def __init__(self, inputs: int, width: int, patch: tuple[int, int], depth: int, reduction: int) -> None:
        super().__init__()
        size, stride = patch
        self.embed = nn.Conv2d(inputs, width, size, stride, size // 2)
        self.embed_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, reduction) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        height, width = x.shape[2:]
        tokens = self.embed_norm(x.flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = block(tokens, height, width)
        return _plane(self.norm(tokens), height, width)


class Block(nn.Module):
    """Attention whose keys and values are reduced by a strided convolution, then Mix-FFN: a 3×3 depthwise convolution in
    the middle of the MLP, in place of a position code. N×HW×C → the same."""

    def __init__(self, width: int, reduction: int, expansion: int = 4) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value, self.out = (nn.Linear(width, n) for n in (width, 2 * width, width))
        self.reduce = nn.Conv2d(width, width, reduction, reduction) if reduction > 1 else None
        self.reduce_norm = nn.LayerNorm(width) if reduction > 1 else None
        hidden = expansion * width
        self.expand, self.shrink = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        x = x + self._attend(self.norm1(x), height, width)
        hidden = _plane(self.expand(self.norm2(x)), height, width)
        return x + self.shrink(F.gelu(self.mix(hidden)).flatten(2).transpose(1, 2))

    def _attend(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        seen = x
        if self.reduce is not None and self.reduce_norm is not None:
            seen = self.reduce_norm(self.reduce(_plane(x, height, width)).flatten(2).transpose(1, 2))
        key, value = self.key_value(seen).chunk(2, dim=2)
        seen = F.scaled_dot_product_attention(self._split(self.query(x)), self._split(key), self._split(value))
        return self.out(seen.transpose(1, 2).flatten(2))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """N×T×C → N×heads×T×HEAD."""
        return x.unflatten(2, (self.heads, HEAD)).transpose(1, 2)


def build(classes: int, widths: Sequence[int] | None = None, *, depth: int = 2, width: int = 128) -> nn.Module:
    """The network by its settings; see `SegFormer`."""
    return SegFormer(classes, widths or WIDTHS, depth, width)


def _plane(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def _resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)
