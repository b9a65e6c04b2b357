"""What a segmentation is trained on: cross-entropy, focal loss and soft Dice, and sums of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def segmentation_loss(
    logits: torch.Tensor,
    mask: torch.Tensor,
    counted: torch.Tensor,
    *,
    cross_entropy: float = 1.0,
    focal: float = 0.0,
    dice: float = 0.0,
    gamma: float = 2.0,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum over the counted pixels, their weights N×H×W float) of N×C×H×W float logits and N×H×W int64 class ids.

    `cross_entropy`, `focal`, `dice`: how much of each. `weights`: C, of each pixel by its true class, 1 where None; the
    sum over the pixels' weights is the weighted mean that `torch.nn.functional.cross_entropy` gives. Focal loss is
    -(1 - p)^gamma log p of the softmax (Lin et al., Focal Loss for Dense Object Detection, arXiv 1708.02002). Dice is a
    row's `soft_dice`, which counts as the row's pixels do.
    """
    safe = mask.masked_fill(~counted, 0)
    weight = counted.float() if weights is None else weights[safe] * counted
    total = logits.new_zeros(())
    if cross_entropy or focal:
        each = F.cross_entropy(logits, safe, reduction="none")
        total = total + cross_entropy * (each * weight).sum()
        if focal:
            total = total + focal * (each * (1 - torch.exp(-each)).clamp(min=0) ** gamma * weight).sum()
    if dice:
        total = total + dice * (soft_dice(logits, safe, counted) * weight.sum((1, 2))).sum()
    return total, weight


def soft_dice(logits: torch.Tensor, mask: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """N: 1 - the mean, over the classes that occur in the row, of 2 Σ p t / (Σ p + Σ t) over its counted pixels
    (Milletari et al., V-Net, arXiv 1606.04797, with plain sums below); 0 for a row without any."""
    seen = counted[:, None].float()
    truth = F.one_hot(mask, logits.shape[1]).movedim(3, 1) * seen
    probability = logits.softmax(1) * seen
    area = truth.sum((2, 3))
    score = 2 * (probability * truth).sum((2, 3)) / (probability.sum((2, 3)) + area).clamp(min=1e-6)
    there = (area > 0).float()
    return ((1 - score) * there).sum(1) / there.sum(1).clamp(min=1)
