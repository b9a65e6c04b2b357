"""CRF-RNN: a fully connected CRF's mean-field iterations as a layer, trained end to end (Zheng et al., Conditional Random
Fields as Recurrent Neural Networks, arXiv 1502.03240), with the messages of a Convolutional CRF (Teichmann & Cipolla,
Convolutional CRFs for Semantic Segmentation, arXiv 1805.04777).

Zheng et al. filter with the permutohedral lattice, an approximation over the whole image that needs code of its own for
every device. A Convolutional CRF lets only pixels within a window speak to each other, and within it is exact: plain
tensor operations, the same on CPU, GPU and in ONNX.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class CRF(nn.Module):
    """forward(logits N×C×H×W, image N×H×W×3, 0..255) → N×C×H×W logits after mean field; float32 throughout.

    An iteration, from Q = softmax(logits): each kernel's message to pixel i is the mean of Q over the others in the
    window, weighed by the kernel; a sum of the messages, weighed per class and kernel (learnt); a product with the
    compatibility matrix (learnt, from Potts'); subtracted from the logits. Kernels, of positions p in pixels and colours I
    in 0..255: appearance exp(-|Δp|²/2 alpha² - |ΔI|²/2 beta²), smoothness exp(-|Δp|²/2 gamma²).

    `window`: side of the square around a pixel, odd, in pixels. What lies outside the image says nothing.
    """

    def __init__(
        self,
        classes: int,
        *,
        iterations: int = 5,
        window: int = 7,
        alpha: float = 80.0,
        beta: float = 13.0,
        gamma: float = 3.0,
        weights: tuple[float, float] = (2.0, 1.0),
    ) -> None:
        super().__init__()
        self.iterations, self.radius, self.alpha, self.beta, self.gamma = iterations, window // 2, alpha, beta, gamma
        self.appearance = nn.Parameter(torch.full((classes,), weights[0]))
        self.smoothness = nn.Parameter(torch.full((classes,), weights[1]))
        self.compatibility = nn.Parameter(1 - torch.eye(classes))

    def forward(self, logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        kind = logits.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            unary = logits.float()
            near, alike = self._kernels(image.permute(0, 3, 1, 2).float())
            out = unary
            for _ in range(self.iterations):
                out = unary - self._energy(out.softmax(1), near, alike)
            return out

    def _energy(self, q: torch.Tensor, near: torch.Tensor, alike: torch.Tensor) -> torch.Tensor:
        """What the others say against each class: N×C×H×W."""
        say = _exported if torch.compiler.is_exporting() else _Message.apply
        smooth, appear = say(q, near, self.radius), say(q, alike, self.radius)
        weighed = self.smoothness[:, None, None] * smooth + self.appearance[:, None, None] * appear
        return torch.matmul(self.compatibility, weighed.flatten(2)).reshape(q.shape)

    def _kernels(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Smoothness (1×K×H×W) and appearance (N×K×H×W) of the K = window² pixels around; both sum to 1 over
        K, with 0 for the pixel itself and for what lies outside."""
        r = self.radius
        there = torch.cat(list(_shifts(torch.ones_like(image[:1, :1]), r)), 1)
        there[:, there.shape[1] // 2] = 0
        far = torch.tensor([dy * dy + dx * dx for dy, dx in _offsets(r)], dtype=image.dtype, device=image.device)
        far = far[None, :, None, None].masked_fill(there == 0, float("inf"))
        colour = torch.stack([((image - other) ** 2).sum(1) for other in _shifts(image, r)], 1)
        near = torch.softmax(-far / (2 * self.gamma**2), 1)
        return near, torch.softmax(-far / (2 * self.alpha**2) - colour / (2 * self.beta**2), 1)


class WithCRF(nn.Module):
    """forward(image: N×H×W×3 uint8) → the CRF's logits over the net's, which takes the same image."""

    def __init__(self, net: nn.Module, crf: CRF) -> None:
        super().__init__()
        self.net, self.crf = net, crf

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.crf(self.net(image), image)


class _Message(torch.autograd.Function):
    """The messages with a gradient of their own, for Q only: autograd's makes a padded copy for every offset."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, kernel: torch.Tensor, radius: int) -> torch.Tensor:
        ctx.save_for_backward(kernel)
        ctx.radius = radius
        return _message(q, kernel, radius)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,), (kernel,), r = grads, ctx.saved_tensors, ctx.radius
        height, width = grad.shape[2:]
        padded = grad.new_zeros(*grad.shape[:2], height + 2 * r, width + 2 * r)
        for k, (dy, dx) in enumerate(_offsets(r)):
            padded[:, :, r + dy : r + dy + height, r + dx : r + dx + width].addcmul_(kernel[:, k : k + 1], grad)
        return padded[:, :, r : r + height, r : r + width], None, None


def _message(q: torch.Tensor, kernel: torch.Tensor, radius: int) -> torch.Tensor:
    """Each pixel's sum over its window, weighed by its kernel (N×K×H×W): N×C×H×W."""
    out = torch.zeros_like(q)
    for k, shifted in enumerate(_shifts(q, radius)):
        out.addcmul_(kernel[:, k : k + 1], shifted)
    return out


def _exported(q: torch.Tensor, kernel: torch.Tensor, radius: int) -> torch.Tensor:
    """The same in few operations, for an exporter that writes each of them down: a row of the window at a time, whose
    shifts are a convolution with one-hot kernels."""
    side, (height, width) = 2 * radius + 1, q.shape[2:]
    pick = torch.eye(side, dtype=q.dtype, device=q.device)[:, None, None]
    padded = F.pad(q.flatten(0, 1)[:, None], (radius, radius, radius, radius))
    out = torch.zeros_like(q)
    for dy in range(side):
        row = F.conv2d(padded[:, :, dy : dy + height], pick).reshape(*q.shape[:2], side, height, width)
        out = out + (row * kernel[:, None, dy * side : (dy + 1) * side]).sum(2)
    return out


def _offsets(radius: int) -> Iterator[tuple[int, int]]:
    """(dy, dx) over the window, row by row."""
    reach = range(-radius, radius + 1)
    return ((dy, dx) for dy in reach for dx in reach)


def _shifts(x: torch.Tensor, radius: int) -> Iterator[torch.Tensor]:
    """x at each offset in turn, 0 outside: views of one padded copy."""
    r, (height, width) = radius, x.shape[2:]
    padded = F.pad(x, (r, r, r, r))
    return (padded[:, :, r + dy : r + dy + height, r + dx : r + dx + width] for dy, dx in _offsets(radius))
