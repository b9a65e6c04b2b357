"""Test-time augmentation inside the model, so that every runtime and every export has it: several views of an image in
one answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Output = torch.Tensor | dict[str, torch.Tensor]


class Views(nn.Module):
    """forward(N×3×S×S float): in training the net's own answer; otherwise one from all views of the image: at each of
    `sides` (pixels; empty: its own), and with `mirror` flipped left to right, too, in one pass of twice the batch.

    Logits of an image or of its pixels: their mean, turned back and of S×S. A detector's answers: those of all views, one
    after the other along the second dimension, in the order of the sides, each followed by its mirror image's. What is
    in pixels of the input (`boxes`, `masks`) is turned back; `deltas` mean what the anchors of their view say.

    For a net trained with flips, and classes that a mirror does not change (Krizhevsky et al., ImageNet Classification
    with Deep Convolutional Neural Networks, 2012, averages over flips and crops likewise).
    """

    def __init__(self, net: nn.Module, mirror: bool = True, sides: Sequence[int] = ()) -> None:
        super().__init__()
        self.net, self.mirror, self.sides = net, mirror, tuple(sides)

    def forward(self, images: torch.Tensor) -> Output:
        if self.training:
            return self.net(images)
        size = images.shape[-1]
        views: list[Output] = []
        for side in self.sides or (size,):
            seen = images if side == size else _resized(images, side)
            if not self.mirror:
                views.append(_placed(self.net(seen), side, size))
                continue
            both = self.net(torch.cat([seen, seen.flip(3)]))
            ours, theirs = _halves(both)
            views += [_placed(ours, side, size), _placed(_mirrored(theirs, side), side, size)]
        return _together(views)

    def losses(self, images: torch.Tensor, targets: Sequence[Any]) -> Any:
        """A detector's own: training sees one view."""
        losses: Callable[..., Any] = getattr(self.net, "losses")  # noqa: B009 - of detectors alone
        return losses(images, targets)


def _resized(values: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(values, size=(side, side), mode="bilinear", align_corners=False)


def _halves(output: Output) -> tuple[Output, Output]:
    """By reshaping: a split would make the batch's size a constant of the exported model."""
    if isinstance(output, torch.Tensor):
        ours, theirs = output.reshape(2, -1, *output.shape[1:])
        return ours, theirs
    parts = {name: value.reshape(2, -1, *value.shape[1:]) for name, value in output.items()}
    return {name: part[0] for name, part in parts.items()}, {name: part[1] for name, part in parts.items()}


def _mirrored(output: Output, side: int) -> Output:
    if isinstance(output, torch.Tensor):
        return output.flip(3) if output.ndim == 4 else output
    out = dict(output)
    if "boxes" in out:
        left, top, right, bottom = out["boxes"].unbind(-1)
        out["boxes"] = torch.stack([side - right, top, side - left, bottom], -1)
    if "masks" in out:
        out["masks"] = out["masks"].flip(-1)
    return out


def _placed(output: Output, side: int, size: int) -> Output:
    """From a view of this side to the input's size."""
    if side == size:
        return output
    if isinstance(output, torch.Tensor):
        return _resized(output, size) if output.ndim == 4 else output
    return output | {"boxes": output["boxes"] * (size / side)} if "boxes" in output else output


def _together(views: list[Output]) -> Output:
    first = views[0]
    if isinstance(first, torch.Tensor):
        return torch.stack([view for view in views if isinstance(view, torch.Tensor)]).mean(0)
    named: list[Mapping[str, torch.Tensor]] = [view for view in views if isinstance(view, dict)]
    return {name: torch.cat([view[name] for view in named], dim=1) for name in first}
