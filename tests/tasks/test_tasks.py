"""The tasks' own pieces, without Ray: losses by hand, answers, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mapsto.core.batches import rows, stack
from mapsto.core.codecs import encode
from mapsto.core.errors import BrokenModel, UserError
from mapsto.core.registry import TASKS, load_task, save_task, task_class
from mapsto.core.sample import DatasetInfo, Geometry
from mapsto.core.task import Context, direct
from mapsto.engine.evaluate import in_row_order

INFO = DatasetInfo(
    "s3://b/data", "f:1", ("cat", "dog", "fox"), {"train": 9}, ("image", "label", "mask", "boxes", "box_labels", "value"),
    values={"train": {"rows": 9, "mean": 1.0, "std": 0.5}},
)  # fmt: skip
CONTEXT = Context(0, 0, 10, torch.Generator().manual_seed(0), 0, 1, lambda tensor: tensor)
CONFIGS = {
    "classify": {"kind": "classify", "image_size": 32, "model": {"name": "resnet10t"}},
    "multilabel": {"kind": "multilabel", "image_size": 32, "model": {"name": "resnet10t"}},
    "regress": {"kind": "regress", "image_size": 32, "model": {"name": "resnet10t"}},
    "segment": {"kind": "segment", "classes": ["sky", "cat", "dog"], "image_size": 32, "model": {"widths": [4, 8]}},
    "gan": {"kind": "gan", "image_size": 16, "latent": 16, "width": 4},
    "vae": {"kind": "vae", "image_size": 16, "latent": 16, "width": 4},
    "diffusion": {"kind": "diffusion", "image_size": 16, "widths": [4, 8], "blocks": 1, "steps": 2},
    "detect": {"kind": "detect", "image_size": 64, "model": {"widths": [4, 8, 8, 8, 8]}},
    "embed": {"kind": "embed", "image_size": 32, "model": {"name": "resnet10t", "dimensions": 8}},
    "stylize": {
        "kind": "stylize",
        "image_size": 32,
        "style_size": 32,
        "overlap": 8,
        "style_role": "train",
        "features": {
            "model": {"name": "cnn", "widths": [4, 8]},
            "content": ["layers.4"],
            "style": ["layers.1", "layers.4"],
        },
    },
}


def make(kind: str, info: DatasetInfo = INFO, **changes):
    cls = task_class(kind)
    return cls(cls.Config(**{**CONFIGS[kind], **changes}), {"train": info})


def batch(task, split="train", size=4):
    """The task's microbatch as the feed makes it: of several streams the names carry the stream's."""
    rng = np.random.default_rng(0)
    parts = {name: _part(task, stream, size, rng) for name, stream in task.streams(split).items()}
    first = next(iter(parts.values()))
    whole = first if len(parts) == 1 else {f"{n}.{k}": v for n, part in parts.items() for k, v in part.items()}
    whole |= {"row_id": np.arange(size), "valid": np.ones(size, bool)}
    return whole, {name: torch.from_numpy(value) for name, value in whole.items()}


def _part(task, stream, size, rng):
    samples = []
    for i in range(size):
        sample = {"image": encode(rng.integers(0, 256, (40, 50, 3), np.uint8)), "label": i % 3, "row_id": i}
        sample["mask"] = encode(rng.integers(0, 3, (40, 50), np.uint8), "png")
        sample |= {"boxes": [[5.0, 5.0, 30.0, 30.0]] * i, "box_labels": [i % 3] * i, "value": i / 2}
        samples.append(
            stream.transform([{k: sample[k] for k in (*stream.columns, "row_id")}], np.random.default_rng(i))
        )
    return task.collate(samples)


@pytest.mark.parametrize("kind", sorted(TASKS))
def test_no_row_that_is_padding_counts(kind):
    task = make(kind)
    model = task.build({})
    model.eval()
    _, full = batch(task)
    half = {**full, "valid": torch.tensor([True, True, False, False])}
    only = rows(full, [0, 1])
    for phase in task.phases(model):

        def run(part, phase=phase):
            with torch.no_grad():
                context = Context(0, 0, 10, torch.Generator().manual_seed(0), 0, 1, lambda tensor: tensor)
                return phase.loss(model, part, context)

        (padded, count, logs), (alone, count_alone, logs_alone) = run(half), run(only)
        assert float(count) == float(count_alone)
        assert float(padded) == pytest.approx(float(alone), rel=1e-4, abs=1e-4)
        assert {k: float(v) for k, v in logs.items()} == pytest.approx(
            {k: float(v) for k, v in logs_alone.items()}, rel=1e-4, abs=1e-4
        )


@pytest.mark.parametrize("kind", sorted(TASKS))
def test_a_saved_task_comes_back_whole(kind, tmp_path):
    from mapsto.core.artifact import Artifact
    from mapsto.core.storage import Storage

    task, artifact = make(kind), Artifact(str(tmp_path / "train" / "x"), Storage())
    save_task(task, artifact)
    back = load_task(artifact)
    assert back.config == task.config
    assert back.datasets == task.datasets
    assert back.build({}).load_state_dict(task.build({}).state_dict()).missing_keys == []


@pytest.mark.parametrize("kind", sorted(TASKS))
def test_however_rows_are_shared_out_the_numbers_are_the_same(kind):
    """In parts of other sizes a forward may end in another last digit, so that the metrics agree to a tolerance; of the same
    states, in whatever order they come, they and the tables are the same to the last digit."""
    task = make(kind)
    torch.manual_seed(0)
    model, metrics = task.build({}).eval(), task.metrics()
    whole, _ = batch(task, "test", 12)
    seen = []
    for workers, size in ((1, 3), (2, 4), (3, 6), (2, 5)):
        parts = [range(start, min(start + size, 12)) for start in range(0, 12, size)]
        states = [
            state for rank in range(workers) for state in measured(task, model, whole, parts[rank::workers][::-1])
        ]
        told = []
        for gathered in (in_row_order(states), in_row_order(states[::-1])):
            values = metrics.compute(gathered)
            values.pop("s_per_megapixel", None)  # of stylize: a clock's
            told.append(json.dumps([values, metrics.tables(gathered)]))
        assert told[0] == told[1]
        seen.append(values)
    assert all(values == pytest.approx(seen[0], rel=1e-3, abs=1e-4, nan_ok=True) for values in seen[1:])


def measured(task, model, whole, parts):
    """The states of a batch's rows, as one worker measures them in these parts."""
    for part in (rows(whole, part) for part in parts):
        with torch.no_grad():
            output = numbers(direct(task).forward(model, tensors(task.inputs(part))))
        yield {**task.metrics().state(output, part), "row_id": part["row_id"]}


