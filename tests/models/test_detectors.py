"""The detectors: tables of anchors against torchvision's, the assignment and losses against the papers in plain numpy,
and each family learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, generalized_box_iou_loss

from mapsto.core.errors import UserError
from mapsto.models import anchors
from mapsto.models.pyramid import Maps
from mapsto.models.yolo_loss import LEAST, TOP, assign, detection_loss, distances_to_boxes


def generated(generator, size: int, cells: list[int]) -> np.ndarray:
    maps = [torch.zeros(1, 1, k, k) for k in cells]
    (found,) = generator(ImageList(torch.zeros(1, 3, size, size), [(size, size)]), maps)
    return found.numpy()


@pytest.mark.parametrize(("size", "anchor"), [(64, 32.0), (320, 20.0), (96, 16.0)])
def test_anchors_are_torchvisions(size, anchor):
    cells = anchors.level_cells(size, 5)
    generator = AnchorGenerator(tuple(anchors.retinanet_sides(anchor)), (anchors.RATIOS,) * 5)
    np.testing.assert_allclose(anchors.retinanet(size, anchor).anchors, generated(generator, size, cells))
    boxes = DefaultBoxGenerator([list(r) for r in anchors.SSD_RATIOS], anchor / size, 0.9)
    np.testing.assert_allclose(anchors.ssd(size, anchor).anchors, generated(boxes, size, cells), atol=1e-4)


@pytest.mark.parametrize("grid", [anchors.retinanet(64, 16.0), anchors.ssd(64, 8.0)], ids=["retinanet", "ssd"])
def test_deltas_mean_what_torchvisions_coder_means(grid):
    rng = np.random.default_rng(0)
    index = rng.integers(0, len(grid.anchors), 50)
    low = rng.uniform(0, 40, (50, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 30, (50, 2))], 1).astype(np.float32)
    coder = BoxCoder(grid.weights)
    raw = coder.encode_single(torch.from_numpy(boxes), torch.from_numpy(grid.anchors[index]))
    np.testing.assert_allclose(grid.boxes(raw.numpy(), index), boxes, atol=1e-3)
    wild = rng.normal(0, 30, (50, 4)).astype(np.float32)  # far beyond what training gives: clamped alike
    theirs = coder.decode_single(torch.from_numpy(wild), torch.from_numpy(grid.anchors[index]))
    np.testing.assert_allclose(grid.boxes(wild, index), theirs, rtol=1e-4, atol=1e-2)


def test_distances_decode_alike_in_numpy_and_torch_and_stay_finite():
    grid = anchors.yolo(64)
    assert len(grid.anchors) == 8 * 8 + 4 * 4 + 2 * 2
    raw = np.random.default_rng(1).normal(0, 4, (1, len(grid.anchors), 4)).astype(np.float32)
    raw[0, 0] = 1e9
    ours = grid.boxes(raw[0], np.arange(len(grid.anchors)))
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(
        ours, distances_to_boxes(torch.from_numpy(raw), torch.from_numpy(grid.anchors))[0], rtol=1e-5
    )


def test_scores_are_sigmoid_and_softmax():
    logits = np.random.default_rng(2).normal(0, 3, (5, 4)).astype(np.float32)
    torched = torch.from_numpy(logits)
    np.testing.assert_allclose(anchors.yolo(64).scores(logits), torched.sigmoid(), atol=1e-6)
    np.testing.assert_allclose(anchors.ssd(64, 8).scores(logits), torched.softmax(1)[:, 1:], atol=1e-6)


def by_the_paper(scores, boxes, cells, truth, labels):
    """TOOD's assignment, an object and a cell at a time; weights and scores as the docstring of `assign` says."""
    centres = (cells[:, :2] + cells[:, 2:]) / 2
    shared = box_iou(torch.from_numpy(truth), torch.from_numpy(boxes)).numpy()
    owner, wanted, first = np.full(len(cells), -1), {}, {}
    for m, (box, label) in enumerate(zip(truth, labels)):
        inside = [a for a, (x, y) in enumerate(centres) if box[0] < x < box[2] and box[1] < y < box[3]]
        if not inside:
            finest = np.flatnonzero(cells[:, 2] - cells[:, 0] == (cells[:, 2] - cells[:, 0]).min())
            far = np.linalg.norm(centres[finest] - (box[:2] + box[2:]) / 2, axis=1)
            inside = [finest[far.argmin()]]
        ranked = sorted(inside, key=lambda a: -scores[a, label] * shared[m, a] ** 6)
        first[m] = ranked[0]
        for a in ranked[:TOP]:
            wanted.setdefault(a, []).append(m)
    for a, objects in wanted.items():
        owner[a] = max(objects, key=lambda m: shared[m, a])
    held = np.bincount(owner[owner >= 0], minlength=len(truth))
    for m in np.flatnonzero(held == 0):
        if held[owner[first[m]]] > 1:
            owner[first[m]] = m
    weight, score = np.zeros(len(cells)), np.zeros(len(cells))
    for m in set(owner[owner >= 0]):
        mine = np.flatnonzero(owner == m)
        aligned = scores[mine, labels[m]] * shared[m, mine] ** 6
        weight[mine] = aligned / aligned.max()
        score[mine] = weight[mine] * max(shared[m, mine].max(), LEAST)
    return owner, weight, score


