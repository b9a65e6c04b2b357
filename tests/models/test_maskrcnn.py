"""Mask R-CNN: its targets are torchvision's, and its mask branch learns only from objects that have a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from mapsto.core.instances import NOTHING, packed, tight
from mapsto.models.maskrcnn import SIDE, MaskRcnn, crops
from mapsto.models.pyramid import Maps

SIZE = 64


def targets(count: int = 3, seed: int = 0, bare: bool = False) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Ellipses: the target, and their planes (M×S×S)."""
    rng, masks = np.random.default_rng(seed), []
    y, x = np.mgrid[:SIZE, :SIZE]
    for _ in range(count):
        centre, reach = rng.uniform(5, 59, 2), rng.uniform(5, 20, 2)
        masks.append(((y - centre[0]) / reach[0]) ** 2 + ((x - centre[1]) / reach[1]) ** 2 <= 1)
    patches = [tight(mask) for mask in masks]
    boxes = [[p.left, p.top, p.left + p.pixels.shape[1], p.top + p.pixels.shape[0]] for p in patches]
    pixels, places = packed([NOTHING] * count if bare else patches)
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.arange(count) % 2,
        "masks": torch.from_numpy(pixels),
        "mask_places": torch.from_numpy(places),
    }
    return target, torch.from_numpy(np.array(masks, np.uint8).reshape(-1, SIZE, SIZE))


@pytest.mark.parametrize("seed", range(3))
def test_targets_are_torchvisions(seed: int) -> None:
    target, planes = targets(4, seed)
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, (20, 2))
    regions = torch.from_numpy(np.concatenate([low, np.minimum(low + rng.uniform(1, 40, (20, 2)), SIZE)], 1)).float()
    objects = torch.from_numpy(rng.integers(0, 4, 20))
    theirs = project_masks_on_boxes(planes, regions, objects, SIDE)
    torch.testing.assert_close(crops(target, regions, objects, (SIZE, SIZE)), theirs, atol=1e-5, rtol=1e-5)


def net() -> MaskRcnn:
    torch.manual_seed(0)
    options: dict[str, Any] = {"anchor": 12, "proposals": 30, "hidden": 32, "least": 0.01, "nms_iou": 0.6, "most": 7}
    return MaskRcnn(2, Maps("resnet10t", (4, 8, 16, 32)), channels=16, **options)


def test_objects_without_masks_train_their_boxes_alone() -> None:
    model, images = net().train(), torch.randn(2, 3, SIZE, SIZE)
    with_masks, without = targets()[0], targets(bare=True)[0]
    for pair, some in (([with_masks, without], True), ([without, without], False), ([targets(0)[0]] * 2, False)):
        model.zero_grad()
        total, _, logs = model.losses(images, pair)
        total.backward()
        assert torch.isfinite(total) and (float(logs["mask_loss"]) > 0) == some
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        assert any(bool(p.grad.any()) for p in model.mask.parameters() if p.grad is not None) == some


def test_an_answer_has_a_mask_for_each_box() -> None:
    model = net().eval()
    with torch.no_grad():
        out = model(torch.randn(3, 3, SIZE, SIZE))
    assert {name: tuple(value.shape[:2]) for name, value in out.items()} == dict.fromkeys(
        ("boxes", "scores", "labels", "masks"), (3, 7)
    )
    assert out["masks"].shape[2:] == (SIDE, SIDE)
    held = out["scores"] > 0
    assert held.any() and ((out["masks"][held] > 0) & (out["masks"][held] < 1)).all() and not out["masks"][~held].any()
