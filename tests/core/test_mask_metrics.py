"""Mask mAP against pycocotools on random masks, and states in parts: the same to the last digit."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mapsto.core.batches import stack
from mapsto.core.instances import packed, tight
from mapsto.core.metrics.detection import DetectionMetrics, Found
from mapsto.core.metrics.segmentation import SegmentationMetrics
from mapsto.core.page import Page
from mapsto.core.sample import Arrays
from mapsto.engine.evaluate import in_row_order

CLASSES = ("a", "b", "c")
NAMES = ("mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large", "AR@1", "AR@10", "AR@100")
SIZE = (90, 120)


def shape(rng: np.random.Generator) -> np.ndarray:
    """An ellipse, cut by the image's edges."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    centre, reach = rng.uniform(0, SIZE), rng.uniform(3, 45, 2)
    mask = ((y - centre[0]) / reach[0]) ** 2 + ((x - centre[1]) / reach[1]) ** 2 <= 1
    return mask if mask.any() else np.ones(SIZE, bool)


def box_of(mask: np.ndarray) -> np.ndarray:
    patch = tight(mask)
    return np.array([patch.left, patch.top, patch.left + patch.pixels.shape[1], patch.top + patch.pixels.shape[0]])


def drawn(seed: int, images: int, crowd: float) -> list[dict[str, Any]]:
    """Of each image truth and detections near it and elsewhere, as whole masks; some images have neither."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(images):
        truth = [shape(rng) for _ in range(rng.integers(0, 5))]
        near = [np.roll(mask, rng.integers(-4, 5, 2), (0, 1)) for mask in truth for _ in range(rng.integers(0, 3))]
        found = [*near, *(shape(rng) for _ in range(rng.integers(0, 3)))]
        out.append(
            {
                "truth": truth,
                "true_labels": rng.integers(0, 3, len(truth)),
                "crowd": rng.random(len(truth)) < crowd,
                "found": found,
                "scores": rng.random(len(found)).astype(np.float32).round(1 if seed % 2 else 6),
                "labels": rng.integers(0, 3, len(found)),
            }
        )
    return out


def metrics() -> DetectionMetrics:
    return DetectionMetrics(CLASSES, lambda output, places: output["found"], masks=True)


def states(images: list[dict[str, Any]], first: int = 0) -> dict[str, np.ndarray]:
    """What the metrics make of a batch, with the images' numbers as rows."""
    samples, found = [], []
    for image in images:
        pixels, places = packed([tight(mask) for mask in image["truth"]])
        boxes = np.array([box_of(m) for m in image["truth"]], np.float32).reshape(-1, 4)
        flags = {"crowd": image["crowd"], "difficult": np.zeros(len(boxes), bool)}
        samples.append(
            {
                **flags,
                "boxes": boxes,
                "box_labels": image["true_labels"],
                "masks": pixels,
                "mask_places": places,
                "matrix": np.eye(3),
                "size": np.array(SIZE),
            }
        )
        boxes = np.array([box_of(m) for m in image["found"]], np.float32).reshape(-1, 4)
        found.append(Found(boxes, image["scores"], image["labels"], tuple(tight(m) for m in image["found"])))
    batch = stack(samples, ("boxes", "box_labels", "crowd", "difficult", "masks", "mask_places"))
    output: Any = {"found": found}
    return metrics().state(output, batch) | {"row_id": np.arange(first, first + len(images))}


