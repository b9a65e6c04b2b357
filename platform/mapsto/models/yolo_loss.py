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
"""An object's best cell is taught at least this score, however badly its box lies yet."""
NEGATIVE, GAMMA = 0.75, 2.0
"""Varifocal loss: weight and focus of the cells that answer for nothing."""
BOX_WEIGHT = 2.5
CHUNK = 256
"""Objects that are compared with all cells at once: bounds the memory of an image with thousands of objects."""


def detection_loss(
    deltas: torch.Tensor, logits: torch.Tensor, cells: torch.Tensor, targets: Sequence[Targets]
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """(sum, count, logs) over a batch: N×A×4 deltas, N×A×C logits, A×4 cells. The count is the answering cells' weights
    in sum, at least 1 for each image: images without objects teach, too."""
    boxes = distances_to_boxes(deltas, cells)
    quality = torch.zeros_like(logits)
    parts: list[torch.Tensor] = []
    count = logits.new_zeros(())
    for n, target in enumerate(targets):
        if not len(target["boxes"]):
            count = count + 1
            continue
        owner, weight, score = assign(logits[n].detach().sigmoid(), boxes[n].detach(), cells, target)
        cell = (owner >= 0).nonzero()[:, 0]
        quality[n, cell, target["labels"][owner[cell]]] = score[cell]
        apart = generalized_box_iou_loss(boxes[n, cell], target["boxes"][owner[cell]], reduction="none")
        parts.append((apart * weight[cell]).sum())
        count = count + weight.sum().clamp(min=1.0)
    score, box = varifocal(logits, quality), sum(parts, deltas.sum() * 0)
    return score + BOX_WEIGHT * box, count, {"score_loss": score.detach(), "box_loss": box.detach()}


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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which object each of A cells answers for (-1: none), how much its box weighs, and the score that it should give.

    An object's candidates are the cells whose centres it holds, or the nearest cell where it holds none; of these the
    13 best aligned answer. A cell that several objects want goes to the one that its box overlaps most; an object left
    with none takes its best from one that has others. The weight is the alignment as a share of the object's best: so
    an object whose boxes lie badly yet, as small ones' do, is learned as fast as any. The score is that times the best
    IoU, as in the paper (which has it for the weight, too).
    """
    centres, sides = (cells[:, :2] + cells[:, 2:]) / 2, cells[:, 2] - cells[:, 0]
    objects = len(target["boxes"])
    owner = torch.full((len(cells),), -1, device=cells.device)
    overlap, alignment = scores.new_full((len(cells),), -1.0), scores.new_zeros(len(cells))
    first_choice, choice_overlap, choice_alignment = owner.new_zeros(objects), *scores.new_zeros(2, objects)
    for first in range(0, objects, CHUNK):
        part = slice(first, first + CHUNK)
        truth, labels = target["boxes"][part], target["labels"][part]
        candidate = _inside(centres, sides, truth)
        shared = box_iou(truth, boxes)
        aligned = scores[:, labels].T ** ALPHA * shared**BETA
        best = aligned.masked_fill(~candidate, -1.0).topk(min(TOP, len(cells)), dim=1).indices
        first_choice[part] = best[:, 0]
        choice_overlap[part], choice_alignment[part] = (v.gather(1, best[:, :1])[:, 0] for v in (shared, aligned))
        chosen = torch.zeros_like(candidate).scatter_(1, best, True) & candidate
        value, row = shared.masked_fill(~chosen, -1.0).max(dim=0)
        better = value > overlap
        overlap = torch.where(better, value, overlap)
        owner = torch.where(better, row + first, owner)
        alignment = torch.where(better, aligned.gather(0, row[None])[0], alignment)
    held = torch.bincount(owner[owner >= 0], minlength=objects)
    spare = held[owner[first_choice].clamp(min=0)] > 1
    lost = ((held == 0) & spare).nonzero()[:, 0]
    taken = first_choice[lost]
    owner[taken], overlap[taken], alignment[taken] = lost, choice_overlap[lost], choice_alignment[lost]
    return owner, *_scaled(owner, overlap, alignment, objects)


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


def _scaled(
    owner: torch.Tensor, overlap: torch.Tensor, alignment: torch.Tensor, objects: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weights and A scores, 0 to 1; 0 for the cells that answer for nothing."""
    answering, index = owner >= 0, owner.clamp(min=0)
    zeros = alignment.new_zeros(objects)
    most = zeros.scatter_reduce(0, owner[answering], alignment[answering], "amax")
    best = zeros.scatter_reduce(0, owner[answering], overlap[answering], "amax").clamp(min=LEAST)
    tiny = torch.finfo(alignment.dtype).tiny
    weight = torch.where(answering, (alignment + tiny) / (most[index] + tiny), 0.0)
    return weight, weight * best[index]
