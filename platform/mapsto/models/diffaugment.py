"""Augmentation with gradient, of real and generated images alike, so that a discriminator cannot learn a small data set by
heart (Zhao et al., Differentiable Augmentation for Data-Efficient GAN Training, arXiv 2006.10738)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F


def augment(x: torch.Tensor, policies: Sequence[str], generator: torch.Generator) -> torch.Tensor:
    """N×3×H×W in about -1..1 → the same shape; each image is changed by draws of its own from `generator` (the CPU's)."""
    for name in policies:
        x = POLICIES[name](x, generator)
    return x


def colour(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Brightness by ±0.5, saturation times 0 to 2, contrast times 0.5 to 1.5."""
    x = x + _uniform(x, generator) - 0.5
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * _uniform(x, generator)) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (_uniform(x, generator) + 0.5) + mean


def translation(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """By up to an eighth of the side each way; what comes in is 0."""
    n, _, height, width = x.shape
    down, right = round(height / 8), round(width / 8)
    rows = _integers(n, 2 * down + 1, generator, x)[:, None] + torch.arange(height, device=x.device)
    columns = _integers(n, 2 * right + 1, generator, x)[:, None] + torch.arange(width, device=x.device)
    padded = F.pad(x, (right, right, down, down)).permute(0, 2, 3, 1)
    image = torch.arange(n, device=x.device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A square of half the side, its centre anywhere, becomes 0."""
    n, _, height, width = x.shape
    y, x0 = _integers(n, height, generator, x), _integers(n, width, generator, x)
    inside = [
        (torch.arange(side, device=x.device) - centre[:, None]).add(side // 4).div(side // 2, rounding_mode="floor")
        == 0
        for side, centre in ((height, y), (width, x0))
    ]
    return x * ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])


POLICIES: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "colour": colour,
    "translation": translation,
    "cutout": cutout,
}


def _uniform(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(len(x), 1, 1, 1, generator=generator).to(x)


def _integers(n: int, below: int, generator: torch.Generator, like: torch.Tensor) -> torch.Tensor:
    return torch.randint(below, (n,), generator=generator).to(like.device)
