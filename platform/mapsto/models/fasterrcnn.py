"""Faster R-CNN (Ren et al., arXiv 1506.01497) with a feature pyramid (Lin et al., arXiv 1612.03144): torchvision's
regions and heads over a timm backbone. Images arrive prepared: torchvision's own resizing is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from .anchors import RATIOS
from .pyramid import Maps, Pyramid
from .yolo_loss import Targets

LEVELS = 5
POOL = 7

Features = dict[str, torch.Tensor]
Sizes = list[tuple[int, int]]


class FasterRcnn(nn.Module):
    """forward(N×3×S×S float) → `boxes` (N×K×4 xyxy, pixels of the input), `scores` (N×K), `labels` (N×K int64, from 0):
    the K best answers, where an image has fewer filled up with score 0. S is a multiple of 32."""

    def __init__(
        self,
        classes: int,
        maps: Maps,
        *,
        channels: int,
        anchor: float,
        proposals: int,
        hidden: int,
        least: float,
        nms_iou: float,
        most: int,
    ) -> None:
        """`maps`: at strides 4, 8, 16, 32. `anchor`: side of the square anchor at stride 4, pixels. `proposals`: regions
        of an image, after suppression. `hidden`: width of the two layers that judge a region. `least`: lowest score of
        an answer."""
        super().__init__()
        sides = tuple((int(anchor * 2**level),) for level in range(LEVELS))
        pyramid = Pyramid(maps, channels, LastLevelMaxPool())
        self.net = FasterRCNN(
            pyramid,
            rpn_anchor_generator=AnchorGenerator(sides, (RATIOS,) * LEVELS),
            rpn_pre_nms_top_n_train=2 * proposals,
            rpn_pre_nms_top_n_test=2 * proposals,
            rpn_post_nms_top_n_train=proposals,
            rpn_post_nms_top_n_test=proposals,
            box_head=TwoMLPHead(channels * POOL**2, hidden),
            box_predictor=FastRCNNPredictor(hidden, classes + 1),
            box_score_thresh=least,
            box_nms_thresh=nms_iou,
            box_detections_per_img=most,
        )
        self.most = most

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features, regions, sizes, _ = self._regions(x, None)
        return self._answer(features, self._found(features, regions, sizes), sizes)

    def losses(
        self, x: torch.Tensor, targets: Sequence[Targets]
    ) -> tuple[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]]:
        """(sum over the images, their number, logs): torchvision's losses are means over anchors and regions sampled
        from each image, about equally many."""
        shifted = [{**target, "labels": target["labels"] + 1} for target in targets]
        features, regions, sizes, found = self._regions(x, shifted)
        images = torch.tensor(float(len(targets)), device=x.device)
        each = {
            "region_loss": found["loss_objectness"] + found["loss_rpn_box_reg"],
            **self._region_losses(features, regions, sizes, shifted),
        }
        logs = {name: value * images for name, value in each.items()}
        return sum(logs.values(), torch.zeros_like(images)), images, {k: v.detach() for k, v in logs.items()}

    def _regions(self, x: torch.Tensor, targets: Any) -> tuple[Features, list[torch.Tensor], Sizes, dict[str, Any]]:
        """(feature maps, each image's regions, each image's size, and with targets the losses of the regions). The heads
        take their mode from whether there are targets, not from the backbone's."""
        net, sizes = self.net, [(x.shape[-2], x.shape[-1])] * len(x)
        net.rpn.training = net.roi_heads.training = targets is not None
        features = {name: value.float() for name, value in net.backbone(x).items()}
        with _exact(x):
            regions, losses = net.rpn(ImageList(x, sizes), features, targets)
        return features, regions, sizes, losses

    def _found(self, features: Features, regions: list[torch.Tensor], sizes: Sizes) -> list[dict[str, torch.Tensor]]:
        with _exact(regions[0]):
            return self.net.roi_heads(features, regions, sizes)[0]

    def _answer(
        self, features: Features, found: list[dict[str, torch.Tensor]], sizes: Sizes
    ) -> dict[str, torch.Tensor]:
        parts = {
            "boxes": [each["boxes"] for each in found],
            "scores": [each["scores"] for each in found],
            "labels": [each["labels"] - 1 for each in found],
        }
        return {name: torch.stack([filled(value, self.most) for value in values]) for name, values in parts.items()}

    def _region_losses(
        self, features: Features, regions: list[torch.Tensor], sizes: Sizes, targets: Any
    ) -> dict[str, torch.Tensor]:
        with _exact(regions[0]):
            heads: Any = self.net.roi_heads
            sampled = heads.select_training_samples(regions, targets)
            return self._sampled(features, sampled, sizes, targets)

    def _sampled(self, features: Features, sampled: Any, sizes: Sizes, targets: Any) -> dict[str, torch.Tensor]:
        """The losses of regions sampled by torchvision: boxes, numbers of their objects, labels, deltas, by image."""
        heads: Any = self.net.roi_heads
        boxes, _, labels, deltas = sampled
        logits, moved = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, boxes, sizes)))
        score, box = fastrcnn_loss(logits, moved, labels, deltas)
        return {"score_loss": score, "box_loss": box}


def _exact(tensor: torch.Tensor) -> torch.autocast:
    """Boxes need more than bfloat16's eight bits."""
    return torch.autocast(tensor.device.type, enabled=False)


def filled(values: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` of them, filled up with zeros."""
    values = values[:count]
    return torch.cat([values, values.new_zeros(count - len(values), *values.shape[1:])])
