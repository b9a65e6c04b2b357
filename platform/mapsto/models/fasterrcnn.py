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
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from .anchors import RATIOS
from .pyramid import Maps, Pyramid
from .yolo_loss import Targets

LEVELS = 5
POOL = 7


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
        found, _ = self._run(x, None)
        parts = [(each["boxes"], each["scores"], each["labels"] - 1) for each in found]
        boxes, scores, labels = (
            torch.stack([_filled(part[k][: self.most], self.most) for part in parts]) for k in range(3)
        )
        return {"boxes": boxes, "scores": scores, "labels": labels}

    def losses(
        self, x: torch.Tensor, targets: Sequence[Targets]
    ) -> tuple[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]]:
        """(sum over the images, their number, logs): torchvision's losses are means over anchors and regions sampled
        from each image, about equally many."""
        shifted = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
        _, found = self._run(x, shifted)
        images = torch.tensor(float(len(targets)), device=x.device)
        logs = {
            "region_loss": (found["loss_objectness"] + found["loss_rpn_box_reg"]) * images,
            "score_loss": found["loss_classifier"] * images,
            "box_loss": found["loss_box_reg"] * images,
        }
        return sum(logs.values(), torch.zeros_like(images)), images, {k: v.detach() for k, v in logs.items()}

    def _run(self, x: torch.Tensor, targets: list[dict[str, torch.Tensor]] | None) -> tuple[Any, dict[str, Any]]:
        """Answers without targets, losses with them: the heads take their mode from that, not from the backbone's."""
        net, sizes = self.net, [(x.shape[-2], x.shape[-1])] * len(x)
        net.rpn.training = net.roi_heads.training = targets is not None
        features = {name: value.float() for name, value in net.backbone(x).items()}
        with torch.autocast(x.device.type, enabled=False):  # boxes need more than bfloat16's eight bits
            regions, region_losses = net.rpn(ImageList(x, sizes), features, targets)
            found, losses = net.roi_heads(features, regions, sizes, targets)
        return found, {**region_losses, **losses}


def _filled(values: torch.Tensor, count: int) -> torch.Tensor:
    return torch.cat([values, values.new_zeros(count - len(values), *values.shape[1:])])
