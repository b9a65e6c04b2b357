"""The end of a discriminator: a linear score, and for a class its inner product with the features (Miyato and Koyama, cGANs
with Projection Discriminator, arXiv 1802.05637)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


class Head(nn.Module):
    """forward(N×features, label: N int64 where there are classes) → N logits."""

    def __init__(self, features: int, classes: int, spectral: bool) -> None:
        super().__init__()
        norm = maybe_spectral(spectral)
        self.score = norm(nn.Linear(features, 1))
        self.classes = norm(nn.Embedding(classes, features)) if classes else None

    def forward(self, x: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        score = self.score(x).squeeze(1)
        return score if self.classes is None else score + (self.classes(label) * x).sum(1)


def maybe_spectral(spectral: bool) -> Callable[[nn.Module], nn.Module]:
    """Spectral norm of a layer (Miyato et al., arXiv 1802.05957), or the layer as it is."""
    return spectral_norm if spectral else lambda layer: layer
