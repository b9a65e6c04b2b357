"""Annotations that are odd or wrong: trained on, or refused in one line; never a NaN that nobody sees."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from mapsto.core.codecs import encode
from mapsto.core.errors import UserError
from mapsto.core.registry import task_class
from mapsto.core.sample import DatasetInfo
from mapsto.core.task import Context

CONTEXT = Context(0, 0, 10, torch.Generator().manual_seed(0), 0, 1, lambda tensor: tensor)
MASKED = {"name": "maskrcnn", "backbone": "resnet10t", "channels": 16, "anchor": 12, "proposals": 30, "hidden": 32}
YOLO = {"name": "yolo", "widths": [4, 8, 16, 16, 16]}


def detect(model: dict[str, Any], columns: tuple[str, ...] = ("image", "boxes", "box_labels", "segments")) -> Any:
    cls, info = task_class("detect"), DatasetInfo("s3://b/d", "f:1", ("cat", "dog"), {"train": 4}, columns)
    return cls(cls.Config(kind="detect", image_size=64, model=model), {"train": info})


def segment() -> Any:
    cls, info = task_class("segment"), DatasetInfo("s3://b/d", "f:1", (), {"train": 4}, ("image", "mask"))
    config = {"classes": ["sky", "cat"], "image_size": 32, "model": {"widths": [4, 8]}}
    return cls(cls.Config(kind="segment", **config), {"train": info})


def batch(task: Any, samples: list[dict[str, Any]], split: str = "train") -> dict[str, np.ndarray]:
    stream = task.streams(split)[""]
    rows = [{name: sample.get(name) for name in stream.columns} for sample in samples]
    made = [stream.transform([row], np.random.default_rng(k)) for k, row in enumerate(rows)]
    return task.collate(made) | {"row_id": np.arange(len(made)), "valid": np.ones(len(made), bool)}


def loss(task: Any, samples: list[dict[str, Any]]) -> float:
    """Of a step that leaves finite gradients."""
    torch.manual_seed(0)
    model = task.build({}).train()
    arrays = {name: torch.from_numpy(value) for name, value in batch(task, samples).items()}
    total, _, _ = task.phases(model)[0].loss(model, arrays, CONTEXT)
    total.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    assert torch.isfinite(total)
    return float(total.detach())


def rectangle(left: float, top: float, right: float, bottom: float) -> str:
    return json.dumps([[left, top, right, top, right, bottom, left, bottom]])


def sample(boxes: list[list[float]], shape: tuple[int, int] = (60, 80), **more: Any) -> dict[str, Any]:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    labels = [k % 2 for k in range(len(boxes))]
    return {"image": encode(image), "boxes": boxes, "box_labels": labels, **more}


@pytest.mark.parametrize("model", [YOLO, MASKED], ids=["yolo", "maskrcnn"])
def test_boxes_without_area_are_not_trained_on(model: dict[str, Any]) -> None:
    task, boxes = detect(model), [[5.0, 5, 40, 40], [10, 10, 10, 30], [30, 30, 20, 20]]
    odd = sample(boxes, segments=[rectangle(5, 5, 40, 40), "[]", "[]"])
    plain = sample(boxes[:1], segments=odd["segments"][:1])
    assert len(batch(task, [odd])["boxes"]) == 1
    assert loss(task, [odd, odd]) == loss(task, [plain, plain])
    assert loss(task, [sample(boxes[1:], segments=["[]", "[]"])]) > 0  # background alone


@pytest.mark.parametrize("shape", [(3, 5), (20, 400)])
def test_images_smaller_or_longer_than_the_input_keep_their_masks(shape: tuple[int, int]) -> None:
    task, whole = detect(MASKED), [0.0, 0, shape[1], shape[0]]
    made = batch(task, [sample([whole], shape, segments=[rectangle(*whole)])] * 2)
    assert len(made["mask_places"]) == 2 and len(made["masks"]) == made["mask_places"][:, 2:].prod(1).sum() > 0
    assert made["masks"].all()
    loss(task, [sample([whole], shape, segments=[rectangle(*whole)])] * 2)


def test_five_thousand_objects_with_masks() -> None:
    low = np.random.default_rng(0).uniform(0, 55, (5000, 2)).round(1)
    boxes = np.concatenate([low, low + np.random.default_rng(1).uniform(0.1, 5, (5000, 2)).round(1)], 1).tolist()
    many = sample(boxes, (60, 60), segments=[rectangle(*box) for box in boxes])
    loss(detect(MASKED), [many])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"segments": []}, None),
        ({"segments": None}, None),
        ({"segments": ["[]", "[]"]}, "1 boxes have 2 segments; each needs one, or none has"),
        ({"segments": ['{"size": [80, 60], "counts": [4800]}']}, r"size \[80, 60\]; the image is \[60, 80\]"),
        ({"segments": ["[[1, 2, 3]]"]}, "six or more finite numbers"),
        ({"boxes": [[0, 0, float("nan"), 5]]}, "box 0 is not finite"),
    ],
)
def test_masks_that_do_not_fit_are_one_line(more: dict[str, Any], said: str | None) -> None:
    task, row = detect(MASKED), sample([[5.0, 5, 40, 40]], segments=[rectangle(5, 5, 40, 40)]) | more
    if said is None:
        loss(task, [row])
        return
    with pytest.raises(UserError, match=said):
        batch(task, [row])


def test_masks_are_asked_for_before_training() -> None:
    with pytest.raises(UserError, match=r"boxes without masks; maskrcnn needs COCO's segmentations.*take fasterrcnn"):
        detect(MASKED, ("image", "boxes", "box_labels")).check()
    detect(YOLO, ("image", "boxes", "box_labels")).check()
    detect(MASKED).check()


def test_an_id_that_is_no_class_is_refused_when_measured_and_when_trained_on() -> None:
    task = segment()
    row = {"image": encode(np.zeros((40, 40, 3), np.uint8)), "mask": encode(np.full((40, 40), 7, np.uint8), "png")}
    arrays = batch(task, [row], "val")
    with pytest.raises(UserError, match=r"a mask holds id 7, task.classes names 2 \(0..1\): row 0"):
        task.metrics().state({"logits": np.zeros((1, 2, 32, 32), np.float32)}, arrays)
    with pytest.raises(UserError, match="a mask holds id 7"):
        loss(task, [row])


@pytest.mark.parametrize("shape", [(3, 5), (9, 200)])
def test_void_masks_and_small_images_are_segmented_without_a_nan(shape: tuple[int, int]) -> None:
    row = {"image": encode(np.zeros((*shape, 3), np.uint8)), "mask": encode(np.full(shape, 255, np.uint8), "png")}
    task = segment()
    assert loss(task, [row] * 2) == 0
    arrays = batch(task, [row], "val")
    values = task.metrics().compute(task.metrics().state({"logits": np.zeros((1, 2, 32, 32), np.float32)}, arrays))
    assert set(values.values()) == {0.0}


def test_a_broken_segmenters_answer_is_refused() -> None:
    task, logits = segment(), np.zeros((2, 2, 32, 32), np.float32)
    logits[1, 0, 3, 3] = np.nan
    place = task.preprocess.geometry(40, 50)
    with pytest.raises(UserError, match=r"logits are not finite \(row 1 of its batch\)"):
        task.decode({"logits": logits}, [place, place])