@pytest.mark.parametrize("kind", sorted(TASKS))
def test_weights_that_are_not_finite_answer_nothing_and_are_not_measured(kind):
    task = make(kind)
    model = task.build({}).eval()
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    drawn = encode(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8), "png")
    sample, geometry = task.prepare({"seed": 1} if kind in ("gan", "diffusion") else {"image": drawn})
    request = task.inputs(task.collate([sample]))
    seen, _ = batch(task, "test")
    said = r"(logits|answers|pixels|embedding|scores|deltas) are not finite \(row 0 of its batch\)"
    with torch.no_grad(), pytest.raises(BrokenModel, match=said):
        task.decode(numbers(direct(task).forward(model, tensors(request))), [geometry])
    with torch.no_grad(), pytest.raises(BrokenModel, match=said):
        task.metrics().state(numbers(direct(task).forward(model, tensors(task.inputs(seen)))), seen)


def tensors(batch):
    return {name: torch.from_numpy(value) for name, value in batch.items()}


def numbers(output):
    return {name: value.numpy() for name, value in output.items()}


def test_classification_loss_is_cross_entropy_with_smoothing():
    task = make("classify", label_smoothing=0.1)
    model = task.build({}).eval()
    _, tensors = batch(task)
    with torch.no_grad():
        total, count, _ = task.phases(model)[0].loss(model, tensors, CONTEXT)
        log = torch.log_softmax(model(tensors["image"]).float(), 1)
    target = torch.full_like(log, 0.1 / 3)
    target[torch.arange(4), tensors["label"]] += 0.9
    assert float(total) == pytest.approx(float(-(target * log).sum()), rel=1e-5)
    assert float(count) == 4


