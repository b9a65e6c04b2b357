"""Large images through windows: objects found once and whole, logits blended, small images answered as without windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mapsto.core.artifact import Artifact
from mapsto.core.codecs import decode, encode
from mapsto.core.registry import task_class
from mapsto.core.sample import DatasetInfo, Geometry
from mapsto.core.storage import Storage
from mapsto.engine.batches import to_numpy
from mapsto.serving.predictor import Asked, Predictor

CLASSES = ("a", "b", "c")
SMALL = {"backbone": "resnet10t", "channels": 16, "anchor": 12, "proposals": 30, "hidden": 32}
WINDOWS = {"size": 96, "overlap": 0.5}


def detect(windows: dict | None = WINDOWS, name: str = "fasterrcnn", **more: Any):
    info = DatasetInfo("u", "f", CLASSES, {"train": 1}, ("image", "boxes", "box_labels", "segments"))
    cls = task_class("detect")
    config = cls.Config(kind="detect", image_size=64, windows=windows, model={"name": name, **SMALL}, **more)
    return cls(config, {"train": info})


def segment(windows: dict | None, size: int = 32):
    cls, info = task_class("segment"), DatasetInfo("u", "f", (), {"train": 1}, ("image", "mask"))
    config = {"classes": ["dark", "bright", "odd"], "image_size": size, "model": {"widths": [4, 8]}}
    return cls(cls.Config(kind="segment", windows=windows, **config), {"train": info})


def seen(task, height: int, width: int, objects: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What a perfect detector answers for each window: what of the objects lies in it, wholly or in part."""
    rows = []
    for window in task.windows.cut(height, width):
        place = task.preprocess.geometry(window.height, window.width)
        limits = [window.width, window.height]
        boxes = np.clip(objects - [window.left, window.top] * 2, 0, [*limits, *limits])
        boxes[(boxes[:, 2:] <= boxes[:, :2]).any(1)] = 0
        there = boxes.any(1)
        inverse = np.linalg.inv(place.matrix)
        inputs = (boxes.reshape(-1, 2, 2) @ inverse[:2, :2].T + inverse[:2, 2]).reshape(-1, 4)
        whole = (boxes == objects - [window.left, window.top] * 2).all(1)
        rows.append((inputs, there * np.where(whole, 0.7, 0.9), labels))  # a part is often the surer answer
    boxes, scores, kinds = (np.stack([row[k] for row in rows]) for k in range(3))
    return {"boxes": boxes.astype(np.float32), "scores": scores.astype(np.float32), "labels": kinds}


