"""Mask R-CNN (He et al., arXiv 1703.06870): Faster R-CNN, and a mask of each box, by torchvision's mask head."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, roi_align

from .fasterrcnn import FasterRcnn, Features, Sizes, filled
from .pyramid import Maps

POOL = 14
SIDE = 2 * POOL
"""Of an answered mask, cells."""
CONVOLUTIONS = 4


class MaskRcnn(FasterRcnn):
    """forward(N×3×S×S float) → what FasterRcnn answers, and `masks` (N×K×28×28): of each box the probability that a cell
    is its object's. Its targets also have `mask_places` (M×4: left, top, width, height in pixels of the input) and
    `masks`, the pixels within them, one object after the other; an object without pixels trains its box alone."""

    def __init__(self, classes: int, maps: Maps, *, channels: int, **options: Any) -> None:
        super().__init__(classes, maps, channels=channels, **options)
        self.pool = MultiScaleRoIAlign(["0", "1", "2", "3"], POOL, 2)
        widths = [channels] * CONVOLUTIONS
        self.mask = nn.Sequential(MaskRCNNHeads(channels, widths, 1), MaskRCNNPredictor(channels, channels, classes))

    def _answer(
        self, features: Features, found: list[dict[str, torch.Tensor]], sizes: Sizes
    ) -> dict[str, torch.Tensor]:
        answer = super()._answer(features, found, sizes)
        boxes = [each["boxes"][: self.most] for each in found]
        labels = torch.cat([each["labels"][: self.most] - 1 for each in found])
        logits = self._logits(features, boxes, labels, sizes)
        masks = logits.sigmoid().split([len(each) for each in boxes])
        return answer | {"masks": torch.stack([filled(value, self.most) for value in masks])}

    def _sampled(self, features: Features, sampled: Any, sizes: Sizes, targets: Any) -> dict[str, torch.Tensor]:
        regions, objects, labels, _ = sampled
        kept: list[torch.Tensor] = []
        wanted: list[torch.Tensor] = []
        for k, target in enumerate(targets):
            which = (labels[k] > 0).nonzero()[:, 0]
            have = target["mask_places"][:, 2:].prod(1) > 0
            which = which[have[objects[k][which]]] if len(have) else which[:0]
            kept.append(which)
            wanted.append(crops(target, regions[k][which], objects[k][which], sizes[k]))
        boxes = [region[which] for region, which in zip(regions, kept, strict=True)]
        ids = torch.cat([label[which] - 1 for label, which in zip(labels, kept, strict=True)])
        losses = super()._sampled(features, sampled, sizes, targets)
        if not len(ids):  # every parameter takes part all the same: DistributedDataParallel waits for it
            corner = [boxes[0].new_tensor([[0.0, 0.0, 8.0, 8.0]]), *[box[:0] for box in boxes[1:]]]
            return losses | {"mask_loss": self._logits(features, corner, ids.new_zeros(1), sizes).sum() * 0}
        logits = self._logits(features, boxes, ids, sizes)
        return losses | {"mask_loss": F.binary_cross_entropy_with_logits(logits, torch.cat(wanted))}

    def _logits(
        self, features: Features, boxes: list[torch.Tensor], labels: torch.Tensor, sizes: Sizes
    ) -> torch.Tensor:
        """K×28×28: of each box the mask of its own class."""
        if not len(labels):
            return labels.new_zeros((0, SIDE, SIDE), dtype=torch.float32)
        with torch.autocast(labels.device.type, enabled=False):
            masks = self.mask(self.pool(features, boxes, sizes))
        return masks[torch.arange(len(labels), device=labels.device), labels]


def crops(
    target: dict[str, torch.Tensor], regions: torch.Tensor, objects: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """What each region (K×4, within the image of `size`: height, width) shows of its object's mask, K×28×28 in 0..1: torchvision's `project_masks_on_boxes`, but one
    object's pixels at a time, not one image's plane for every object."""
    places = target["mask_places"]
    ends = (places[:, 2] * places[:, 3]).cumsum(0)
    out = regions.new_zeros(len(regions), SIDE, SIDE)
    for k in objects.unique().tolist():
        left, top, width, height = places[k].tolist()
        pixels = target["masks"][ends[k] - width * height : ends[k]].reshape(1, 1, height, width)
        # Beside the mask is nothing, not more of its rim; but beside the image is its rim, as on a plane of its size.
        padded = F.pad(pixels.to(regions.dtype), (1, 1, 1, 1))
        if left + width == size[1]:
            padded[..., -1] = padded[..., -2]
        if top + height == size[0]:
            padded[..., -1, :] = padded[..., -2, :]
        mine = (objects == k).nonzero()[:, 0]
        corner = regions.new_tensor([left - 1, top - 1, left - 1, top - 1])
        out[mine] = roi_align(padded, [regions[mine] - corner], SIDE, 1.0)[:, 0]
    return out
