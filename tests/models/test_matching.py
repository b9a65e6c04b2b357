"""Matching boxes to anchors in parts, against torchvision's matchers over the whole table of overlaps."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection._utils import Matcher, SSDMatcher
from torchvision.ops import box_iou

from mapsto.models import anchored
from mapsto.models.anchored import match

MATCHERS = [Matcher(0.5, 0.4, allow_low_quality_matches=True), Matcher(0.5, 0.4), SSDMatcher(0.5)]


def boxes_of(generator: torch.Generator, count: int, grid: bool) -> torch.Tensor:
    """With `grid` on whole cells: many overlaps are equal."""
    low, size = (torch.rand(count, 2, generator=generator) * k for k in (60, 20))
    if grid:
        low, size = (low / 10).floor() * 10, (size / 10).floor() * 10
    return torch.cat([low, low + size + (10 if grid else 1)], 1)


@pytest.mark.parametrize("matcher", MATCHERS, ids=["retinanet", "plain", "ssd"])
@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("most", [1, 50, 333, 10**6])
def test_matches_are_torchvisions(matcher, grid, most):
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        boxes, anchors = boxes_of(generator, (1, 4, 17, 40)[seed % 4], grid), boxes_of(generator, 300, grid)
        if seed == 7:
            boxes = boxes + 1000  # far from all anchors
        expected = matcher(box_iou(boxes, anchors))
        assert match(matcher, boxes, anchors, most).tolist() == expected.tolist()
    assert match(matcher, torch.empty(0, 4), anchors, most).tolist() == [-1] * 300


def test_no_more_overlaps_than_that_are_seen_at_once(monkeypatch):
    seen = []
    monkeypatch.setattr(anchored, "box_iou", lambda a, b: seen.append(len(a) * len(b)) or box_iou(a, b))
    generator = torch.Generator().manual_seed(0)
    for matcher in MATCHERS:
        match(matcher, boxes_of(generator, 50, False), boxes_of(generator, 4000, False), 10_000)
    assert max(seen) == 10_000
