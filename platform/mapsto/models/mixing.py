"""Mixup and CutMix: pairs of a batch's images become one, on the training device, and their labels shares of both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Mixing:
    """Mixes each valid row of a batch with its neighbour: the first with the second, the third with the fourth, and of an
    odd number the last three in turn.

    `mixup`: α of mixup, which blends the images by λ (Zhang et al., mixup: Beyond Empirical Risk Minimization,
    arXiv 1710.09412). `cutmix`: α of CutMix, which pastes a rectangle of the other image, whose share of the pixels is
    1 - λ (Yun et al., arXiv 1905.04899). λ is drawn from Beta(α, α); 0 leaves the kind out, and with both either is taken
    with probability one half. An optimizer step has one λ and one rectangle, and no microbatch ends within a pair
    (`Stream.pairs`): so its pictures are the same for any number of workers and of microbatches. The order of rows is
    shuffled anew in each epoch.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def __call__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        valid: torch.Tensor,
        classes: int,
        seed: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """N×H×W×3 images (uint8 or float, any range), N int labels, N bool → mixed images (float32, or as they were after
        CutMix) and N×classes float32 targets, whose rows sum to 1.

        All is drawn by `seed`, and does not depend on the padding rows, which stay as they are.
        """
        rng = np.random.default_rng(seed)
        blend = rng.random() < 0.5 if self.mixup > 0 and self.cutmix > 0 else self.mixup > 0
        alpha = self.mixup if blend else self.cutmix
        kept = float(rng.beta(alpha, alpha))
        box = rectangle(images.shape[1], images.shape[2], kept, rng)
        rows = torch.nonzero(valid.cpu()).flatten().numpy()
        partner = np.arange(len(images))
        partner[rows] = rows[neighbours(len(rows))]
        other = torch.from_numpy(partner).to(images.device)
        if blend:
            mixed = torch.lerp(images[other].float(), images.float(), kept)
        else:
            top, left, bottom, right = box
            kept = 1 - (bottom - top) * (right - left) / (images.shape[1] * images.shape[2])
            mixed = images.clone()
            mixed[:, top:bottom, left:right] = images[other, top:bottom, left:right]
        # a padding row's label may be anything
        hot = torch.nn.functional.one_hot(labels.masked_fill(~valid, 0).long(), classes).float()
        return mixed, torch.lerp(hot[other], hot, kept)


def neighbours(count: int) -> np.ndarray:
    """Which of `count` rows each is mixed with: 1 0 3 2 …, and of an odd number the last three in turn; a single one with
    itself."""
    found = np.arange(count) ^ 1
    if count % 2:
        found[-3:] = np.roll(np.arange(count)[-3:], 1)
    return found


def rectangle(height: int, width: int, kept: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of CutMix: of the image's ratio, of a share 1 - `kept` of its area before it is cut at
    the rim, about a centre drawn evenly."""
    side = math.sqrt(1 - kept)
    high, wide = int(height * side), int(width * side)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, left = max(y - high // 2, 0), max(x - wide // 2, 0)
    return top, left, min(y - high // 2 + high, height), min(x - wide // 2 + wide, width)
