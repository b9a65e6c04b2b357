"""Segmentation's settings, void ids, class weights and refusals, without Ray."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import confusion_matrix
from sklearn.utils.class_weight import compute_class_weight

from mapsto.core.codecs import encode
from mapsto.core.errors import UserError
from mapsto.core.registry import task_class
from mapsto.core.sample import DatasetInfo
from mapsto.core.task import Context

INFO = DatasetInfo("s3://b/data", "f:1", (), {"train": 9}, ("image", "mask"))
CONTEXT = Context(0, 0, 10, torch.Generator().manual_seed(0), 0, 1, lambda tensor: tensor)


def make(info=INFO, **changes):
    cls = task_class("segment")
    config = {"kind": "segment", "classes": ["sky", "cat", "dog"], "image_size": 32, "model": {"widths": [4, 8]}}
    return cls(cls.Config(**{**config, **changes}), {"train": info})


def counted(**pixels):
    return replace(INFO, mask_pixels={"train": {k[1:]: n for k, n in pixels.items()}})


def batch(task, mask, split="train"):
    stream = task.streams(split)[""]
    image = np.random.default_rng(0).integers(0, 256, (*mask.shape, 3), np.uint8)
    sample = {"image": encode(image), "mask": encode(mask, "png")}
    samples = [stream.transform([sample], np.random.default_rng(k)) for k in range(2)]
    whole = task.collate(samples) | {"row_id": np.arange(2), "valid": np.ones(2, bool)}
    return {name: torch.from_numpy(value) for name, value in whole.items()}


@pytest.mark.parametrize("split", ["train", "val"])
def test_further_void_ids_never_count(split):
    mask = np.random.default_rng(1).integers(0, 3, (40, 40), np.uint8)
    mask[:20] = 11
    task = make(void=[11], measure_at="input")
    tensors = batch(task, mask, split)
    assert set(np.unique(tensors["mask"].numpy())) <= {0, 1, 2, 255}
    assert (tensors["mask"] == 255).any()
    model = task.build({}).eval()
    _, count, _ = task.phases(model)[0].loss(model, tensors, CONTEXT)
    assert float(count) == float((tensors["mask"] != 255).sum())
    if split == "val":
        states = task.metrics().state(
            {"logits": model(tensors["image"]).detach().numpy()}, {"mask": tensors["mask"].numpy()}
        )
        assert states["confusion"].sum() == float(count)


def test_balanced_class_weights_are_scikit_learns():
    task = make(counted(_0=700, _1=200, _2=100, _11=50, _255=30), void=[11], loss={"class_weights": "balanced"})
    task.check()
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(task._class_weights(), theirs, rtol=1e-6)
    model = task.build({}).eval()
    tensors = batch(task, np.random.default_rng(1).integers(0, 3, (40, 40), np.uint8))
    total, count, logs = task.phases(model)[0].loss(model, tensors, CONTEXT)
    weight = torch.from_numpy(theirs).float()
    logits = model(tensors["image"])
    mean = torch.nn.functional.cross_entropy(logits, tensors["mask"].long(), weight=weight, ignore_index=255)
    assert float((total / count).detach()) == pytest.approx(float(mean.detach()), rel=1e-5)
    assert set(logs) == {"train_mean_accuracy"}
    absent = make(counted(_0=10, _2=30), loss={"class_weights": "balanced"})._class_weights()
    assert absent.tolist() == pytest.approx([2.0, 0.0, 2 / 3])


def test_data_that_does_not_fit_is_refused_before_training():
    with pytest.raises(UserError, match=r"hold ids 3 \(5 pixels\), 11 \(7,000 pixels\); .* names 3 .*task.void"):
        make(counted(_0=9, _3=5, _11=7000, _255=2)).check()
    with pytest.raises(UserError, match=r"hold ids 3 \(8 pixels\); .* names 3"):
        make(replace(INFO, mask_pixels={"train": {"0": 9, "3": 1}, "val": {"3": 7}})).check()
    with pytest.raises(UserError, match=r"needs the masks' pixels by class.*--force"):
        make(loss={"class_weights": "balanced"}).check()
    with pytest.raises(UserError, match="48 must be a multiple of 32 for segformer"):
        make(image_size=48, model={"name": "segformer"}).check()
    make(image_size=40, model={"name": "deeplabv3plus"}).check()
    with pytest.raises(UserError, match="36 must be a multiple of 8 for segnet"):
        make(image_size=36, model={"name": "segnet", "widths": [4, 8, 8]}).check()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"name": "unett"}}, "Input should be"),
        ({"model": {"name": "segnet", "backbone": "resnet18"}}, "backbone is no setting of segnet, which has widths"),
        ({"model": {"pretrained": True}}, "pretrained is no setting of unet"),
        ({"model": {"name": "deeplabv3plus", "widths": [4, 8]}}, "widths is no setting of deeplabv3plus"),
        ({"model": {"name": "segformer", "widths": [32, 64]}}, "four stages, each a multiple of 32"),
        ({"model": {"name": "segformer", "widths": [32, 64, 96, 100]}}, "four stages, each a multiple of 32"),
        ({"model": {"widths": [4, 0]}}, "greater than or equal to 1"),
        ({"model": {"crf": {"window": 4}}}, "4 is even"),
        ({"loss": {"cross_entropy": 0}}, "nothing to train on"),
        ({"void": [256]}, "less than or equal to 255"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes, said):
    with pytest.raises(ValidationError, match=said):
        make(**changes)


@pytest.mark.parametrize(
    "model",
    [
        {"name": "segnet", "widths": [4, 8]},
        {"name": "deeplabv3plus", "backbone": "resnet10t", "decoder": 8},
        {"name": "segformer", "widths": [32, 32, 32, 32], "decoder": 8},
        {"widths": [4, 8], "crf": {"iterations": 2, "window": 3}},
    ],
    ids=lambda model: model.get("name", "crf"),
)
def test_every_network_trains_is_saved_whole_and_answers(model):
    task = make(model=model, loss={"dice": 1.0})
    task.check()
    assert type(task.config)(**task.config.model_dump(mode="json")) == task.config
    net = task.build({})
    tensors = batch(task, np.random.default_rng(1).integers(0, 3, (40, 40), np.uint8))
    total, count, _ = task.phases(net)[0].loss(net, tensors, CONTEXT)
    (total / count).backward()
    assert all(p.grad is not None for p in net.parameters())
    fresh = task.build({}).eval()
    fresh.load_state_dict(net.state_dict())
    net.eval()
    with torch.inference_mode():
        assert torch.equal(fresh(tensors["image"]), net(tensors["image"]))
    assert task.export().quantize == ("crf" not in model)


@pytest.mark.parametrize(
    "model",
    [
        {"widths": [4, 8], "crf": {"iterations": 2, "window": 3}},
        {"name": "segnet", "widths": [4, 8]},
        {"name": "deeplabv3plus", "backbone": "resnet10t", "decoder": 8},
        {"name": "segformer", "widths": [32, 32, 32, 32], "decoder": 8},
    ],
    ids=lambda model: model.get("name", "crf"),
)  # the U-Net goes through the matrix, int8 too
def test_every_network_exports_as_it_answers(model):
    import onnxruntime

    from mapsto.compress.export import random_inputs, to_onnx

    task = make(model=model)
    net, spec = task.build({}).eval(), task.export()
    inputs = random_inputs(spec, 3)
    theirs = onnxruntime.InferenceSession(to_onnx(task.forward, net, spec)).run(None, inputs)[0]
    with torch.inference_mode():
        np.testing.assert_allclose(theirs, net(torch.from_numpy(inputs["image"])).numpy(), atol=1e-4)


def test_an_answers_outlines_are_those_of_the_enlarged_logits():
    """A slanted edge in 12 pixels, answered in 96: as torch enlarges the logits, and no staircase of 8."""
    task = make(image_size=16)
    y, x = np.mgrid[:16, :16]
    edge = (x - 0.6 * y - 3).astype(np.float32)
    logits = np.stack([-edge, edge, np.full_like(edge, -50)])
    _, place = task.preprocess(np.zeros((96, 128, 3), np.uint8))
    (answer,) = task.answers({"logits": logits[None]}, [place])
    reference = torch.nn.functional.interpolate(torch.from_numpy(logits)[None], (96, 128), mode="bilinear")[0].argmax(0)
    assert (answer == reference.numpy()).mean() > 0.999
    tall = task.preprocess.geometry(1300, 40)  # answered a band of rows at a time
    reference = torch.nn.functional.interpolate(torch.from_numpy(logits)[None], (1300, 40), mode="bilinear")[0].argmax(
        0
    )
    assert (task.answers({"logits": logits[None]}, [tall])[0] == reference.numpy()).mean() > 0.999
    starts = answer.argmax(1)[20:70]  # where the second class begins, row by row
    assert len(set(starts.tolist())) > 20


@pytest.mark.parametrize("split", ["val", "test"])
def test_metrics_count_every_pixel_of_the_original_as_answers_do(split):
    """Originals of any size beside each other, against the answers themselves, pixel by pixel."""
    task, rng = make(void=[11]), np.random.default_rng(0)
    samples, masks, images = [], [], []
    for height, width in ((50, 70), (20, 31), (32, 32)):
        masks.append(rng.integers(0, 3, (height, width)).astype(np.uint8))
        masks[-1][:3] = 11
        images.append(encode(rng.integers(0, 256, (height, width, 3), np.uint8), "png"))
        sample = {"image": images[-1], "mask": encode(masks[-1], "png")}
        samples.append(task.streams(split)[""].transform([sample], rng))
    whole = task.collate(samples)
    model = task.build({}).eval()
    with torch.inference_mode():
        output = {"logits": model(torch.from_numpy(whole["image"])).numpy()}
    states = task.metrics().state(output, whole)
    answers = task.decode(output, [task.prepare({"image": image})[1] for image in images])
    for counts, mask, answer in zip(states["confusion"], masks, answers, strict=True):
        assert answer["mask"].shape == mask.shape and counts.sum() == (mask != 11).sum()
        theirs = confusion_matrix(mask[mask != 11], answer["mask"][mask != 11], labels=range(3))
        np.testing.assert_array_equal(counts, theirs)
    assert task.metrics().badness(states).shape == (3,)


def test_what_is_too_small_for_the_input_is_lost_in_the_numbers_too():
    """A perfect answer at the input's size is none at the original's, where a line is thinner than an input's pixel."""
    mask = np.zeros((128, 128), np.uint8)
    mask[:, 62:64] = 1  # half a pixel of the input's 32
    image = encode(np.zeros((128, 128, 3), np.uint8), "png")
    found = {}
    for at in ("original", "input"):
        task = make(measure_at=at)
        row = task.streams("val")[""].transform(
            [{"image": image, "mask": encode(mask, "png")}], np.random.default_rng(0)
        )
        whole = task.collate([row])
        sees = make(measure_at="input").streams("val")[""].transform
        seen = sees([{"image": image, "mask": encode(mask, "png")}], np.random.default_rng(0))["mask"]
        logits = np.eye(3, dtype=np.float32)[seen].transpose(2, 0, 1)[None]
        found[at] = task.metrics().compute(task.metrics().state({"logits": logits}, whole))["mIoU"]
    assert found["input"] == 1.0 and found["original"] < 0.8
    with pytest.raises(ValidationError, match="measure_at: input has no one size with windows"):
        make(measure_at="input", windows={"size": 64})