@pytest.mark.parametrize("seed", range(6))
def test_assignment_is_the_papers(seed):
    rng = np.random.default_rng(seed)
    cells = anchors.yolo(64).anchors
    scores = rng.uniform(0.01, 0.99, (len(cells), 3)).astype(np.float32)
    boxes = np.concatenate(
        [cells[:, :2] - rng.uniform(1, 20, (len(cells), 2)), cells[:, 2:] + rng.uniform(1, 20, (len(cells), 2))], 1
    )
    low = rng.uniform(0, 50, (6, 2))
    truth = np.concatenate([low, low + rng.uniform(2, [[30, 30]] * 5 + [[3, 3]], (6, 2))], 1).astype(np.float32)
    labels = rng.integers(0, 3, 6)
    ours = assign(
        torch.from_numpy(scores), torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(cells),
        {"boxes": torch.from_numpy(truth), "labels": torch.from_numpy(labels)},
    )  # fmt: skip
    for mine, theirs in zip(ours, by_the_paper(scores, boxes.astype(np.float32), cells, truth, labels), strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=2e-4, atol=1e-5)


def test_loss_is_varifocal_and_generalized_iou():
    torch.manual_seed(0)
    cells = torch.from_numpy(anchors.yolo(64).anchors)
    deltas, logits = torch.randn(2, len(cells), 4, dtype=torch.float32) * 0.3 + 0.7, torch.randn(2, len(cells), 3) - 2
    target = {"boxes": torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 30.0, 62.0, 60.0]]), "labels": torch.tensor([2, 0])}
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    total, count, logs = detection_loss(deltas, logits, cells, [target, empty])
    boxes, p = distances_to_boxes(deltas, cells), logits.sigmoid().double().numpy()
    owner, weight, score = (v.numpy() for v in assign(logits[0].sigmoid(), boxes[0], cells, target))
    expected = 0.0
    for n in range(2):
        for a in range(len(cells)):
            for c in range(3):
                mine = n == 0 and owner[a] >= 0 and int(target["labels"][owner[a]]) == c
                q = float(score[a]) if mine else 0.0
                x = p[n, a, c]
                if q > 0:
                    expected -= q * (q * np.log(x) + (1 - q) * np.log(1 - x))
                else:
                    expected -= 0.75 * x**2 * np.log(1 - x)
    assert float(logs["score_loss"]) == pytest.approx(expected, rel=1e-4)
    own = owner >= 0
    apart = generalized_box_iou_loss(boxes[0][own], target["boxes"][owner[own]])
    assert float(logs["box_loss"]) == pytest.approx(float((apart.numpy() * weight[own]).sum()), rel=1e-4)
    assert float(total) == pytest.approx(float(logs["score_loss"] + 2.5 * logs["box_loss"]), rel=1e-5)
    assert float(count) == pytest.approx(float(weight.sum()) + 1, rel=1e-5)


def test_thousands_of_objects_and_coincident_ones_are_assigned_in_parts():
    torch.manual_seed(0)
    cells = torch.from_numpy(anchors.yolo(128).anchors)
    low = torch.rand(5000, 2) * 120
    target = {"boxes": torch.cat([low, low + 0.5 + torch.rand(5000, 2) * 7], 1), "labels": torch.randint(0, 3, (5000,))}
    target["boxes"][1] = target["boxes"][0]
    deltas, logits = (
        torch.zeros(1, len(cells), 4, requires_grad=True),
        torch.zeros(1, len(cells), 3, requires_grad=True),
    )
    total, count, _ = detection_loss(deltas, logits, cells, [target])
    total.backward()
    assert torch.isfinite(total) and float(count) > 100
    assert torch.isfinite(deltas.grad).all() and torch.isfinite(logits.grad).all()


def test_a_backbone_without_maps_is_refused_by_name():
    with pytest.raises(UserError, match=r"'resnet81' is no timm model.*did you mean"):
        Maps("resnet81", (8, 16, 32))
    with pytest.raises(UserError, match="has no map at stride 4"):
        Maps("vit_tiny_patch16_224", (4, 8))
    assert Maps("resnet10t", (8, 16, 32)).channels == [128, 256, 512]