@given(st.integers(97, 400), st.integers(20, 400), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_every_object_that_fits_the_overlap_is_found_once_and_whole(height: int, width: int, seed: int) -> None:
    task, rng = detect(), np.random.default_rng(seed)
    sides = rng.uniform(6, np.minimum(40, (width - 1, height - 1)), (3, 2))
    low = rng.uniform(0, np.array([width, height]) - sides)
    objects = np.concatenate([low, low + sides], 1)
    output = seen(task, height, width, objects, np.arange(3))
    (answer,) = task.decode(output, [Geometry(np.eye(3), height, width)])
    assert sorted(answer["labels"]) == ["a", "b", "c"]
    order = np.argsort(answer["labels"])
    np.testing.assert_allclose(np.array(answer["boxes"])[order], objects, atol=0.02)


def test_parts_of_an_object_larger_than_the_overlap_stay_where_no_window_sees_it_whole() -> None:
    task = detect()
    objects = np.array([[10.0, 20, 290, 60]])
    (answer,) = task.decode(seen(task, 96, 300, objects, np.array([1])), [Geometry(np.eye(3), 96, 300)])
    boxes = np.array(answer["boxes"])
    assert len(boxes) > 1 and boxes[:, 0].min() == pytest.approx(10) and boxes[:, 2].max() == pytest.approx(290)


def run(model: torch.nn.Module, task, samples: list[dict]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        inputs = task.inputs(task.collate(samples))
        return to_numpy(task.forward(model, {name: torch.from_numpy(value) for name, value in inputs.items()}))


@pytest.mark.parametrize("kind", ["fasterrcnn", "maskrcnn", "segment"])
def test_an_image_that_fits_one_window_is_answered_exactly_as_without(kind: str) -> None:
    make = segment if kind == "segment" else lambda windows: detect(windows, kind, min_score=0.0)
    plain, windowed = make(None), make(WINDOWS)
    torch.manual_seed(0)
    model = plain.build({}).eval()
    rng = np.random.default_rng(0)
    images = [encode(rng.integers(0, 256, (h, w, 3), np.uint8), "png") for h, w in ((60, 90), (96, 96), (3, 5))]
    answers = []
    for task in (plain, windowed):
        prepared = [task.prepare({"image": image}) for image in images]
        output = run(model, task, [sample for sample, _ in prepared])
        answers.append(task.decode(output, [place for _, place in prepared]))
    for a, b in zip(*answers, strict=True):
        assert set(a) == set(b)
        if kind == "segment":
            np.testing.assert_array_equal(a.pop("mask"), b.pop("mask"))
        assert a == b
    assert kind == "segment" or any(answer["boxes"] for answer in answers[0])


def bright(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The logits of a net that knows: class 1 where a pixel of the input is bright."""
    shade = batch["image"][..., 0].astype(np.float32) - 127.5
    return {"logits": np.stack([-shade, shade, np.full_like(shade, -999)], 1)}


def test_windows_of_the_inputs_size_give_each_pixel_its_own_answer() -> None:
    task = segment({"size": 32, "overlap": 0.3})
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (77, 130)).astype(np.uint8)
    image = encode(np.repeat(truth[..., None] * 255, 3, 2), "png")
    sample, place = task.prepare({"image": image})
    (answer,) = task.decode(bright(task.collate([sample])), [place])
    np.testing.assert_array_equal(answer["mask"], truth)
    assert task.render(sample, answer).shape == (77, 260, 3)

    stream = task.streams("val")[""]
    other = {"image": encode(np.zeros((20, 40, 3), np.uint8)), "mask": encode(np.full((20, 40), 255, np.uint8), "png")}
    rows = [stream.transform([r], rng) for r in ({"image": image, "mask": encode(truth, "png")}, other)]
    batch = task.collate(rows) | {"row_id": np.arange(2)}
    state = task.metrics().state(bright(batch), batch)
    assert state["confusion"].sum() == truth.size  # the second image is void
    assert task.metrics().compute(state)["mIoU"] == 1.0


def test_windows_larger_than_the_input_draw_outlines_without_stairs() -> None:
    """Logits that are linear in place: their boundary is a straight line, which enlarging them must not break."""
    task = segment({"size": 128, "overlap": 0.25})
    place, scale = Geometry(np.eye(3), 256, 256), 128 / 32
    inner = (np.arange(32) + 0.5) * scale
    rows = []
    for window in task.windows.cut(256, 256):
        slope = (window.left + inner)[None] - 0.5 * (window.top + inner)[:, None] - 70
        rows.append(np.stack([-slope, slope, np.full_like(slope, -999)]))
    (mask,) = task.answers({"logits": np.stack(rows).astype(np.float32)}, [place])
    y, x = np.mgrid[:256, :256] + 0.5
    wrong = mask != (x - 0.5 * y - 70 > 0)
    assert wrong.mean() < 1e-3  # by the nearest logits 0.004


def test_logits_weigh_less_near_a_windows_edge() -> None:
    task = segment({"size": 32, "overlap": 0.5})
    windows = task.windows.cut(32, 48)
    assert [window.left for window in windows] == [0, 16]
    logits = np.zeros((2, 3, 32, 32), np.float32)
    logits[0, 0], logits[1, 1] = 1, 1  # the left window says 0, the right one 1
    (mask,) = task.answers({"logits": logits}, [Geometry(np.eye(3), 32, 48)])
    assert (mask[:, :24] == 0).all() and (mask[:, 24:] == 1).all()


def test_detections_through_windows_are_measured_in_the_originals_pixels() -> None:
    task = detect()
    rows, outputs = [], []
    for height, width in ((96, 200), (50, 60)):
        objects = np.array([[5.0, 6, 35, 40], [width - 30.0, 8, width - 4, 45]])
        sample = {"image": encode(np.zeros((height, width, 3), np.uint8)), "boxes": objects.tolist()}
        rows.append(task.streams("test")[""].transform([sample | {"box_labels": [0, 2]}], np.random.default_rng(0)))
        outputs.append(seen(task, height, width, objects, np.array([0, 2])))
    batch = task.collate(rows) | {"row_id": np.arange(2)}
    output = {name: np.concatenate([one[name] for one in outputs]) for name in outputs[0]}
    assert len(task.inputs(batch)["image"]) == len(output["scores"]) == 5
    assert task.metrics().compute(task.metrics().state(output, batch))["mAP"] == pytest.approx(1.0)


class Fixed:
    """A runtime that answers what it is told."""

    def __init__(self, task, output) -> None:
        self.task, self.run = task, lambda inputs: output


@pytest.mark.parametrize("form", ["rle", "polygon"])
def test_predict_writes_masks_and_a_picture_of_the_whole_image(tmp_path: Path, form: str) -> None:
    from pycocotools import mask as coco

    task = detect(name="maskrcnn", segments=form)
    objects = np.array([[10.0, 6, 40, 40], [150.0, 30, 190, 70]])
    output = seen(task, 90, 220, objects, np.array([0, 2]))
    output["masks"] = np.ones((*output["scores"].shape, 28, 28), np.float32)
    (tmp_path / "large.png").write_bytes(encode(np.full((90, 220, 3), 128, np.uint8), "png"))
    runtime: Any = Fixed(task, output)
    predictor = Predictor(runtime, Storage(), Artifact(str(tmp_path / "out"), Storage()))
    (line,) = predictor([Asked(0, str(tmp_path / "large.png"))])
    answer = json.loads(json.dumps(line))["prediction"]
    assert set(answer) == {field.name for field in task.signature().outputs}
    assert answer["labels"] == ["a", "c"] and len(answer["segments"]) == 2
    for segment_, (left, top, right, bottom) in zip(answer["segments"], objects.astype(int), strict=True):
        whole = np.zeros((90, 220), np.uint8)
        whole[top:bottom, left:right] = 1
        if form == "rle":
            np.testing.assert_array_equal(coco.decode(segment_), whole)
        else:
            mask = coco.decode(coco.merge(coco.frPyObjects(segment_, 90, 220)))
            assert (mask & whole).sum() / (mask | whole).sum() > 0.9
    picture = decode((tmp_path / "out" / line["picture"]).read_bytes())
    assert picture.shape == (round(90 * 320 / 220), 320, 3)
    inside, outside = (
        picture[int(25 * 320 / 220), int(25 * 320 / 220)],
        picture[int(20 * 320 / 220), int(80 * 320 / 220)],
    )
    assert (outside == 128).all() and (inside != 128).any()
