"""Embeddings: a backbone with a head whose vectors have length 1, and the losses that teach it who is who."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class Embedder(nn.Module):
    """forward(image: N×H×W×3 uint8) → N×D float32 of length 1; `net` takes the image to N×D.

    `centres`: identities×D, a direction for each training identity, for the losses over classes; 0 identities: none.
    """

    def __init__(self, net: nn.Module, dimensions: int, identities: int = 0) -> None:
        super().__init__()
        self.net = net
        self.centres = nn.Parameter(torch.randn(identities, dimensions) * 0.01) if identities else None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.net(image).float(), dim=1)


def arcface(cosine: torch.Tensor, label: torch.Tensor, scale: float, margin: float) -> torch.Tensor:
    """N×C cosines, N int64 → N×C logits: scale · cos θ, and scale · cos(θ + margin) for the true class (Deng et al.,
    ArcFace, arXiv 1801.07698). Where θ + margin passes π it goes on falling, as cos θ - margin · sin(margin)."""
    true = cosine.gather(1, label[:, None])
    sine = (1 - true**2).clamp(min=1e-9).sqrt()
    moved = true * math.cos(margin) - sine * math.sin(margin)
    moved = torch.where(true > math.cos(math.pi - margin), moved, true - margin * math.sin(margin))
    return scale * cosine.scatter(1, label[:, None], moved)


def cosface(cosine: torch.Tensor, label: torch.Tensor, scale: float, margin: float) -> torch.Tensor:
    """N×C cosines, N int64 → N×C logits: scale · cos θ, and scale · (cos θ - margin) for the true class (Wang et al.,
    CosFace, arXiv 1801.09414)."""
    true = cosine.gather(1, label[:, None])
    return scale * cosine.scatter(1, label[:, None], true - margin)


def batch_hard(
    anchors: torch.Tensor,
    own: torch.Tensor,
    first: int,
    others: torch.Tensor,
    keys: torch.Tensor,
    valid: torch.Tensor,
    margin: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Triplet loss with the hardest of a batch (Hermans et al., In Defense of the Triplet Loss, arXiv 1703.07737).

    `anchors` N×D with identities `own` are the rows `first`.. of `others` M×D with identities `keys`, of which those that
    are `valid` count. For each anchor the farthest of its identity and the nearest of another, by Euclidean distance:
    max(0, margin + d⁺ - d⁻), or log(1 + exp(d⁺ - d⁻)) where the margin is None. Returns N losses, 0 where an anchor does
    not count or lacks either, and N bool, which ones count.
    """
    distance = (2 - 2 * anchors @ others.T).clamp(min=1e-8).sqrt()
    rows = torch.arange(len(anchors), device=anchors.device)
    same = (own[:, None] == keys[None]) & valid[None]
    different = (own[:, None] != keys[None]) & valid[None]
    same[rows, first + rows] = False
    counted = same.any(1) & different.any(1) & valid[first : first + len(anchors)]
    farthest = distance.masked_fill(~same, -math.inf).amax(1)
    nearest = distance.masked_fill(~different, math.inf).amin(1)
    gap = torch.where(counted, farthest, 0.0) - torch.where(counted, nearest, 0.0)
    each = F.softplus(gap) if margin is None else (gap + margin).clamp(min=0)
    return each * counted, counted
