"""Detection: every family learns, decodes what it was built to say, and odd data is trained on or refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mapsto.core.batches import pieces, rows
from mapsto.core.codecs import encode
from mapsto.core.errors import UserError
from mapsto.core.registry import task_class
from mapsto.core.sample import DatasetInfo, Geometry
from mapsto.core.task import Context, Unsupported
from mapsto.engine.batches import to_numpy
from mapsto.engine.evaluate import in_row_order
from mapsto.serving import protocol

CLASSES = ("cat", "dog", "fox")
COLUMNS = ("image", "boxes", "box_labels", "segments")
SIZE = 64
MODELS = {
    "yolo": {"widths": [4, 8, 16, 16, 16]},
    "retinanet": {"backbone": "resnet10t", "channels": 16, "anchor": 12},
    "ssd": {"backbone": "resnet10t", "channels": 16, "anchor": 12},
    "fasterrcnn": {"backbone": "resnet10t", "channels": 16, "anchor": 12, "proposals": 30, "hidden": 32},
    "maskrcnn": {"backbone": "resnet10t", "channels": 16, "anchor": 12, "proposals": 30, "hidden": 32},
}
DENSE = ("yolo", "retinanet", "ssd")


def make(name: str = "yolo", columns: tuple[str, ...] = COLUMNS, **options):
    cls, info = task_class("detect"), DatasetInfo("s3://b/d", "f:1", CLASSES, {"train": 4}, columns)
    return cls(
        cls.Config(kind="detect", image_size=SIZE, model={"name": name, **MODELS[name]}, **options), {"train": info}
    )


def context(step: int = 0) -> Context:
    return Context(step, 0, 10, torch.Generator().manual_seed(0), 0, 1, lambda tensor: tensor)


def drawn(count: int = 4, shape: tuple[int, int] = (60, 80)) -> list[dict]:
    """Grey images, each but the last with a bright and a dark square."""
    rng, out = np.random.default_rng(0), []
    for k in range(count):
        image = rng.integers(100, 140, (*shape, 3)).astype(np.uint8)
        boxes = [[8 + k, 10, 28 + k, 30], [40, 20 + k, 70, 50 + k]] if k < count - 1 else []
        for (x0, y0, x1, y1), level in zip(boxes, (255, 0), strict=False):
            image[y0:y1, x0:x1] = level
        out.append(
            {
                "image": encode(image),
                "boxes": [list(map(float, b)) for b in boxes],
                "box_labels": [0, 2][: len(boxes)],
                "segments": [json.dumps([[a, b, c, b, c, d, a, d]]) for a, b, c, d in boxes],
            }
        )
    return out


def batch(task, split: str, samples: list[dict]) -> dict[str, np.ndarray]:
    stream = task.streams(split)[""]
    made = [
        stream.transform([{name: s.get(name) for name in stream.columns}], np.random.default_rng(k))
        for k, s in enumerate(samples)
    ]
    return task.collate(made) | {"row_id": np.arange(len(made)), "valid": np.ones(len(made), bool)}


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_family_learns_and_answers(name):
    task = make(name, augment={"crop": "none", "flip": 0})
    task.check()
    torch.manual_seed(0)
    model = task.build({})
    (phase,) = task.phases(model)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3 if name == "yolo" else 2e-3)
    whole, losses = tensors(batch(task, "train", drawn())), []
    for step in range(40 if name == "yolo" else 8):  # YOLO's targets rise with its boxes, and its loss at first
        total, count, logs = phase.loss(model, whole, context(step))
        assert torch.isfinite(total) and float(count) > 0 and all(torch.isfinite(v) for v in logs.values())
        optimizer.zero_grad()
        total.backward()
        for parameter_name, parameter in model.named_parameters():  # DistributedDataParallel waits for every one
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), parameter_name
        optimizer.step()
        losses.append(float(total.detach() / count))
    assert np.mean(losses[-2:]) < 0.8 * np.mean(losses[:2]), losses

    model.eval()
    arrays = batch(task, "val", drawn())
    with torch.no_grad():
        output = to_numpy(task.forward(model, tensors(arrays)))
    assert all(len(value) == 4 for value in output.values())
    state = task.metrics().state(output, arrays) | {"row_id": arrays["row_id"]}
    gathered = in_row_order([{k: v[2:] for k, v in state.items()}, {k: v[:2] for k, v in state.items()}])
    assert gathered["row_id"].tolist() == [0, 1, 2, 3]
    values = task.metrics().compute(gathered)
    assert values == task.metrics().compute(state) and all(np.isfinite(v) for v in values.values())


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_images_without_boxes_train_and_padding_costs_nothing(name, mode):
    task = make(name)
    model = task.build({}).train(mode == "train")
    (phase,) = task.phases(model)
    empty = batch(
        task, "train", [{**sample, "boxes": None, "box_labels": None, "segments": None} for sample in drawn(2)]
    )
    assert empty["boxes"].shape == (0, 4)
    total, count, _ = phase.loss(model, tensors(empty), context())
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(count)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    if name != "ssd":  # which takes its negatives by the number of its positives
        assert float(total.detach()) > 0
    model.zero_grad()
    padding = tensors(batch(task, "train", drawn(2)) | {"valid": np.zeros(2, bool)})
    total, count, logs = phase.loss(model, padding, context())
    total.backward()
    assert float(total.detach()) == float(count) == 0 and not any(float(v) for v in logs.values())
    assert all(not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_padding_rows_do_not_count(name):
    task = make(name)
    model = task.build({}).eval()
    full = tensors(batch(task, "train", drawn()))
    (phase,) = task.phases(model)
    found = []
    for part in ({**full, "valid": torch.tensor([True, True, False, False])}, rows(full, [0, 1])):
        torch.manual_seed(0)  # Faster R-CNN samples
        with torch.no_grad():
            total, count, _ = phase.loss(model, part, context())
        found.append((float(total), float(count)))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def place(grid, box, side: float) -> int:
    """The anchor nearest to a box's centre with about that side."""
    centres, sides = (grid.anchors[:, :2] + grid.anchors[:, 2:]) / 2, grid.anchors[:, 2] - grid.anchors[:, 0]
    middle = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    return int((np.linalg.norm(centres - middle, axis=1) + 10 * np.abs(sides - side)).argmin())


