"""Diffusion: a U-Net that says which way the noise lies, and the sampler that follows it.

Noise level t in 0..1 on the cosine schedule (Nichol and Dhariwal, arXiv 2102.09672): x_t = cos(πt/2) x + sin(πt/2) ε. The net
answers with v = cos(πt/2) ε - sin(πt/2) x (Salimans and Ho, Progressive Distillation, arXiv 2202.00512).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .gan import pixels, to_pixels
from .vae import groups

ATTENTION = 8
"""Largest side of a level with self-attention, pixels."""


class ResBlock(nn.Module):
    """Two convolutions beside a 1×1 one; the second norm's scale and shift come from the time's vector."""

    def __init__(self, low: int, high: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups(low), low), nn.Conv2d(low, high, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups(high), high), nn.Conv2d(high, high, 3, padding=1)
        self.time = nn.Linear(embedding, 2 * high)
        self.skip = nn.Conv2d(low, high, 1) if low != high else nn.Identity()
        _zero(self.conv2)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        scale, shift = self.time(time)[:, :, None, None].chunk(2, 1)
        y = self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(y))


class Attention(nn.Module):
    """x + self-attention over the pixels, one head per 32 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // 32)
        self.norm = nn.GroupNorm(groups(channels), channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        _zero(self.out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, channels, height, width = x.shape
        shape = (-1, 3, self.heads, channels // self.heads, height * width)
        q, k, v = self.qkv(self.norm(x)).reshape(shape).transpose(3, 4).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(-1, channels, height, width)
        return x + self.out(y)


class UNet(nn.Module):
    """forward(x: N×inputs×S×S, t: N in 0..1, label: N int64 or None) → N×3×S×S.

    `widths`: channels by level, from the finest down; `blocks`: residual blocks of each. Class number `classes` stands for
    no class.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], blocks: int, classes: int, size: int) -> None:
        super().__init__()
        first, embedding = widths[0], 4 * widths[0]
        self.time = nn.Sequential(nn.Linear(2 * first, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.classes = nn.Embedding(classes + 1, embedding) if classes else None
        self.register_buffer("frequencies", torch.logspace(0, 3, first) * math.pi / 2)
        self.frequencies: torch.Tensor
        self.start = nn.Conv2d(inputs, first, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        held, channels = [first], first
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(_Level(channels, width, embedding, size >> level))
                channels = width
                held.append(channels)
            if level < len(widths) - 1:
                self.down.append(nn.Conv2d(channels, channels, 3, 2, 1))
                held.append(channels)
        self.middle = nn.ModuleList(
            [ResBlock(channels, channels, embedding), Attention(channels), ResBlock(channels, channels, embedding)]
        )
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(_Level(channels + held.pop(), width, embedding, size >> level))
                channels = width
            if level:
                self.up.append(
                    nn.Sequential(nn.Upsample(scale_factor=2.0), nn.Conv2d(channels, channels, 3, padding=1))
                )
        last = _zero(nn.Conv2d(first, 3, 3, padding=1))
        self.end = nn.Sequential(nn.GroupNorm(groups(first), first), nn.SiLU(), last)

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        angles = t[:, None] * self.frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        if self.classes is not None:
            time = time + self.classes(label)
        time = F.silu(time)
        x = self.start(x)
        held = [x]
        for layer in self.down:
            x = layer(x, time) if isinstance(layer, _Level) else layer(x)
            held.append(x)
        first, attention, second = self.middle
        x = second(attention(first(x, time)), time)
        for layer in self.up:
            x = layer(torch.cat([x, held.pop()], 1), time) if isinstance(layer, _Level) else layer(x)
        return self.end(x)


class _Level(nn.Module):
    def __init__(self, low: int, high: int, embedding: int, side: int) -> None:
        super().__init__()
        self.block = ResBlock(low, high, embedding)
        self.attention = Attention(high) if side <= ATTENTION else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.attention(self.block(x, time))


class Diffusion(nn.Module):
    """The net with its sampler. forward(z: N×3×S×S normal, label: N int64 where there are classes, image: N×S×S×3 uint8 and
    mask: N×S×S uint8 where `fills`) → N×S×S×3 uint8: DDIM without noise of its own (Song et al., arXiv 2010.02502) from t = 1
    to 0 in `steps` equal steps, so that a seed is an image, and the loop can be exported.

    `fills`: the net sees the known pixels as they are (mask below 128), and which they are; it was trained so (as Saharia et
    al., Palette, arXiv 2111.05826). `guidance` w: v = v(no class) + w (v(class) - v(no class)) (Ho and Salimans, Classifier-Free
    Diffusion Guidance, arXiv 2207.12598).
    """

    def __init__(
        self, size: int, widths: tuple[int, ...], blocks: int, classes: int, fills: bool, steps: int, guidance: float
    ) -> None:
        super().__init__()
        self.net = UNet(4 if fills else 3, widths, blocks, classes, size)
        self.none, self.fills, self.steps, self.guidance = classes, fills, steps, guidance

    def losses(
        self,
        image: torch.Tensor,
        z: torch.Tensor,
        t: torch.Tensor,
        label: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Squared error of v, the mean over the pixels that are not known, N; label `none` where no class is told."""
        x = pixels(image)
        angle = (t * math.pi / 2)[:, None, None, None]
        a, s = angle.cos(), angle.sin()
        noisy, hole = a * x + s * z, self._hole(mask)
        apart = (self.net(self._seen(noisy, x, hole), t, label).float() - (a * z - s * x)).square()
        if hole is None:
            return apart.mean((1, 2, 3))
        return (apart * hole).sum((1, 2, 3)) / (3 * hole.sum((1, 2, 3))).clamp(min=1)

    def forward(
        self,
        z: torch.Tensor,
        label: torch.Tensor | None = None,
        image: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        known, hole = pixels(image) if image is not None else z, self._hole(mask)
        x = z
        for step in range(self.steps):
            a, s = _level(1 - step / self.steps)
            a_next, s_next = _level(1 - (step + 1) / self.steps)
            t = torch.full_like(z[:, 0, 0, 0], 1 - step / self.steps)
            v = self._guided(self._seen(x, known, hole), t, label).float()
            clean = (a * x - s * v).clamp(-1, 1)
            x = a_next * clean + s_next * (x - a * clean) / s
        return to_pixels(x if hole is None else x * hole + known * (1 - hole))

    def _guided(self, seen: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        if label is None or self.guidance == 1:
            return self.net(seen, t, label)
        both = self.net(seen.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([label, torch.full_like(label, self.none)]))
        told, untold = both.reshape(
            2, -1, *both.shape[1:]
        ).unbind()  # a chunk would fix the number of rows in an export
        return untold + self.guidance * (told - untold)

    def _hole(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """N×1×S×S: 1 where there is something to paint."""
        return (mask >= 128).float()[:, None] if self.fills and mask is not None else None

    def _seen(self, x: torch.Tensor, known: torch.Tensor, hole: torch.Tensor | None) -> torch.Tensor:
        return x if hole is None else torch.cat([x * hole + known * (1 - hole), hole], 1)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer that adds nothing at first: training begins with a shallow net."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _level(t: float) -> tuple[float, float]:
    """Shares of image and noise at noise level t."""
    return math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)
