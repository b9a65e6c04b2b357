"""An anchor-free YOLO, written from the papers: a cross-stage partial backbone (Wang et al., CSPNet, arXiv 1911.11929)
with spatial pyramid pooling (He et al., arXiv 1406.4729), a path aggregation neck (Liu et al., PANet, arXiv 1803.01534)
and a decoupled head (Ge et al., YOLOX, arXiv 2107.08430) without objectness."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import nn

from .anchors import Grid, yolo
from .yolo_loss import Targets, detection_loss

PRIOR = 0.01
"""Probability of every class at the beginning."""


class Yolo(nn.Module):
    """forward(N×3×S×S float) → `deltas` (N×A×4, logarithms of distances in cells) and `logits` (N×A×classes), raw, of
    the cells at strides 8, 16 and 32. S is a multiple of 32."""

    def __init__(
        self, classes: int, image_size: int, widths: Sequence[int] = (16, 32, 64, 128, 256), blocks: int = 1
    ) -> None:
        """`widths`: channels at strides 2, 4, 8, 16, 32. `blocks`: residual blocks of a stage of the backbone."""
        super().__init__()
        grid: Grid = yolo(image_size)
        self.register_buffer("anchors", torch.from_numpy(grid.anchors), persistent=False)
        self.anchors: torch.Tensor
        self.stem = conv(3, widths[0], 3, 2)
        stages = [nn.Sequential(conv(i, o, 3, 2), Partial(o, o, blocks)) for i, o in pairwise(widths)]
        stages[-1].append(Pooled(widths[-1]))
        self.stages = nn.ModuleList(stages)
        self.neck = Neck(widths[2:])
        self.heads = nn.ModuleList(Head(width, widths[2], classes) for width in widths[2:])

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        parts = [head(level) for head, level in zip(self.heads, self.neck(maps[-3:]), strict=True)]
        deltas, logits = (torch.cat([part[k] for part in parts], dim=1) for k in (0, 1))
        return {"deltas": deltas, "logits": logits}

    def losses(
        self, x: torch.Tensor, targets: Sequence[Targets]
    ) -> tuple[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]]:
        """(sum, count, logs) of a batch and each image's `boxes` (M×4 xyxy) and `labels` (M, from 0)."""
        out = self(x)
        return detection_loss(out["deltas"].float(), out["logits"].float(), self.anchors, targets)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, SiLU; padded so that only the stride changes the size."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
    )


class Residual(nn.Module):
    """1×1 and 3×3 convolution beside the identity."""

    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width, 1), conv(width, width, 3))
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


class Partial(nn.Module):
    """A cross-stage partial block: half of the channels pass the residual blocks, the other half pass them by."""

    def __init__(self, inputs: int, outputs: int, blocks: int, shortcut: bool = True) -> None:
        super().__init__()
        half = max(outputs // 2, 1)
        self.through, self.past = conv(inputs, half, 1), conv(inputs, half, 1)
        self.blocks = nn.Sequential(*(Residual(half, shortcut) for _ in range(blocks)))
        self.join = conv(2 * half, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(torch.cat([self.blocks(self.through(x)), self.past(x)], dim=1))


class Pooled(nn.Module):
    """Spatial pyramid pooling: the map beside its maxima over 5, 9 and 13 cells."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = max(width // 2, 1)
        self.narrow, self.join = conv(width, half, 1), conv(4 * half, width, 1)
        self.pools = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in (5, 9, 13))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.narrow(x)
        return self.join(torch.cat([x, *(pool(x) for pool in self.pools)], dim=1))


class Neck(nn.Module):
    """Three maps from fine to coarse, of these widths, each joined with what the coarser and then the finer ones know."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.narrow_coarse, self.narrow_middle = conv(coarse, middle, 1), conv(middle, fine, 1)
        self.down_middle, self.down_fine = (
            Partial(2 * middle, middle, 1, shortcut=False),
            Partial(2 * fine, fine, 1, shortcut=False),
        )
        self.shrink_fine, self.shrink_middle = conv(fine, fine, 3, 2), conv(middle, middle, 3, 2)
        self.up_middle, self.up_coarse = (
            Partial(2 * fine, middle, 1, shortcut=False),
            Partial(2 * middle, coarse, 1, shortcut=False),
        )

    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        fine, middle, coarse = maps
        from_coarse = self.narrow_coarse(coarse)
        from_middle = self.narrow_middle(self.down_middle(torch.cat([self.up(from_coarse), middle], dim=1)))
        fine = self.down_fine(torch.cat([self.up(from_middle), fine], dim=1))
        middle = self.up_middle(torch.cat([self.shrink_fine(fine), from_middle], dim=1))
        return fine, middle, self.up_coarse(torch.cat([self.shrink_middle(middle), from_coarse], dim=1))


class Head(nn.Module):
    """A map → (N×cells×4 deltas, N×cells×classes logits), by a branch of its own each."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.stem = conv(inputs, width, 1)
        self.box = nn.Sequential(conv(width, width, 3), conv(width, width, 3), _last(width, 4, math.log(2.0)))
        start = -math.log((1 - PRIOR) / PRIOR)
        self.kind = nn.Sequential(conv(width, width, 3), conv(width, width, 3), _last(width, classes, start))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x)
        deltas, logits = (branch(x).flatten(2).transpose(1, 2) for branch in (self.box, self.kind))
        return deltas, logits


def _last(inputs: int, outputs: int, start: float) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, start)
    return layer
