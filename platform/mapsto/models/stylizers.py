"""Three ways to give a picture a style, with one door: forward(image: N×H×W×3 uint8, shared: N, alpha: N, ...) →
N×H×W×3 uint8. `alpha` is the strength, 0..1. `shared` above 0.5 marks a row that is normalised by row 0's statistics in
place of its own: tiles of one picture, whose row 0 shows it whole (Wang et al., Towards Ultra-Resolution Neural Style
Transfer via Thumbnail Instance Normalization, arXiv 2103.11784)."""

from __future__ import annotations

import time
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from .gan import rounded
from .perceptual import Perceptual, content_loss, roughness, style_loss

LUMA = (0.299, 0.587, 0.114)
"""Of RGB (ITU-R BT.601)."""


class Stylizer(nn.Module):
    """`features` measures, and is what optimisation and AdaIN look through; it is no part of a feed-forward answer.

    `luminance`: keep the content's colours (Gatys et al., Preserving Color in Neural Artistic Style Transfer, arXiv
    1606.05897, section 3.2). `took`: seconds of the last answer outside training, for whoever asks first.
    """

    def __init__(self, features: Perceptual, luminance: bool) -> None:
        super().__init__()
        self.features, self.luminance = features, luminance
        self.took: float | None = None

    def timed(self, answer: torch.Tensor, start: float) -> torch.Tensor:
        if not self.training and not torch.compiler.is_compiling():
            if answer.is_cuda:
                torch.cuda.synchronize()
            self.took = time.perf_counter() - start
        return answer

    def finish(self, result: torch.Tensor, content: torch.Tensor, alpha: torch.Tensor | None) -> torch.Tensor:
        """N×H×W×3 floats in about 0..255 to pixels, BrokenModel where they are not finite; where `alpha` is given the content's pixels have the rest."""
        if self.luminance:
            result = content + luma(result) - luma(content)  # the differences to the luma, the colour, stay
        if alpha is not None:
            result = content + alpha.clamp(0, 1).view(-1, 1, 1, 1) * (result - content)
        return rounded(result)