def coded(grid, anchor: int, box) -> np.ndarray:
    """The raw output at an anchor that means this box: what `Grid` says, the other way round."""
    left, top, right, bottom = grid.anchors[anchor]
    wide, high, x, y = right - left, bottom - top, (left + right) / 2, (top + bottom) / 2
    if grid.coding == "distances":
        return np.log([(x - box[0]) / wide, (y - box[1]) / high, (box[2] - x) / wide, (box[3] - y) / high])
    middle = [((box[0] + box[2]) / 2 - x) / wide, ((box[1] + box[3]) / 2 - y) / high]
    growth = np.log([(box[2] - box[0]) / wide, (box[3] - box[1]) / high])
    return np.array([*middle, *growth]) * grid.weights


@pytest.mark.parametrize("name", DENSE)
def test_decode_inverts_a_constructed_output(name):
    task = make(name)
    grid = task.answers.views[0].grid
    head = task.build({}).eval()(torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8))
    deltas, logits = np.zeros(head["deltas"].shape, np.float32), np.full(head["logits"].shape, -9.0, np.float32)
    original = {"dog": [20.0, 30.0, 90.0, 110.0], "fox": [100.0, 10.0, 160.0, 50.0]}
    _, geometry = task.preprocess(np.zeros((120, 160, 3), np.uint8))  # 0.4 times, and 8 rows of grey above and below
    for label, box in original.items():
        inside = np.array(box) * 0.4 + [0, 8, 0, 8]
        anchor = place(grid, inside, 8)
        deltas[0, anchor] = coded(grid, anchor, inside)
        logits[0, anchor, CLASSES.index(label) + grid.background] = 3 if label == "dog" else 2
    if grid.background:
        logits[0, :, 0] = np.where(logits[0, :, 1:].max(1) > 0, -9, 9)
    # An answer in the letterbox's border, and one that a better one of its class suppresses.
    border, twin = place(grid, [10, 0, 20, 4], 8), place(grid, np.array(original["dog"]) * 0.4 + [6, 14, 6, 14], 8)
    for anchor, inside, label in ((border, [8.0, 0.0, 22.0, 7.0], 0), (twin, np.array([8.0, 20.4, 36.4, 52.0]), 1)):
        deltas[0, anchor], logits[0, anchor] = coded(grid, anchor, inside), -9
        logits[0, anchor, label + grid.background] = 1
    (answer,) = task.decode({"deltas": deltas, "logits": logits}, [geometry])
    assert answer["labels"] == ["dog", "fox"]
    np.testing.assert_allclose(answer["boxes"], list(original.values()), atol=0.02)
    assert answer["scores"] == sorted(answer["scores"], reverse=True)
    assert (answer["width"], answer["height"]) == (160, 120)
    wire = json.loads(protocol.encode([answer]))["predictions"][0]
    assert wire == answer
    assert set(wire) == {field.name for field in task.signature().outputs}


