"""What an anchor-free detector learns: which cells answer for which object (task alignment; Feng et al., TOOD, arXiv
2108.07755), their scores by the varifocal loss (Zhang et al., VarifocalNet, arXiv 2008.13367) and their boxes by the
generalized IoU (Rezatofighi et al., arXiv 1902.09630)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torchvision.ops import box_iou, generalized_box_iou_loss

from .anchors import REACH

Targets: TypeAlias = Mapping[str, torch.Tensor]
"""One image's `boxes` (M×4 float32 xyxy, pixels of the input) and `labels` (M int64, from 0)."""

TOP = 13
"""Cells that may answer for an object."""
ALPHA, BETA = 1.0, 6.0
"""Weights of score and IoU in the alignment, score^α · IoU^β."""
LEAST = 0.1
"""An object's best cell is taught at least this score, however badly its box lies yet: so that every object is learned."""
NEGATIVE, GAMMA = 0.75, 2.0
"""Varifocal loss: weight and focus of the cells that answer for nothing."""
BOX_WEIGHT = 2.5
CHUNK = 256
"""Objects that are compared with all cells at once: bounds the memory of an image with thousands of objects."""


def detection_loss(
    deltas: torch.Tensor, logits: torch.Tensor, cells: torch.Tensor, targets: Sequence[Targets]
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """(sum, count, logs) over a batch: N×A×4 deltas, N×A×C logits, A×4 cells. The count is, over the images, what their
    cells' scores should add up to, at least 1 for each: images without objects teach, too."""
    boxes = distances_to_boxes(deltas, cells)
    quality, owned = torch.zeros_like(logits), torch.full(logits.shape[:2], -1, device=logits.device)
    for n, target in enumerate(targets):
        if len(target["boxes"]):
            owner, score = assign(logits[n].detach().sigmoid(), boxes[n].detach(), cells, target)
            answering = (owner >= 0).nonzero()[:, 0]
            quality[n, answering, target["labels"][owner[answering]]] = score[answering]
            owned[n] = owner
    score = varifocal(logits, quality)
    image, cell = (owned >= 0).nonzero(as_tuple=True)
    truth = torch.cat([target["boxes"][owned[n][owned[n] >= 0]] for n, target in enumerate(targets)])
    apart = generalized_box_iou_loss(boxes[image, cell], truth, reduction="none")
    box = (apart * quality[image, cell].sum(-1)).sum()
    count = quality.sum((1, 2)).clamp(min=1.0).sum()
    logs = {"score_loss": score.detach(), "box_loss": box.detach()}
    return score + BOX_WEIGHT * box, count, logs


def distances_to_boxes(deltas: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """N×A×4 logarithms of distances in sides of a cell → N×A×4 xyxy; as `Grid.boxes` in numpy."""
    sides, centres = cells[:, 2:] - cells[:, :2], (cells[:, :2] + cells[:, 2:]) / 2
    away = deltas.clamp(max=REACH).exp() * sides.repeat(1, 2)
    return torch.cat([centres - away[..., :2], centres + away[..., 2:]], dim=-1)


def varifocal(logits: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """The sum over all cells and classes: cross-entropy towards `quality`, weighed by it where it is positive, and by
    0.75 · score² where it is 0."""
    each = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    weight = torch.where(quality > 0, quality, NEGATIVE * logits.sigmoid() ** GAMMA)
    return (weight * each).sum()


@torch.no_grad()
def assign(
    scores: torch.Tensor, boxes: torch.Tensor, cells: torch.Tensor, target: Targets
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which object each of A cells answers for (-1: none), and the score that it should give.

    An object's candidates are the cells whose centres it holds, or the nearest cell where it holds none; of these the
    13 best aligned answer. A cell that several objects want goes to the one that its box overlaps most. The score is
    the alignment, scaled so that an object's best cell gets its best IoU.
    """
    centres, sides = (cells[:, :2] + cells[:, 2:]) / 2, cells[:, 2] - cells[:, 0]
    owner = torch.full((len(cells),), -1, device=cells.device)
    overlap, alignment = scores.new_full((len(cells),), -1.0), scores.new_zeros(len(cells))
    for first in range(0, len(target["boxes"]), CHUNK):
        truth, labels = target["boxes"][first : first + CHUNK], target["labels"][first : first + CHUNK]
        candidate = _inside(centres, sides, truth)
        shared = box_iou(truth, boxes)
        aligned = scores[:, labels].T ** ALPHA * shared**BETA
        best = aligned.masked_fill(~candidate, -1.0).topk(min(TOP, len(cells)), dim=1).indices
        chosen = torch.zeros_like(candidate).scatter_(1, best, True) & candidate
        value, row = shared.masked_fill(~chosen, -1.0).max(dim=0)
        better = value > overlap
        overlap = torch.where(better, value, overlap)
        owner = torch.where(better, row + first, owner)
        alignment = torch.where(better, aligned.gather(0, row[None])[0], alignment)
    return owner, _scaled(owner, overlap, alignment, len(target["boxes"]))


def _inside(centres: torch.Tensor, sides: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """M×A: whether an object holds a cell's centre; for one that holds none, whether the cell is the nearest, of the
    finest ones."""
    away = torch.cat([centres[None] - truth[:, None, :2], truth[:, None, 2:] - centres[None]], dim=2)
    inside = away.amin(dim=2) > 0
    lost = ~inside.any(dim=1)
    if lost.any():
        middle = (truth[lost, :2] + truth[lost, 2:]) / 2
        far = torch.cdist(middle, centres) + (sides > sides.min()) * 1e6
        inside[lost] = F.one_hot(far.argmin(dim=1), len(centres)).bool()
    return inside


def _scaled(owner: torch.Tensor, overlap: torch.Tensor, alignment: torch.Tensor, objects: int) -> torch.Tensor:
    """A scores from 0 to 1; 0 for the cells that answer for nothing."""
    answering = owner >= 0
    index = owner.clamp(min=0)
    zeros = alignment.new_zeros(objects)
    most = zeros.scatter_reduce(0, owner[answering], alignment[answering], "amax")
    best = zeros.scatter_reduce(0, owner[answering], overlap[answering], "amax").clamp(min=LEAST)
    tiny = torch.finfo(alignment.dtype).tiny
    share = (alignment + tiny) / (most[index] + tiny)
    return torch.where(answering, share * best[index], 0.0)
