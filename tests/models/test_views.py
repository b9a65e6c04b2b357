"""Views of an image at test time: means of logits, detections of all, and training that sees one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mapsto.core.registry import task_class
from mapsto.core.sample import DatasetInfo, Geometry
from mapsto.engine.batches import to_numpy
from mapsto.models.views import Views


def net() -> Views:
    torch.manual_seed(0)
    return Views(nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5)))


def test_an_answer_is_the_mean_over_both_sides_and_the_same_for_either() -> None:
    model, images = net().eval(), torch.randn(6, 3, 4, 4)
    both = model(images)
    torch.testing.assert_close(both, (model.net(images) + model.net(torch.flip(images, [-1]))) / 2)
    torch.testing.assert_close(both, model(images.flip(3)))


def test_training_sees_one_side() -> None:
    model, images = net().train(), torch.randn(6, 3, 4, 4)
    torch.testing.assert_close(model(images), model.net(images), rtol=0, atol=0)


def test_pixels_logits_are_turned_back_and_resized_before_the_mean() -> None:
    torch.manual_seed(0)
    core = nn.Conv2d(3, 2, 3, padding=1)
    model, images = Views(core, True, (8, 12)).eval(), torch.randn(2, 3, 8, 8)
    larger = F.interpolate(images, size=(12, 12), mode="bilinear")
    seen = [core(images), core(images.flip(3)).flip(3)]
    seen += [F.interpolate(v, size=(8, 8), mode="bilinear") for v in (core(larger), core(larger.flip(3)).flip(3))]
    torch.testing.assert_close(model(images), torch.stack(seen).mean(0))
    torch.testing.assert_close(model(images.flip(3)), model(images).flip(3))


class Corner(nn.Module):
    """Answers with one box and mask, fixed in its view's pixels as shares of the side."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        side, count = x.shape[-1], len(x)
        box = torch.tensor([0.125, 0.25, 0.5, 0.75]) * side
        mask = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        shape = {"boxes": box, "scores": torch.tensor(0.5), "labels": torch.tensor(1), "masks": mask}
        return {name: value.expand(count, 1, *value.shape) for name, value in shape.items()}


def test_boxes_and_masks_of_all_views_are_in_the_inputs_pixels() -> None:
    out = Views(Corner(), True, (64, 32)).eval()(torch.zeros(3, 3, 64, 64))
    ours, theirs = [8.0, 16, 32, 48], [32.0, 16, 56, 48]
    assert out["boxes"].tolist() == [[ours, theirs, ours, theirs]] * 3
    assert out["masks"][0, :, 0].tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert out["scores"].shape == out["labels"].shape == (3, 4)


OWN = {
    "yolo": {"widths": [4, 8, 16, 16, 16]},
    "retinanet": {"backbone": "resnet10t", "channels": 16, "anchor": 12},
    "ssd": {"backbone": "resnet10t", "channels": 16, "anchor": 12},
}


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_dense_models_views_decode_to_the_boxes_of_each_one_alone(name: str) -> None:
    cls, info = task_class("detect"), DatasetInfo("u", "f", ("a", "b"), {"train": 1}, ("image", "boxes", "box_labels"))

    def make(**more: object):
        config = {"image_size": 64, "model": {"name": name, **OWN[name], **more}, "nms_iou": 1.0, "max_boxes": 10_000}
        return cls(cls.Config(kind="detect", **config), {"train": info})

    many, plain = make(mirror=True, scales=[1.0, 1.5]), make()
    assert many.config.sides == (64, 96)
    torch.manual_seed(0)
    model = many.build({}).eval()
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8))
    with torch.no_grad():
        output = to_numpy(many.forward(model, {"image": images}))
        net, x = model.net.net, model.normalize(images)
        parts = [to_numpy(net(view)) for view in (x, x.flip(3))]
    counts = [len(view.grid.anchors) for view in many.answers.views]
    assert output["deltas"].shape[1] == sum(counts) == 2 * sum(counts[::2])
    place = [Geometry(np.eye(3), 64, 64)]

    def boxes(task, out: dict[str, np.ndarray], begin: int, end: int) -> np.ndarray:
        """Of all anchors: their scores are made equal and sure."""
        logits = np.zeros_like(out["logits"])
        logits[:, :, 1] = -9
        logits[:, begin:end, 1] = 9
        (found,) = task.answers.detect({"deltas": out["deltas"], "logits": logits}, place, 0.9)
        return found.boxes

    ours, turned = (boxes(many, output, *where) for where in ((0, counts[0]), (counts[0], 2 * counts[0])))
    np.testing.assert_allclose(ours, boxes(plain, parts[0], 0, counts[0]), atol=1e-3)
    alone = boxes(plain, parts[1], 0, counts[0])
    np.testing.assert_allclose(
        turned, np.stack([64 - alone[:, 2], alone[:, 1], 64 - alone[:, 0], alone[:, 3]], 1), atol=1e-3
    )
    larger = boxes(many, output, 2 * counts[0], 2 * counts[0] + counts[2])
    assert len(larger) and larger.min() >= 0 and larger.max() <= 64


@pytest.mark.parametrize("kind", ["detect", "segment"])
def test_views_are_exported_with_the_model(kind: str) -> None:
    from mapsto.compress.export import random_inputs, to_onnx
    from mapsto.serving.runtimes import OnnxRuntime, direct

    cls = task_class(kind)
    columns = ("image", "boxes", "box_labels") if kind == "detect" else ("image", "mask")
    info = DatasetInfo("u", "f", ("a", "b"), {"train": 1}, columns)
    more = {} if kind == "detect" else {"classes": ["a", "b"]}
    widths = [4, 8, 8, 8, 8] if kind == "detect" else [4, 8]
    model_config = {"widths": widths, "mirror": True, "scales": [0.5]}
    task = cls(cls.Config(kind=kind, image_size=64, model=model_config, **more), {"train": info})
    model, spec = task.build({}).eval(), task.export()
    runtime = OnnxRuntime(task, {"kind": "onnx"}, to_onnx(direct(task).forward, model, spec), 1, "cpu")
    inputs = random_inputs(spec, 3)
    with torch.no_grad():
        ours = to_numpy(task.forward(model, {name: torch.from_numpy(value) for name, value in inputs.items()}))
    theirs = runtime.run(inputs)
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, atol=2e-3)