def test_the_best_of_very_many_candidates_are_kept():
    task = make("yolo", max_boxes=5)
    count = len(task.answers.views[0].grid.anchors)
    logits = np.random.default_rng(0).normal(2, 1, (1, count, 3)).astype(np.float32)
    deltas = np.full((1, count, 4), -2, np.float32)  # small boxes: nothing is suppressed
    (answer,) = task.decode({"deltas": deltas, "logits": logits}, [Geometry(np.eye(3), SIZE, SIZE)])
    best = np.sort(1 / (1 + np.exp(-logits.ravel())))[::-1][:5]
    np.testing.assert_allclose(answer["scores"], best, atol=1e-4)
    assert task.decode({"deltas": deltas, "logits": logits - 99}, [Geometry(np.eye(3), SIZE, SIZE)])[0]["boxes"] == []


def test_a_broken_models_answer_is_refused():
    task = make("yolo")
    shape = (2, len(task.answers.views[0].grid.anchors), 3)
    logits = np.zeros(shape, np.float32)
    logits[1, 5, 0] = np.nan
    deltas, places = np.zeros((2, shape[1], 4), np.float32), [Geometry(np.eye(3), SIZE, SIZE)] * 2
    with pytest.raises(UserError, match=r"the model's logits are not finite \(row 1 of its batch\)"):
        task.decode({"deltas": deltas, "logits": logits}, places)


def test_truth_stays_in_the_originals_pixels_and_crowds_are_not_trained_on():
    task = make("yolo", (*COLUMNS, "crowd", "difficult", "area"), augment={"crop": "none", "flip": 0})
    sample = drawn(2)[0] | {"crowd": [True, False], "difficult": [False, True], "area": [7.5, None]}
    measured, trained = batch(task, "test", [sample]), batch(task, "train", [sample])
    np.testing.assert_array_equal(measured["boxes"], sample["boxes"])
    assert measured["crowd"].tolist() == [True, False] and measured["difficult"].tolist() == [False, True]
    assert measured["size"].tolist() == [[60, 80]]
    np.testing.assert_array_equal(measured["area"], [7.5, np.nan])
    assert np.isnan(batch(task, "test", [sample | {"area": None}])["area"]).all()
    with pytest.raises(UserError, match="2 boxes have 1 areas; each needs one, or none has"):
        batch(task, "test", [sample | {"area": [1.0]}])
    place = Geometry(measured["matrix"][0], 60, 80)
    assert len(trained["boxes"]) == 1 and trained["box_labels"].tolist() == [2]
    np.testing.assert_allclose(place.boxes(trained["boxes"]), sample["boxes"][1:], atol=1e-3)


@pytest.mark.parametrize("shape", [(3, 5), (20, 400), (61, 83)])
def test_images_smaller_or_longer_than_the_input(shape):
    task = make("yolo")
    sample = {
        "image": encode(np.full((*shape, 3), 90, np.uint8)),
        "boxes": [[0, 0, shape[1], shape[0]]],
        "box_labels": [1],
    }
    model = task.build({})
    whole = tensors(batch(task, "train", [sample] * 2))
    total, _, _ = task.phases(model)[0].loss(model, whole, context())
    assert torch.isfinite(total) and [len(b) for b in pieces(whole, "boxes")] == [1, 1]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_five_thousand_boxes_in_an_image(name):
    task = make(name)
    low = np.random.default_rng(0).uniform(0, 55, (5000, 2))
    boxes = np.concatenate([low, low + np.random.default_rng(1).uniform(0.01, 5, (5000, 2))], 1)
    sample = {"image": encode(np.full((60, 60, 3), 90, np.uint8)), "boxes": boxes.tolist(), "box_labels": [0] * 5000}
    model = task.build({})
    total, _, _ = task.phases(model)[0].loss(model, tensors(batch(task, "train", [sample])), context())
    total.backward()
    assert torch.isfinite(total)


