"""Fixed networks whose features generated images are measured in."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

WIDTHS = (32, 64, 64)
SIDE = 299
"""Of Inception v3's input, pixels."""


class RandomConv(nn.Module):
    """forward(N×H×W×3 uint8) → N×352 float: means of three layers' responses to random filters, which are the same on every
    machine and need no download. Sensitive to colour, edges, texture and, in the last layer's 2×2 cells, layout; it knows
    no objects (Naeem et al., Reliable Fidelity and Diversity Metrics, arXiv 2002.09797, measure with random nets alike).
    """

    def __init__(self) -> None:
        super().__init__()
        frozen = np.random.RandomState(0)  # the legacy generator's stream never changes
        for number, (low, high) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False)):
            filters = frozen.standard_normal((high, low, 3, 3)) * np.sqrt(2 / (9 * low))
            self.register_buffer(f"filters{number}", torch.from_numpy(filters).float())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image.permute(0, 3, 1, 2).float() / 127.5 - 1
        found = []
        for number in range(len(WIDTHS)):
            if number:
                x = F.avg_pool2d(x, 2)
            x = F.relu(F.conv2d(x, self.get_buffer(f"filters{number}"), padding=1))
            found.append(F.adaptive_avg_pool2d(x, 2 if number == len(WIDTHS) - 1 else 1).flatten(1))
        return torch.cat(found, 1)


class Inception(nn.Module):
    """forward(N×H×W×3 uint8) → N×2048 float: the pooled features of Inception v3 as FID has them.

    `weights`: a state dict by torchvision's names, of FID's TensorFlow network (pt_inception-2015-12-05, 1008 classes) or
    torchvision's own (1000 classes: near FID, not it). FID's network averages without the padding, and its last block takes
    the maximum. Images are resized to 299 pixels as TensorFlow 1 did, and mapped to (x - 128) / 128, as in FID's own graph and
    torch-fidelity. Raises ValueError for other weights.
    """

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        from torchvision.models import inception_v3

        kept = {name: value for name, value in weights.items() if not name.startswith("AuxLogits.")}
        if "fc.weight" not in kept:
            raise ValueError("no weights of an Inception v3 by torchvision's names: fc.weight is missing")
        net: Any = inception_v3(
            weights=None,
            aux_logits=False,
            init_weights=False,
            transform_input=False,
            num_classes=len(kept["fc.weight"]),
        )
        try:
            net.load_state_dict(kept)
        except RuntimeError as error:
            raise ValueError(f"no weights of an Inception v3: {str(error).splitlines()[-1].strip()}") from error
        net.fc = nn.Identity()
        average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
        maximum = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
        for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b", "7c"):
            block = getattr(net, f"Mixed_{name}")
            block.forward = partial(_with_pool, block, maximum if name == "7c" else average)
        self.net = net

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = resize_as_tensorflow_1(image.permute(0, 3, 1, 2).float(), SIDE)
        return self.net((x - 128) / 128)


def resize_as_tensorflow_1(x: torch.Tensor, side: int) -> torch.Tensor:
    """N×C×H×W float → N×C×side×side, bilinearly as tf.image.resize_bilinear(align_corners=False) of TensorFlow 1 did
    (tensorflow/core/kernels/resize_bilinear_op.cc with the legacy scaler): output pixel i takes from i · (input / output), without
    half a pixel's shift, and nothing is averaged where the image shrinks."""

    def places(length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        at = torch.arange(side, device=x.device, dtype=torch.float32) * torch.tensor(length / side, device=x.device)
        low = at.long()
        return low, (low + 1).clamp(max=length - 1), (at - low).to(x.dtype)

    top, bottom, down = places(x.shape[2])
    left, right, along = places(x.shape[3])
    upper, lower = (
        row[..., left] + (row[..., right] - row[..., left]) * along for row in (x[:, :, top], x[:, :, bottom])
    )
    return upper + (lower - upper) * down[:, None]


def _with_pool(block: Any, pool: Any, x: torch.Tensor) -> torch.Tensor:
    """A block of torchvision's with another pooling in its pooled branch, which is its last."""
    return torch.cat([*block._forward(x)[:-1], block.branch_pool(pool(x))], 1)
