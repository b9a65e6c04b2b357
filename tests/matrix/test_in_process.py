"""Mask R-CNN, which the matrix leaves to YOLO, from its data to its answers in this process."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco
from tests.stages.ingested import local

from mapsto.config.load import load
from mapsto.core.codecs import decode, encode
from mapsto.core.errors import UserError
from mapsto.data.feed import Feed
from mapsto.data.plan import Run
from mapsto.stages import ingest, train
from mapsto.stages.pipeline import Pipeline, produce

RECIPE = """
name: instances
root: ROOT/artifacts
data: {train: {source: ROOT/fudan, layout: pairs, splits: {val: 0.2, test: 0.3}}}
task:
  kind: detect
  image_size: 64
  model: {name: maskrcnn, backbone: resnet10t, channels: 16, anchor: 12, proposals: 30, hidden: 32}
  min_score: 0.01
train: {epochs: 2, batch_size: 4, workers: 1, optimizer: {kind: adamw, lr: 0.002}}
evaluate: {split: test, batch_size: 4}
"""


def here(setup, world, share, epoch, step):
    """What the loader gives a training's only worker, without Ray."""
    feed = Feed.of(setup.task, setup.datasets, ("train", "val"))
    run = Run.of(feed.streams["train"], feed.streams["val"], setup.config, world.size)
    follows = feed.follow(run)
    return ((run.item(g), follows.batch(g)) for g in range(run.start_of(epoch, step), len(run))), run.steps_per_epoch


def test_mask_rcnn_goes_from_its_data_to_its_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "_summaries", local)
    monkeypatch.setattr(train, "source", here)
    for folder in ("PNGImages", "PedMasks"):
        (tmp_path / "fudan" / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(20):
        image, ids = rng.integers(0, 60, (48, 64, 3), np.uint8), np.zeros((48, 64), np.uint8)
        for object in (1, 2):
            top, left = rng.integers(2, 20), rng.integers(2, 10) + 30 * (object - 1)
            ids[top : top + 20, left : left + 18] = object
        image[ids > 0] += 150
        (tmp_path / "fudan/PNGImages" / f"{number:02d}.png").write_bytes(encode(image, "png"))
        (tmp_path / "fudan/PedMasks" / f"{number:02d}_mask.png").write_bytes(encode(ids, "png"))
    text = RECIPE.replace("ROOT", str(tmp_path))
    with pytest.raises(UserError, match="compress is not supported for detect: maskrcnn"):
        produce(load(text, []), "serve", {"deploy": False}, say=lambda line: None)

    pipeline = Pipeline(load(text, ["compress=null"]), lambda line: None)
    trained = pipeline.produce("train", {"in_process": True})
    assert [json.loads(line)["epoch"] for line in trained.read("history.jsonl").splitlines()] == [1, 2]
    evaluated = pipeline.produce("evaluate")
    found = evaluated.read_json("metrics.json")
    assert found["rows"] == 6 and {"mAP", "mask_mAP", "mask_mAP50"} <= set(found["metrics"])
    assert "data:image/jpeg" in evaluated.read("report.html").decode()
    pipeline.produce("serve", {"deploy": False})

    answered = pipeline.produce("predict", {"inputs": str(tmp_path / "fudan/PNGImages")})
    lines = [json.loads(line) for line in answered.read("predictions.jsonl").splitlines()]
    assert len(lines) == 20 and not [line for line in lines if "error" in line]
    for line in lines:
        answer = line["prediction"]
        assert len(answer["segments"]) == len(answer["boxes"]) and all(
            s["size"] == [48, 64] for s in answer["segments"]
        )
        assert decode(answered.read(line["picture"])).std() > 0
    first = next(line["prediction"] for line in lines if line["prediction"]["boxes"])
    assert coco.decode(first["segments"][0]).shape == (48, 64)