def by_pycocotools(images: list[dict[str, Any]]) -> np.ndarray:
    """Its twelve numbers of masks."""

    def entry(image: int, label: int, mask: np.ndarray) -> dict[str, Any]:
        text = coco.encode(np.asfortranarray(mask, np.uint8))
        return {"image_id": image, "category_id": int(label), "segmentation": text, "area": float(mask.sum())}

    truth, found = [], []
    for k, image in enumerate(images):
        for mask, label, crowd in zip(image["truth"], image["true_labels"], image["crowd"], strict=True):
            box = box_of(mask).astype(float)
            more = {"id": len(truth) + 1, "iscrowd": int(crowd), "bbox": [*box[:2], *(box[2:] - box[:2])]}
            truth.append(entry(k, label, mask) | more)
        for mask, label, score in zip(image["found"], image["labels"], image["scores"], strict=True):
            found.append(entry(k, label, mask) | {"score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = {
            "images": [{"id": k, "height": SIZE[0], "width": SIZE[1]} for k in range(len(images))],
            "categories": [{"id": c} for c in range(3)],
            "annotations": truth,
        }
        gt.createIndex()
        dt = gt.loadRes(found) if found else COCO()
        run = COCOeval(gt, dt, "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats


@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 6), crowd=st.sampled_from([0, 0.3, 1]))
@settings(max_examples=12, deadline=None)
def test_all_mask_numbers_are_pycocotools(seed: int, images: int, crowd: float) -> None:
    data = drawn(seed, images, crowd)
    ours = metrics().compute(states(data))
    for name, value in zip(NAMES, by_pycocotools(data), strict=False):
        assert ours.get(f"mask_{name}", 0.0) == pytest.approx(max(value, 0.0), abs=1e-6), name


def test_an_object_without_a_mask_counts_neither_way_by_masks() -> None:
    data = drawn(3, 1, 0)
    data[0] |= {"truth": [shape(np.random.default_rng(k)) for k in range(2)], "true_labels": np.array([0, 0])}
    data[0] |= {"crowd": np.zeros(2, bool), "found": data[0]["truth"][:1]}
    data[0] |= {"scores": np.array([0.9], np.float32), "labels": np.array([0])}
    state = states(data)
    assert metrics().compute(state)["mask_mAP"] == pytest.approx(0.5, abs=0.01)
    state["true_masks"][0][1] = ""
    values = metrics().compute(state)
    assert values["mask_mAP"] == pytest.approx(1.0) and values["mAP"] == pytest.approx(0.5, abs=0.01)
    table = metrics().tables(state)
    assert table["per_class"][0]["mask_AP"] == pytest.approx(1.0)
    page = Page("t")
    metrics().draw(page, table)
    assert "mask_AP" in page.html() and metrics().primary == "mask_mAP"


def in_parts(whole: list[Any], count: int, state: Any) -> dict[str, np.ndarray]:
    """The states of the images in `count` parts, dealt out as cards are, and gathered."""
    parts = []
    for k in range(count):
        numbers = list(range(k, len(whole), count))
        part = state([whole[n] for n in numbers])
        parts.append(part | {"row_id": np.array(numbers)})
    return in_row_order(parts)


@given(seed=st.integers(0, 2**32 - 1), images=st.integers(3, 7))
@settings(max_examples=8, deadline=None)
def test_detections_in_one_two_or_three_parts_are_equal_to_the_last_digit(seed: int, images: int) -> None:
    data = drawn(seed, images, 0.2)
    first, *others = (in_parts(data, count, states) for count in (1, 2, 3))
    values, tables = metrics().compute(first), metrics().tables(first)
    for other in others:
        assert metrics().compute(other) == values
        assert metrics().tables(other) == tables


@given(seed=st.integers(0, 2**32 - 1), images=st.integers(3, 8))
@settings(max_examples=8, deadline=None)
def test_segmentations_in_one_two_or_three_parts_are_equal_to_the_last_digit(seed: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, (images, 12, 15)).astype(np.uint8)
    truth[truth == 3] = 255
    data = [(rng.normal(0, 1, (3, 12, 15)).astype(np.float32), mask) for mask in truth]
    measure = SegmentationMetrics(CLASSES)

    def state(part: list[Any]) -> dict[str, np.ndarray]:
        output: Arrays = {"logits": np.stack([logits for logits, _ in part])}
        return measure.state(output, {"mask": np.stack([mask for _, mask in part])})

    first, *others = (in_parts(data, count, state) for count in (1, 2, 3))
    values = measure.compute(first)
    assert all(measure.compute(other) == values for other in others)
    assert all(measure.tables(other) == measure.tables(first) for other in others)