def test_a_large_original_is_counted_a_part_at_a_time(monkeypatch):
    from mapsto.core.metrics import segmentation

    task, rng = make(), np.random.default_rng(0)
    logits = rng.normal(size=(1, 3, 32, 32)).astype(np.float32)
    mask = rng.integers(0, 3, (90, 70)).astype(np.uint8)
    place = task.preprocess.geometry(90, 70)
    whole = {"mask": mask.ravel(), "mask_offsets": np.array([0, mask.size])}
    whole |= {"matrix": place.matrix[None], "size": np.array([[90, 70]])}
    at_once = task.metrics().state({"logits": logits}, whole)
    monkeypatch.setattr(segmentation, "PIXELS_AT_ONCE", 97)
    in_parts = task.metrics().state({"logits": logits}, whole)
    np.testing.assert_array_equal(at_once["confusion"], in_parts["confusion"])
    with pytest.raises(UserError, match=r"a mask holds id 7, task.classes names 3 \(0..2\): row 0"):
        task.metrics().state({"logits": logits}, whole | {"mask": np.full(mask.size, 7, np.uint8)})


def test_the_originals_masks_count_in_what_a_batch_takes_and_stay_on_the_host():
    from mapsto.data.feed import Feed
    from mapsto.data.loader import bytes_of
    from mapsto.engine import evaluate
    from mapsto.engine.world import World
    from mapsto.stages.states import BATCH_BYTES, at_once

    info = replace(
        INFO, rows={"train": 2, "val": 1}, mask_pixels={"train": {"0": 6000}, "val": {"0": 4000, "255": 3000}}
    )

    def taken(task, *splits):
        streams = {split: {"": (task.streams(split)[""], None)} for split in splits}
        return bytes_of(Feed(task, streams))[""]

    side = 32 * 32
    assert taken(make(info), "train") == taken(make(info, measure_at="input"), "train", "val") == 4 * side
    assert taken(make(info), "train", "val") == taken(make(info), "val") == 3 * side + 7000
    assert taken(make(), "val") == 0  # nobody counted
    assert [at_once(each, 256) for each in (0, 3 * side, BATCH_BYTES // 5, 2 * BATCH_BYTES)] == [256, 256, 5, 1]

    task, sent = make(info), []
    mask = np.random.default_rng(1).integers(0, 3, (90, 70), np.uint8)
    whole = {name: value.numpy() for name, value in batch(task, mask, "val").items()}
    assert whole["mask"].shape == (2 * 90 * 70,)
    with pytest.MonkeyPatch.context() as patch:
        to_device = evaluate.to_device
        patch.setattr(evaluate, "to_device", lambda given, at: sent.append(set(given)) or to_device(given, at))
        evaluation = evaluate.Evaluation(task, World())
        evaluation.add(task.build({}).eval(), whole, torch.autocast("cpu", enabled=False))
    assert sent == [{"image"}] and "mIoU" in evaluation.compute()