class FeedForward(Stylizer):
    """One style, learnt by the net: a picture costs one pass of it."""

    def __init__(self, features: Perceptual, luminance: bool, width: int) -> None:
        super().__init__(features, luminance)
        self.net = TransformNet(width)

    def forward(self, image: torch.Tensor, shared: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        start, content = time.perf_counter(), image.float()
        return self.timed(self.finish(self.net(content, shared).float(), content, alpha), start)


class AdaIn(Stylizer):
    """Any style, given as a picture, by adaptive instance normalisation of the features and a learnt decoder (Huang and
    Belongie, Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization, arXiv 1703.06868).

    forward takes `style`: N×K×S×S×3 uint8, and `mix`: N×K, the share of each; a row whose shares are all 0 gets the
    style kept in the model.
    """

    def __init__(self, features: Perceptual, luminance: bool, layer: str, style_size: int) -> None:
        super().__init__(features, luminance)
        self.layer = layer
        self.decoder = Decoder(*features.shape(layer))
        self.register_buffer("style", torch.zeros(1, style_size, style_size, 3, dtype=torch.uint8))
        self.style: torch.Tensor

    def forward(
        self,
        image: torch.Tensor,
        shared: torch.Tensor,
        alpha: torch.Tensor,
        style: torch.Tensor,
        mix: torch.Tensor,
    ) -> torch.Tensor:
        start, content = time.perf_counter(), image.float()
        none = mix.abs().sum(1, keepdim=True) == 0
        style = torch.where(none.view(-1, 1, 1, 1, 1), self.style.unsqueeze(1), style)
        mix = torch.where(none, torch.full_like(mix, 1 / mix.shape[1]), mix)
        mix = mix / mix.sum(1, keepdim=True)
        mean, deviation = statistics(self.features(style.flatten(0, 1))[self.layer])
        # mixing the statistics is mixing the normalised features, as in the paper's figure 8
        count, mixing = mix.shape[1], mix.view(*mix.shape, 1, 1, 1)
        mean = (mean.unflatten(0, (-1, count)) * mixing).sum(1)
        deviation = (deviation.unflatten(0, (-1, count)) * mixing).sum(1)
        target = self.target(self.features(image)[self.layer], mean, deviation, alpha, shared)
        return self.timed(self.finish(self.decode(target, image), content, None), start)

    def target(
        self,
        maps: torch.Tensor,
        mean: torch.Tensor,
        deviation: torch.Tensor,
        alpha: torch.Tensor | None = None,
        shared: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The content's maps with the style's mean and deviation per channel; with `alpha` the maps have the rest."""
        own = statistics(maps, shared)
        out = (maps.float() - own[0]) / own[1] * deviation + mean
        return out if alpha is None else torch.lerp(maps.float(), out, alpha.clamp(0, 1).view(-1, 1, 1, 1))

    def decode(self, target: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """N×C×h×w → N×H×W×3 floats in about 0..255, of the size of `like`."""
        out, size = self.decoder(target).float(), (like.shape[1], like.shape[2])
        if (out.shape[2], out.shape[3]) != size:
            out = F.interpolate(out, size=size, mode="bilinear", align_corners=False)
        return out.permute(0, 2, 3, 1)


class Optimised(Stylizer):
    """No net is learnt: the picture's own pixels are, from the content on, until their features have the content's maps and
    the style's Gram matrices (Gatys et al., arXiv 1508.06576). Each row by itself; rows know nothing of `shared`."""

    def __init__(
        self,
        features: Perceptual,
        luminance: bool,
        style_size: int,
        content: tuple[str, ...],
        style: tuple[str, ...],
        weights: tuple[float, float, float],
        optimizer: Literal["lbfgs", "adam"],
        steps: int,
    ) -> None:
        super().__init__(features, luminance)
        self.layers, self.weights, self.optimizer, self.steps = (content, style), weights, optimizer, steps
        self.register_buffer("style", torch.zeros(1, style_size, style_size, 3, dtype=torch.uint8))
        self.style: torch.Tensor

    def forward(self, image: torch.Tensor, shared: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(image.device.type, enabled=False):
            content = image.clone().float()  # out of inference mode, whose tensors take no part in a gradient
            with torch.no_grad():
                style = self.features(self.style.clone())
            result = torch.cat([self._one(row, style) for row in content.split(1)])
        return self.timed(self.finish(result, content, alpha), start)

    def _one(self, content: torch.Tensor, style: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            aim = self.features(content)
        pixels = (content / 255).requires_grad_(True)
        if self.optimizer == "lbfgs":
            made = torch.optim.LBFGS([pixels], max_iter=self.steps, history_size=20, line_search_fn="strong_wolfe")
        else:
            made = torch.optim.Adam([pixels], lr=0.02)

        def loss() -> torch.Tensor:
            made.zero_grad()
            total = perceptual_loss(self.features, pixels * 255, aim, style, self.layers, self.weights)[0].sum()
            total.backward()
            return total

        for _ in range(1 if self.optimizer == "lbfgs" else self.steps):
            made.step(loss)
        return (pixels.detach() * 255).clamp(0, 255)


def perceptual_loss(
    features: Perceptual,
    image: torch.Tensor,
    content: dict[str, torch.Tensor],
    style: dict[str, torch.Tensor],
    layers: tuple[tuple[str, ...], tuple[str, ...]],
    weights: tuple[float, float, float],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weighted sum, content loss, style loss), N each; `weights`: of content, style and roughness."""
    found = features(image)
    of_content, of_style = content_loss(found, content, layers[0]), style_loss(found, style, layers[1])
    return weights[0] * of_content + weights[1] * of_style + weights[2] * roughness(image), of_content, of_style


def luma(image: torch.Tensor) -> torch.Tensor:
    """N×H×W×3 → N×H×W×1."""
    return (image * image.new_tensor(LUMA)).sum(3, keepdim=True)


def statistics(maps: torch.Tensor, shared: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """N×C×H×W → mean and standard deviation over the pixels, N×C×1×1; row 0's where `shared` is above 0.5."""
    x = maps.float()
    mean = x.mean((2, 3), keepdim=True)
    deviation = (x.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
    if shared is not None:
        first = (shared > 0.5).view(-1, 1, 1, 1)
        mean, deviation = torch.where(first, mean[:1], mean), torch.where(first, deviation[:1], deviation)
    return mean, deviation


class SharedNorm(nn.Module):
    """Instance normalisation with a learnt scale and shift (Ulyanov et al., Instance Normalization: The Missing Ingredient
    for Fast Stylization, arXiv 1607.08022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: torch.Tensor, shared: torch.Tensor | None) -> torch.Tensor:
        mean, deviation = statistics(x, shared)
        return ((x.float() - mean) / deviation * self.weight + self.bias).to(x.dtype)


class TransformNet(nn.Module):
    """forward(N×H×W×3 in 0..255, shared: N or None) → the same shape. The net of Johnson et al., Perceptual Losses for
    Real-Time Style Transfer and Super-Resolution, arXiv 1603.08155: down by 4, five residual blocks, up again; with
    instance norm, reflected borders, and upsampling in place of strided transposes, which leave a chequerboard (Odena et
    al., Distill 2016). Otherwise than there the answer is added to the picture, and begins as nothing: in a short training
    the content need not be learnt first. H and W: multiples of 4, at least 16."""

    def __init__(self, width: int, blocks: int = 5) -> None:
        super().__init__()
        wide = 4 * width
        self.down = nn.ModuleList([Unit(3, width, 9), Unit(width, 2 * width, 3, 2), Unit(2 * width, wide, 3, 2)])
        self.blocks = nn.ModuleList([Residual(wide) for _ in range(blocks)])
        self.up = nn.ModuleList([Unit(wide, 2 * width, 3), Unit(2 * width, width, 3)])
        self.last = conv(width, 3, 9)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # ty: ignore[invalid-argument-type]  # there is one

    def forward(self, image: torch.Tensor, shared: torch.Tensor | None = None) -> torch.Tensor:
        x = image.permute(0, 3, 1, 2) / 127.5 - 1
        for unit in self.down:
            x = F.relu(unit(x, shared))
        for block in self.blocks:
            x = block(x, shared)
        for unit in self.up:
            x = F.relu(unit(F.interpolate(x, scale_factor=2.0, mode="nearest"), shared))
        return image + 32 * self.last(x).permute(0, 2, 3, 1)


class Unit(nn.Module):
    """Convolution and norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = conv(inputs, outputs, kernel, stride), SharedNorm(outputs)

    def forward(self, x: torch.Tensor, shared: torch.Tensor | None) -> torch.Tensor:
        return self.norm(self.conv(x), shared)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = Unit(channels, channels, 3), Unit(channels, channels, 3)

    def forward(self, x: torch.Tensor, shared: torch.Tensor | None) -> torch.Tensor:
        return x + self.second(F.relu(self.first(x, shared)), shared)


class Decoder(nn.Module):
    """forward(N×channels×h×w) → N×3×(h·stride)×(w·stride) in about 0..255: the encoder mirrored, without norms, which would
    give every picture one style."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(stride.bit_length() - 1):
            half = max(channels // 2, 16)
            layers += [
                conv(channels, half, 3),
                nn.ReLU(),
                nn.Upsample(scale_factor=2.0),
                conv(half, half, 3),
                nn.ReLU(),
            ]
            channels = half
        self.layers = nn.Sequential(*layers, conv(channels, channels, 3), nn.ReLU(), conv(channels, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 127.5 + 64 * self.layers(x)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, padding_mode="reflect")
