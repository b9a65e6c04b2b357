"""RetinaNet and SSD: torchvision's heads, matching and losses over a timm backbone and our table of anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torchvision.models.detection._utils import Matcher, SSDMatcher
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.ops import box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from .anchors import RATIOS, SSD_RATIOS, SSD_STRIDES, Grid, retinanet, ssd
from .pyramid import Maps, Pyramid
from .yolo_loss import Targets

PAIRS = 2**24
"""Most overlaps of boxes and anchors that are held at once; a float32 each, and a few more on the way."""
Losses = tuple[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]]


class RetinaNet(nn.Module):
    """forward(N×3×S×S float) → `deltas` (N×A×4) and `logits` (N×A×classes), raw (Lin et al., Focal Loss for Dense
    Object Detection, arXiv 1708.02002). S is a multiple of 32."""

    def __init__(self, classes: int, image_size: int, maps: Maps, channels: int, anchor: float) -> None:
        super().__init__()
        _anchors(self, retinanet(image_size, anchor))
        self.pyramid = Pyramid(maps, channels, LastLevelP6P7(channels, channels))
        # Normalised, as torchvision's second version is: a narrow head of its first one starts with no signal at all.
        self.head = RetinaNetHead(channels, 3 * len(RATIOS), classes, norm_layer=_group_norm)
        self.matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.head(list(self.pyramid(x).values()))
        return {"deltas": out["bbox_regression"], "logits": out["cls_logits"]}

    def losses(self, x: torch.Tensor, targets: Sequence[Targets]) -> Losses:
        """(sum over the images, their number, logs): each image's loss is over its own positive anchors."""
        out, anchors = _named(self(x)), [self.get_buffer("anchors")] * len(targets)
        found = self.head.compute_loss(targets, out, anchors, [_matched(self, self.matcher, t) for t in targets])
        images = torch.tensor(float(len(targets)), device=x.device)
        logs = {"score_loss": found["classification"] * images, "box_loss": found["bbox_regression"] * images}
        return sum(logs.values(), torch.zeros_like(images)), images, {k: v.detach() for k, v in logs.items()}


class Ssd(nn.Module):
    """forward(N×3×S×S float) → `deltas` (N×A×4) and `logits` (N×A×(1 + classes)), raw (Liu et al., SSD: Single Shot
    MultiBox Detector, arXiv 1512.02325): the backbone's maps at strides 8 to 32 and two more. S is a multiple of 32."""

    def __init__(self, classes: int, image_size: int, maps: Maps, channels: int, anchor: float) -> None:
        super().__init__()
        _anchors(self, ssd(image_size, anchor))
        self.maps = maps
        extra = len(SSD_STRIDES) - len(maps.channels)
        self.extra = nn.ModuleList(_shrink(maps.channels[-1] if k == 0 else channels, channels) for k in range(extra))
        widths = [*maps.channels, *[channels] * extra]
        head = SSDHead(widths, [2 + 2 * len(ratios) for ratios in SSD_RATIOS], classes + 1)
        boxes = DefaultBoxGenerator([list(ratios) for ratios in SSD_RATIOS])  # of SSD's constructor only
        self.ssd = SSD(nn.Identity(), boxes, (image_size, image_size), classes + 1, head=head)
        self.matcher = SSDMatcher(0.5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        levels = self.maps(x)
        for shrink in self.extra:
            levels = [*levels, shrink(levels[-1])]
        out = self.ssd.head(levels)
        return {"deltas": out["bbox_regression"], "logits": out["cls_logits"]}

    def losses(self, x: torch.Tensor, targets: Sequence[Targets]) -> Losses:
        """(sum over the positive anchors and three times as many hard negatives, number of the positive ones, logs). An
        image without objects has neither: SSD learns nothing from it."""
        out, anchors = _named(self(x)), [self.get_buffer("anchors")] * len(targets)
        matched = [_matched(self, self.matcher, target) for target in targets]
        shifted = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
        found = self.ssd.compute_loss(shifted, out, anchors, matched)
        positive = torch.stack([(match >= 0).sum() for match in matched]).sum().float()
        logs = {"score_loss": found["classification"] * positive, "box_loss": found["bbox_regression"] * positive}
        return sum(logs.values(), torch.zeros_like(positive)), positive, {k: v.detach() for k, v in logs.items()}


def _group_norm(width: int) -> nn.Module:
    return nn.GroupNorm(max(1, width // 8), width)


def _anchors(model: nn.Module, grid: Grid) -> None:
    model.register_buffer("anchors", torch.from_numpy(grid.anchors), persistent=False)


def _matched(model: nn.Module, matcher: Matcher, target: Targets) -> torch.Tensor:
    """Each anchor's object; -1: none, -2: too near to one to be none."""
    return match(matcher, target["boxes"], model.get_buffer("anchors"))


def match(matcher: Matcher, boxes: torch.Tensor, anchors: torch.Tensor, most: int = PAIRS) -> torch.Tensor:
    """What torchvision's Matcher (SSDMatcher) says of box_iou(boxes, anchors), M×4 and A×4: A int64, each anchor's box, -1 or -2.
    The overlaps are seen a part of the anchors at a time, at most about `most` of them at once: 5,000 boxes in an image of 640
    pixels have 400 million. No boxes: all -1."""
    if not len(boxes):
        return torch.full((len(anchors),), Matcher.BELOW_LOW_THRESHOLD, device=anchors.device)
    parts = anchors.split(max(1, most // len(boxes)))
    best = [box_iou(boxes, part).max(dim=0) for part in parts]
    overlap, found = torch.cat([each.values for each in best]), torch.cat([each.indices for each in best])
    out = found.clone()
    out[overlap < matcher.low_threshold] = Matcher.BELOW_LOW_THRESHOLD
    out[(overlap >= matcher.low_threshold) & (overlap < matcher.high_threshold)] = Matcher.BETWEEN_THRESHOLDS
    if isinstance(matcher, SSDMatcher):  # each box has its first best anchor; of boxes that share one, the last
        highest, place, start = boxes.new_full((len(boxes),), -1.0), torch.zeros_like(found[:1]).repeat(len(boxes)), 0
        for part in parts:
            value, at = box_iou(boxes, part).max(dim=1)
            place = torch.where(value > highest, at + start, place)
            highest, start = torch.maximum(value, highest), start + len(part)
        out[place] = torch.arange(len(boxes), device=out.device)
    elif matcher.allow_low_quality_matches:  # all anchors that tie for a box's best
        highest = torch.stack([box_iou(boxes, part).amax(dim=1) for part in parts]).amax(0)
        ties = torch.cat([(box_iou(boxes, part) == highest[:, None]).any(0) for part in parts])
        out[ties] = found[ties]
    return out


def _named(out: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"bbox_regression": out["deltas"].float(), "cls_logits": out["logits"].float()}


def _shrink(inputs: int, outputs: int) -> nn.Sequential:
    """Half the size; by group norm, because a coarse map may be one cell, of which a batch of one has no variance."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs // 2, 1, bias=False),
        _group_norm(outputs // 2),
        nn.ReLU(),
        nn.Conv2d(outputs // 2, outputs, 3, 2, 1, bias=False),
        _group_norm(outputs),
        nn.ReLU(),
    )
