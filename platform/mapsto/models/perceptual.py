"""What a trained network sees of a picture, layer by layer, and how far two pictures are apart in that: the content and
style losses of Gatys et al., A Neural Algorithm of Artistic Style, arXiv 1508.06576.

Every loss here is relative: the squared difference over the squared size of the target, in the mean over the layers. So
0 is the target itself, about 1 is as far as nothing at all, and weights mean the same whatever the scale of a network's
activations (the paper scales its VGG for that).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import nn

from ..core import heavy
from ..core.errors import UserError, nearest
from .normalize import Normalized

Maps = Mapping[str, torch.Tensor]
"""Layer → N×C×H×W float."""
EPSILON = 1e-8


class Perceptual(nn.Module):
    """forward(image: N×H×W×3 uint8, or float in 0..255) → the maps of the named layers, which are those of `net`'s
    submodules. What lies beyond the last of them is cut away, and borders are padded with what lies there. It is never
    trained and always in evaluation mode; gradients go through it to the pixels. UserError for a layer that is none."""

    def __init__(self, net: nn.Module, layers: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        create_feature_extractor = heavy.timm().models.create_feature_extractor
        names = dict.fromkeys(layers)
        have = [name for name, _ in net.named_modules() if name]
        for name in names:
            if name not in have:
                known = nearest(name, have) or f"; it has {', '.join(have[:12])}, ..."
                raise UserError(f"task.features: the network has no layer '{name}'{known}")
        modules: list[Any] = list(net.modules())
        for module in modules:
            if getattr(module, "inplace", False):
                module.inplace = False  # or a layer before it would be seen as it leaves it
            if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros":
                module.padding_mode = "replicate"  # zeros are a dark frame, which an answer would show
        try:
            cut = create_feature_extractor(net.eval(), {name: name for name in names})
        except (ValueError, RuntimeError, TypeError) as error:  # torch.fx cannot follow it
            line = str(error).splitlines()[0]
            raise UserError(
                f"task.features.model: the layers of this network cannot be taken apart ({line})"
            ) from error
        self.net = Normalized(cut, mean, std)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.net(image)

    def shape(self, layer: str, size: int = 64) -> tuple[int, int]:
        """(channels, stride) of a layer's maps, the stride rounded to a power of two. UserError where it has no maps."""
        with torch.no_grad():
            found: Any = self(torch.zeros(1, size, size, 3))[layer]
        if found.ndim != 4:
            raise UserError(
                f"task.features: layer '{layer}' gives {found.ndim - 1} dimensions, not maps; name an earlier one"
            )
        return found.shape[1], 2 ** round(float(torch.log2(torch.tensor(size / found.shape[2]))))


def gram(maps: torch.Tensor) -> torch.Tensor:
    """N×C×H×W → N×C×C: products of every two channels, in the mean over the pixels."""
    flat = maps.float().flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def moments(maps: torch.Tensor) -> torch.Tensor:
    """N×C×H×W → N×2C: each channel's mean and standard deviation over the pixels."""
    flat = maps.float().flatten(2)
    return torch.cat([flat.mean(2), (flat.var(2, unbiased=False) + 1e-5).sqrt()], 1)


def content_loss(found: Maps, target: Maps, layers: Sequence[str]) -> torch.Tensor:
    """N relative distances of the maps themselves."""
    return _relative(found, target, layers, torch.Tensor.float)


def style_loss(found: Maps, target: Maps, layers: Sequence[str]) -> torch.Tensor:
    """N relative distances of the Gram matrices; the target may be one for all."""
    return _relative(found, target, layers, gram)


def moments_loss(found: Maps, target: Maps, layers: Sequence[str]) -> torch.Tensor:
    """N relative distances of the channels' means and standard deviations (Huang and Belongie, arXiv 1703.06868, eq. 13)."""
    return _relative(found, target, layers, moments)


def roughness(image: torch.Tensor) -> torch.Tensor:
    """N×H×W×3 in 0..255 → N: squared differences of neighbouring pixels, of 0..1, in the mean (total variation)."""
    x = image / 255
    return (x[:, 1:] - x[:, :-1]).square().mean((1, 2, 3)) + (x[:, :, 1:] - x[:, :, :-1]).square().mean((1, 2, 3))


def _relative(found: Maps, target: Maps, layers: Sequence[str], view: Any) -> torch.Tensor:
    with torch.autocast(next(iter(found.values())).device.type, enabled=False):
        each = []
        for layer in layers:
            aim = view(target[layer]).flatten(1)
            error = (view(found[layer]).flatten(1) - aim).square().sum(1)
            each.append(error / (aim.square().sum(1) + EPSILON))
        return torch.stack(each).mean(0)
