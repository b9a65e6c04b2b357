"""RT-DETR through transformers: one line without it; with it, on the detection task's seam as the others are."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mapsto.core import heavy
from mapsto.core.batches import rows
from mapsto.core.errors import UserError
from mapsto.core.registry import task_class
from mapsto.core.sample import DatasetInfo, Geometry
from mapsto.engine.batches import to_numpy
from mapsto.models import rtdetr

from .test_detect import CLASSES, COLUMNS, SIZE, batch, context, drawn, tensors

SMALL = {"backbone": "resnet18", "channels": 32, "layers": 2, "proposals": 20, "hidden": 32}


def make(model: dict[str, Any] | None = None, **options: Any) -> Any:
    cls, info = task_class("detect"), DatasetInfo("s3://b/d", "f:1", CLASSES, {"train": 4}, COLUMNS)
    given = {"name": "rtdetr", **SMALL, **(model or {})}
    return cls(cls.Config(kind="detect", image_size=SIZE, model=given, **options), {"train": info})


def test_without_the_extra_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heavy, "find_spec", lambda name: None)
    for act in (make().check, lambda: make().build({})):
        with pytest.raises(
            UserError, match=r"rtdetr is transformers', which is not installed: pip install 'mapsto\[rtdetr\]'"
        ):
            act()


def test_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValidationError, match="rtdetr has no anchor; it has backbone, channels, layers"):
        make({"anchor": 12})
    with pytest.raises(ValidationError, match="yolo has no layers"):
        task_class("detect").Config(kind="detect", model={"name": "yolo", "layers": 4})
    sides = {"image_size": 64, "model": {"name": "rtdetr", "proposals": 85}}
    with pytest.raises(
        ValidationError, match="an input of 64 pixels has 84 places for rtdetr's 85 queries: at most 84"
    ):
        task_class("detect").Config(kind="detect", **sides)
    smaller = {"image_size": 128, "model": {"name": "rtdetr", "proposals": 84, "scales": [0.5, 1.0]}}
    assert task_class("detect").Config(kind="detect", **smaller).sides == (64, 128)
    with pytest.raises(ValidationError, match="at most 84"):
        task_class("detect").Config(kind="detect", **{**smaller, "model": {**smaller["model"], "proposals": 85}})
    assert "set compress to null" in make().export().reason
    assert make().config.overlap == 1.0 and make({"mirror": True}).config.overlap == 0.6


there = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="the extra mapsto[rtdetr]")


@there
def test_it_learns_and_is_measured() -> None:
    task = make(augment={"crop": "none", "flip": 0})
    task.check()
    torch.manual_seed(0)
    model = task.build({})
    (phase,) = task.phases(model)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 1e-3), []
    whole = tensors(batch(task, "train", drawn()))
    for step in range(12):
        total, count, logs = phase.loss(model, whole, context(step))
        assert float(count) == 6 and set(logs) == {"score_loss", "box_loss", "overlap_loss"}
        optimizer.zero_grad()
        total.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        losses.append(float(total.detach() / count))
    assert np.mean(losses[-2:]) < 0.9 * np.mean(losses[:2]), losses
    arrays = batch(task, "val", drawn())
    with torch.no_grad():
        output = to_numpy(task.forward(model.eval(), tensors(arrays)))
    assert {name: value.shape for name, value in output.items()} == {
        "boxes": (4, 60, 4), "scores": (4, 60), "labels": (4, 60),
    }  # fmt: skip
    state = task.metrics().state(output, arrays) | {"row_id": arrays["row_id"]}
    assert all(np.isfinite(v) for v in task.metrics().compute(state).values())


@there
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_images_without_boxes_train_and_padding_costs_nothing(mode: str) -> None:
    task = make()
    model = task.build({}).train(mode == "train")
    (phase,) = task.phases(model)
    bare = [{**sample, "boxes": None, "box_labels": None, "segments": None} for sample in drawn(2)]
    total, _, _ = phase.loss(model, tensors(batch(task, "train", bare)), context())
    total.backward()
    assert torch.isfinite(total) and all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    padding = tensors(batch(task, "train", drawn(2)) | {"valid": np.zeros(2, bool)})
    total, count, _ = phase.loss(model, padding, context())
    assert float(total.detach()) == float(count) == 0
    if mode == "eval":  # in training noise is put on the objects
        full = tensors(batch(task, "train", drawn()))
        valid = phase.loss(model, {**full, "valid": torch.tensor([True, True, False, False])}, context())
        alone = phase.loss(model, rows(full, [0, 1]), context())
        assert float(valid[0].detach()) == pytest.approx(float(alone[0].detach()), rel=1e-5)


@there
def test_answers_are_transformers_own_and_none_is_suppressed() -> None:
    import transformers

    task = make(min_score=0.0, resize="stretch")
    torch.manual_seed(0)
    model = task.build({}).eval()
    image = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    output = to_numpy(task.forward(model, {"image": torch.from_numpy(image)}))
    place = task.preprocess.geometry(48, 96)
    found = task.detect(output, [place, place])
    with torch.no_grad():
        raw = model.net.net(pixel_values=torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255)
    processor = transformers.RTDetrImageProcessor()
    theirs = processor.post_process_object_detection(raw, 0.01, torch.tensor([[48, 96]] * 2), use_focal_loss=True)
    for ours, other in zip(found, theirs, strict=True):
        scores = other["scores"].numpy()  # of as many as there are queries
        np.testing.assert_allclose(ours.scores[: len(scores)], np.sort(scores)[::-1], rtol=1e-4)
        best = int(other["scores"].argmax())
        limits = np.clip(other["boxes"][best].detach().numpy(), 0, [96, 48, 96, 48])
        np.testing.assert_allclose(ours.boxes[0], limits, atol=1e-2)
        assert ours.labels[0] == int(other["labels"][best])
    assert isinstance(place, Geometry)


@there
def test_a_folder_of_transformers_gives_its_weights(tmp_path: Any) -> None:
    """Of another number of classes: all but what tells classes apart."""
    parents: Any = {"data.train": None}
    info = DatasetInfo("s3://b/d", "f:1", ("one",), {"train": 4}, COLUMNS)
    other = task_class("detect")(make().config, {"train": info}).build({}).net.net
    other.save_pretrained(tmp_path)
    whole = make({"folder": str(tmp_path)})
    ours, theirs = whole.build(parents).net.net.state_dict(), other.state_dict()
    unlike = {name for name in theirs if ours[name].shape != theirs[name].shape}
    assert all(torch.equal(ours[name], theirs[name]) for name in set(theirs) - unlike)
    assert unlike and all("class_embed" in name or "score_head" in name for name in unlike)
    whole.build({})  # opened again elsewhere: its weights come with the trained model
    for changed, said in (
        ({"folder": str(tmp_path / "none")}, "config.json is missing"),
        ({"folder": str(tmp_path), "layers": 3}, "made with 2: set task.model.layers=2"),
        ({"folder": str(tmp_path), "backbone": "resnet34"}, "stages of .2, 2, 2, 2. blocks: set task.model.backbone"),
        ({"backbone": "resnet10t"}, "rtdetr has resnet18, resnet34, resnet50 of its own, and no 'resnet10t'"),
    ):
        with pytest.raises(UserError, match=said):
            make(changed).build(parents)


@there
def test_a_folder_of_another_network_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    net = make().build({}).net.net
    net.save_pretrained(tmp_path)
    task, parents = make({"folder": str(tmp_path)}), {"data.train": cast(Any, None)}
    file, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    whole, tensors = json.loads(file.read_text()), load_file(weights)
    backbone = whole["backbone_config"]
    for changed, said in (
        ({"backbone_config": {**backbone, "layer_type": "bottleneck"}}, "its backbone has layer_type bottleneck: set"),
        ({"backbone_config": {**backbone, "hidden_sizes": [8, 8, 8, 8]}}, r"has hidden_sizes \[8, 8, 8, 8\]: set task"),
        ({"hidden_expansion": 1.0}, "its encoder has hidden_expansion 1: set task.model.backbone"),
        ({"decoder_ffn_dim": 48}, "made with 48: set task.model.hidden=48"),
    ):
        file.write_text(json.dumps({**whole, **changed}))
        with pytest.raises(UserError, match=said):
            task.build(parents)
    file.write_text(json.dumps(whole))
    lost = {name: value for name, value in tensors.items() if "encoder_input_proj" not in name}
    save_file(lost, weights, {"format": "pt"})
    with pytest.raises(
        UserError, match=r"its weights do not fit: \d+ of the model's .* such as model.encoder_input_proj"
    ):
        task.build(parents)
    frozen = type(net)(type(net.config)(**net.config.to_dict() | {"freeze_backbone_batch_norms": True}))
    frozen.save_pretrained(tmp_path)  # as published
    ours, theirs = task.build(parents).net.net.state_dict(), frozen.state_dict()
    assert set(ours) > set(theirs) and all(torch.equal(ours[name], value) for name, value in theirs.items())
    config = SimpleNamespace(**dict.fromkeys(rtdetr.SAME, 1), backbone_config=None)
    with pytest.raises(UserError, match=r"here: its config\.json has no backbone_config"):
        rtdetr._check("here", config, config)