def test_what_does_not_fit_is_one_line():
    with pytest.raises(UserError, match="no boxes with labels; detect needs COCO"):
        make(columns=("image", "label")).check()
    with pytest.raises(UserError, match="3 boxes have 0 box_labels"):
        batch(make(), "train", [{**drawn()[0], "boxes": [[0, 0, 9, 9]] * 3, "box_labels": []}])
    for options, message in (
        ({"model": {"name": "yolo", "backbone": "resnet50"}}, "yolo has no backbone; it has widths, blocks"),
        ({"model": {"name": "ssd", "widths": [2, 4, 8, 8, 8]}}, "ssd has no widths"),
        ({"model": {"name": "yolo", "widths": [3, 4, 8, 8, 8]}}, "must be even"),
        ({"model": {"name": "ssd", "anchor": 60}, "image_size": 64}, "leaves no larger boxes"),
        ({"image_size": 100}, "multiple of 32"),
    ):
        with pytest.raises(ValueError, match=message):
            task_class("detect").Config(kind="detect", **options)


@pytest.mark.parametrize(
    "name", ["fasterrcnn", "maskrcnn", "ssd", "retinanet"]
)  # yolo goes through the matrix, int8 too
def test_what_is_exported_answers_as_torch_does(name):
    from mapsto.compress.export import to_onnx
    from mapsto.serving.runtimes import OnnxRuntime, direct

    task = make(name)
    spec = task.export()
    if name in ("fasterrcnn", "maskrcnn"):
        assert isinstance(spec, Unsupported) and "set compress to null" in spec.reason
        return
    model = task.build({}).eval()
    data = to_onnx(direct(task).forward, model, spec)
    runtime = OnnxRuntime(task, {"kind": "onnx", "precision": "fp32"}, data, 1, "cpu")
    image = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    with torch.no_grad():
        ours = to_numpy(model(torch.from_numpy(image)))
    theirs = runtime.run({"image": image})
    assert set(ours) == set(theirs)
    for key in ours:
        np.testing.assert_allclose(theirs[key], ours[key], atol=2e-3)


def test_the_picture_shows_each_box_where_it_lies():
    task = make()
    original = np.full((30, 60, 3), 128, np.uint8)
    sample, _ = task.prepare({"image": original})
    answer = {"boxes": [[10.0, 5.0, 50.0, 25.0]], "labels": ["fox"], "scores": [0.9], "width": 60, "height": 30}
    shown = task.render(sample, answer)  # the input: letterboxed, drawn 5 times as large
    assert shown.shape == (320, 320, 3)
    plain = task.render(sample, {**answer, "boxes": [], "labels": [], "scores": []})
    changed = np.argwhere((shown != plain).any(2))
    scale = SIZE / 60 * 5
    assert changed[:, 0].max() == pytest.approx((25 + 15) * scale, abs=6)
    assert changed[:, 1].min() == pytest.approx(10 * scale, abs=6) and changed[:, 1].max() == pytest.approx(
        50 * scale, abs=6
    )
    assert task.render({"image": original}, answer).shape == (160, 320, 3)
    assert task.truth({"box_labels": [2, 0, 2]}) == "1 cat, 2 fox" and task.truth({}) == "nothing"


@pytest.mark.parametrize("name", ["yolo", "maskrcnn"])
def test_mosaics_and_turned_pictures_carry_their_objects(name):
    task = make(name, augment={"mosaic": 1.0, "rotate": 15, "scale": [0.9, 1.0]})
    stream, rng = task.streams("train")[""], np.random.default_rng(0)
    assert stream.partners == 3 and not task.streams("val")[""].partners
    rows_of = [{column: sample.get(column) for column in stream.columns} for sample in drawn(4, (100, 100))]
    made = [stream.transform(rows_of, rng) for _ in range(20)]
    for sample in made:
        assert sample["image"].shape == (SIZE, SIZE, 3) and len(sample["boxes"]) == len(sample["box_labels"])
        for (x0, y0, x1, y1), label in zip(sample["boxes"].round().astype(int), sample["box_labels"], strict=True):
            inside = sample["image"][y0:y1, x0:x1]
            assert min(x1 - x0, y1 - y0) < 4 or (
                inside.max() > 180 if label == 0 else inside.min() < 70
            )  # bright, or dark
    assert max(len(sample["boxes"]) for sample in made) > 2  # more than one of the rows has
