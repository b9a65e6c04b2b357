"""AirBench: a seven-convolution net that learns 32×32 images in minutes.

Keller Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024, arXiv:2404.00498),
which descends from David Page's ResNet-9. Kept: the frozen 2×2 stem, pooling before normalisation,
identity ("dirac") initialised convolutions, normalisation without a scale, GELU, scaled logits. Otherwise: the stem's directions do
not come from the training set, and a normalisation follows it. Left out, because a recipe has no
need of them: alternating flips. The paper's 64-fold learning rate of biases is the recipe's to set
(`train.optimizer.groups`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

STEM_WIDTH = 24  # 2 signs × the 12 directions of an RGB 2×2 patch


class AirBench(nn.Module):
    """Classify small images: normalised float (N, 3, H, W) → logits (N, num_classes).

    H and W are 9 pixels or more; the paper's are 32. Each of the three `widths` is a block of two
    3×3 convolutions at half the previous resolution; `scale` multiplies the logits, which keeps
    the first steps small at a high learning rate.

    Raises ValueError when `widths` are not three, or when one is less than its block's input:
    the identity initialisation carries every input channel through.
    """

    def __init__(self, num_classes: int, widths: Sequence[int] = (64, 256, 256), scale: float = 1 / 9) -> None:
        super().__init__()
        inputs = (STEM_WIDTH, *widths[:-1])
        if len(widths) != 3 or any(out < in_ for in_, out in zip(inputs, widths, strict=True)):
            raise ValueError(
                f"widths {tuple(widths)}: expected three, none below the one before, the first at least {STEM_WIDTH}"
            )
        self.stem = nn.Sequential(nn.Conv2d(3, STEM_WIDTH, 2, bias=False), norm(STEM_WIDTH), nn.GELU())
        self.stem[0].weight = nn.Parameter(patch_directions(), requires_grad=False)
        self.blocks = nn.Sequential(*(block(i, o) for i, o in zip(inputs, widths, strict=True)))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(self.stem(images))
        return self.head(features.amax((2, 3))) * self.scale


def patch_directions() -> Tensor:
    """24×3×2×2: twelve orthonormal directions of an RGB 2×2 patch, then their opposites.

    The cosine basis of the four pixels times grey, red-blue and green-magenta: about the principal components of
    photographs, so that the normalisation after them whitens the patches, as the paper's stem does from data.
    """
    grey_opponent = torch.tensor([[1.0, 1, 1], [1, 0, -1], [0.5, -1, 0.5]])
    cosine = torch.tensor([[[1.0, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]]) / 2
    colours = grey_opponent / grey_opponent.norm(dim=1, keepdim=True)
    directions = torch.einsum("kc,sxy->skcxy", colours, cosine).reshape(STEM_WIDTH // 2, 3, 2, 2)
    return torch.cat([directions, -directions])


def block(inputs: int, width: int) -> nn.Sequential:
    """(N, inputs, H, W) → (N, width, H // 2, W // 2); pooling first makes the rest four times cheaper."""
    return nn.Sequential(
        identity_conv(inputs, width), nn.MaxPool2d(2), norm(width), nn.GELU(),
        identity_conv(width, width), norm(width), nn.GELU(),
    )  # fmt: skip


def norm(width: int) -> nn.BatchNorm2d:
    """Batch normalisation with a shift and no scale: the scale stays 1. At this net's high learning rates a learned one
    costs six points of a short run's accuracy."""
    layer = nn.BatchNorm2d(width)
    layer.weight.requires_grad_(False)
    return layer


def identity_conv(inputs: int, width: int) -> nn.Conv2d:
    """A 3×3 convolution whose first `inputs` outputs start as copies of its inputs."""
    conv = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:inputs])
    return conv