STRONG = {
    "vertical_flip": 0.5,
    "rotate": 10,
    "perspective": 0.3,
    "brightness": 0.2,
    "hue": 0.1,
    "blur": 0.5,
}


@pytest.mark.parametrize("policy", ["randaugment", "autoaugment", "trivialaugment"])
@pytest.mark.parametrize("crop", ["random_resized", "pad"])
def test_every_augmentation_of_a_classifier_gives_images_of_its_size_and_repeats(policy, crop):
    task = make("classify", augment={**STRONG, "policy": policy, "crop": crop, "erase": 1.0}, sampling="balanced")
    assert task.streams("train")[""].sampling == "balanced" and task.streams("val")[""].sampling == "sequential"
    (first, _), (again, _), (plain, _) = batch(task), batch(task), batch(task, "val")
    assert first["image"].shape == plain["image"].shape == (4, 32, 32, 3) and first["image"].dtype == np.uint8
    assert np.array_equal(first["image"], again["image"]) and not np.array_equal(first["image"], plain["image"])
    mean = [round(255 * v) for v in INFO.mean]
    assert all((image == mean).all(2).sum() >= 0.015 * 32 * 32 for image in first["image"])


def test_segmentation_augments_image_and_mask_together():
    task = make("segment", augment={**STRONG, "brightness": 0.0, "contrast": 0.0, "hue": 0.0, "blur": 0.0})
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 32:] = 255
    mask = (picture[..., 0] > 0).astype(np.uint8)
    for seed in range(8):
        out = task.streams("train")[""].transform([{"image": picture, "mask": mask}], np.random.default_rng(seed))
        assert out["image"].shape == (32, 32, 3) and out["mask"].shape == (32, 32)
        seen = out["mask"] != 255
        assert ((out["image"][..., 0] > 127) == (out["mask"] == 1))[seen].mean() > 0.97


@pytest.mark.parametrize("augment", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_a_mixed_loss_is_cross_entropy_with_the_mixed_label(augment):
    from mapsto.models.mixing import Mixing

    task = make("classify", label_smoothing=0.1, augment=augment)
    model = task.build({}).eval()
    _, tensors = batch(task)
    tensors["valid"] = torch.tensor([True, True, True, False])
    with torch.no_grad():
        context = Context(0, 0, 10, torch.Generator().manual_seed(0), 0, 1, lambda tensor: tensor, shared=4)
        total, count, logs = task.phases(model)[0].loss(model, tensors, context)
        mix = Mixing(**augment)
        image, target = mix(tensors["image"], tensors["label"], tensors["valid"], 3, 4)
        log = torch.log_softmax(model(image).float(), 1)[:3]
        wanted = -((0.9 * target[:3] + 0.1 / 3) * log).sum()
    assert float(total) == pytest.approx(float(wanted), rel=1e-5) and float(count) == 3
    right = target[torch.arange(3), log.argmax(1)].sum()
    assert float(logs["train_top1"]) == pytest.approx(float(right), rel=1e-5)


def test_answers_of_a_classifier_are_its_five_best_by_name():
    info = DatasetInfo("u", "f", tuple("abcdefg"), {"train": 1}, ("image", "label"))
    task = make("classify", info)
    logits = np.log(np.array([[0.05, 0.1, 0.4, 0.2, 0.15, 0.06, 0.04]], np.float32))
    (answer,) = task.decode({"logits": logits}, [Geometry(np.eye(3), 1, 1)])
    assert answer["label"] == "c"
    assert answer["probability"] == pytest.approx(0.4, abs=1e-5)
    assert [entry["label"] for entry in answer["top"]] == ["c", "d", "e", "b", "f"]


def test_a_segmentation_mask_comes_back_in_the_originals_size():
    task = make("segment")
    original = np.zeros((64, 96), np.uint8)
    original[16:48, 24:72] = 1
    image = np.repeat(original[..., None] * 255, 3, 2)
    inputs, geometry = task.prepare({"image": image})
    shown = (inputs["image"][..., 0] > 127).astype(int)
    logits = np.stack([1 - shown, shown, np.full_like(shown, -1)]).astype(np.float32)[None]
    (answer,) = task.decode({"logits": logits}, [geometry])
    assert answer["mask"].shape == (64, 96)
    assert np.mean(answer["mask"] == original) > 0.98
    assert answer["share"]["cat"] == pytest.approx(original.mean(), abs=0.01)


def test_an_unknown_mask_id_stops_with_the_rows():
    task = make("segment", classes=["sky", "cat"])
    model = task.build({})
    _, tensors = batch(task)
    with pytest.raises(UserError, match=r"holds id 2, task.classes names 2 .*rows \[0"):
        task.phases(model)[0].loss(model, tensors, CONTEXT)


def test_the_same_seed_draws_the_same_noise():
    task = make("gan")
    first, other = task.prepare({"seed": 3})[0]["z"], task.prepare({"seed": 4})[0]["z"]
    assert np.array_equal(first, task.prepare({"seed": "3"})[0]["z"])
    assert not np.array_equal(first, other)
    for wrong in (None, 1.5, "x", True):
        with pytest.raises(UserError, match="seed"):
            task.prepare({"seed": wrong})


def test_data_that_does_not_fit_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"one class only \('cat'\)"):
        make("classify", DatasetInfo("u", "f", ("cat",), {}, ())).check()
    with pytest.raises(UserError, match="no labels"):
        make("classify", DatasetInfo("u", "f", (), {}, ())).check()
    with pytest.raises(UserError, match="no masks"):
        make("segment", DatasetInfo("u", "f", (), {}, ("image",))).check()
    with pytest.raises(UserError, match="must be a multiple of 8"):
        make("segment", image_size=36, model={"widths": [4, 8, 8, 8]}).check()
    with pytest.raises(UserError, match=r"'resnet81' is no timm model.*did you mean"):
        make("classify", model={"name": "resnet81"}).build({})


@pytest.mark.parametrize(
    ("kind", "by"), [("detect", "box_labels"), ("multilabel", "box_labels"), ("classify", "label")]
)
def test_training_rows_can_be_drawn_by_their_classes(kind, by):
    task = make(kind, sampling="balanced")
    (train,), (val,) = task.streams("train").values(), task.streams("val").values()
    assert (train.sampling, train.by, val.sampling) == ("balanced", by, "sequential")
    assert next(iter(make(kind).streams("train").values())).sampling == "shuffled"


def test_stack_keeps_bytes_small():
    samples = [{"image": np.zeros((2, 2, 3), np.uint8), "label": 1, "score": 0.5}] * 3
    stacked = stack(samples)
    assert (stacked["image"].dtype, stacked["label"].dtype, stacked["score"].dtype) == (np.uint8, np.int64, np.float32)


@pytest.mark.parametrize("of", [np.asarray, torch.as_tensor])
def test_rows_of_ragged_values(of):
    whole = {
        "mask": of(np.arange(9, dtype=np.uint8)),
        "mask_offsets": of(np.array([0, 4, 4, 9])),
        "id": of(np.arange(3)),
    }
    for keep, values, ends in (
        ([2, 0], [4, 5, 6, 7, 8, 0, 1, 2, 3], [0, 5, 9]),
        (np.array([True, True, False]), [0, 1, 2, 3], [0, 4, 4]),
        ([], [], [0]),
    ):
        found = rows(whole, keep)
        assert found["mask"].tolist() == values and found["mask_offsets"].tolist() == ends
        assert type(found["mask"]) is type(whole["mask"]) and found["mask"].dtype == whole["mask"].dtype
