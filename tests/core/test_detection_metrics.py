"""Against pycocotools, which is not what computes them, and by hand."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mapsto.core.metrics.detection import DetectionMetrics, Found
from mapsto.core.page import Page

CLASSES = ("a", "b", "c")
NAMES = ("mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large", "AR@1", "AR@10", "AR@100")


def boxes_of(rng: np.random.Generator, count: int, side: float) -> np.ndarray:
    low = rng.uniform(0, 300, (count, 2))
    return np.concatenate([low, low + rng.uniform(2, side, (count, 2))], 1).astype(np.float32)


def rows_of(cells: list) -> np.ndarray:
    out = np.empty(len(cells), object)
    for k, cell in enumerate(cells):
        out[k] = cell
    return out


def random_states(
    seed: int, images: int, crowd: float = 0.1, ties: bool = False, areas: bool = False
) -> dict[str, np.ndarray]:
    """Detections near the truth and elsewhere; some images have neither; some objects are crowds."""
    rng = np.random.default_rng(seed)
    columns: dict[str, list] = {
        n: [] for n in ("boxes", "scores", "labels", "true_boxes", "true_box_labels", "true_crowd", "true_difficult")
    }
    for _ in range(images):
        truth = boxes_of(rng, int(rng.integers(0, 8)), rng.choice([20, 80, 200]))
        labels = rng.integers(0, 3, len(truth))
        near = np.repeat(truth, rng.integers(0, 3, len(truth)), axis=0)
        near = near + rng.normal(0, 4, near.shape)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        found = np.concatenate([near, boxes_of(rng, int(rng.integers(0, 5)), 60)]).astype(np.float32)
        scores = rng.random(len(found)).astype(np.float32)
        columns["boxes"].append(found)
        columns["scores"].append(scores.round(1) if ties else scores)
        columns["labels"].append(rng.integers(0, 3, len(found)))
        columns["true_boxes"].append(truth)
        columns["true_box_labels"].append(labels)
        columns["true_crowd"].append(rng.random(len(truth)) < crowd)
        columns["true_difficult"].append(np.zeros(len(truth), bool))
        if areas:  # a segment's: any share of its box, and some have none
            share = np.where(rng.random(len(truth)) < 0.2, np.nan, rng.uniform(0.05, 1, len(truth)))
            columns.setdefault("true_area", []).append(share * (truth[:, 2:] - truth[:, :2]).prod(1))
    return {name: rows_of(cells) for name, cells in columns.items()}


def by_pycocotools(states: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Its twelve numbers, and its precisions."""
    images = [{"id": i} for i in range(len(states["boxes"]))]
    categories = [{"id": c} for c in range(3)]

    def entry(i, c, b):
        x, y, r, d = (float(v) for v in b)
        return {"image_id": i, "category_id": int(c), "bbox": [x, y, r - x, d - y], "area": (r - x) * (d - y)}

    truth, found = [], []
    for i in range(len(images)):
        for b, c, crowd in zip(states["true_boxes"][i], states["true_box_labels"][i], states["true_crowd"][i]):
            truth.append(entry(i, c, b) | {"id": len(truth) + 1, "iscrowd": int(crowd)})
        if "true_area" in states:
            for each, area in zip(truth[-len(states["true_area"][i]) or len(truth) :], states["true_area"][i]):
                each["area"] = each["area"] if np.isnan(area) else float(area)
        for b, s, c in zip(states["boxes"][i], states["scores"][i], states["labels"][i]):
            found.append(entry(i, c, b) | {"score": float(s)})
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = {"images": images, "categories": categories, "annotations": truth}
        gt.createIndex()
        dt = gt.loadRes(found) if found else COCO()
        run = COCOeval(gt, dt, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats, run.eval["precision"]


def metrics(**options) -> DetectionMetrics:
    return DetectionMetrics(CLASSES, lambda output, places: output["found"], **options)


@given(
    seed=st.integers(0, 2**32 - 1), images=st.integers(1, 12), crowd=st.sampled_from([0, 0.3, 1]),
    ties=st.booleans(), areas=st.booleans(),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_all_numbers_are_pycocotools(seed, images, crowd, ties, areas):
    states = random_states(seed, images, crowd, ties, areas)
    theirs, precision = by_pycocotools(states)
    ours = metrics().compute(states)
    expected = dict(zip(NAMES, theirs, strict=False))
    for name, value in expected.items():
        if value == -1:  # nothing of that kind to be found
            assert ours.get(name, 0.0) == 0.0
        else:
            assert ours[name] == pytest.approx(value, abs=1e-6), name
    for k, row in enumerate(metrics().tables(states)["per_class"]):
        own = precision[:, :, k, 0, 2]
        if own[0, 0] == -1:
            assert row["AP"] is None and row["precision"] is None
        else:
            assert row["AP"] == pytest.approx(own.mean(), abs=1e-6)
            assert row["precision"] == pytest.approx(own[0].tolist(), abs=1e-4)
            assert row["objects"] > 0


@pytest.mark.parametrize("dropped", ["boxes", "true_boxes"])
def test_no_detections_and_no_objects_are_no_nan(dropped):
    states = random_states(3, 4)
    names = ("boxes", "scores", "labels") if dropped == "boxes" else [n for n in states if n.startswith("true")]
    for name in names:
        states[name] = rows_of([cell[:0] for cell in states[name]])
    ours = metrics().compute(states)
    assert set(ours.values()) == {0.0}
    assert np.isfinite(metrics().badness(states)).all()
    metrics().draw(Page("t"), metrics().tables(states))


def one(found: list, truth: list, crowd: list | None = None, difficult: list | None = None) -> dict[str, np.ndarray]:
    """An image of (box, score, label) and (box, label)."""
    flags = [np.array(f if f is not None else [False] * len(truth), bool) for f in (crowd, difficult)]
    cells = {
        "boxes": np.array([f[0] for f in found], np.float32).reshape(-1, 4),
        "scores": np.array([f[1] for f in found], np.float32),
        "labels": np.array([f[2] for f in found], int),
        "true_boxes": np.array([t[0] for t in truth], np.float32).reshape(-1, 4),
        "true_box_labels": np.array([t[1] for t in truth], int),
        "true_crowd": flags[0],
        "true_difficult": flags[1],
    }
    return {name: rows_of([cell]) for name, cell in cells.items()}


A, B = [0, 0, 50, 50], [100, 100, 140, 160]


def test_a_difficult_object_counts_neither_way():
    truth = [(A, 0), (B, 0)]
    missed = one([(A, 0.9, 0)], truth, difficult=[False, True])
    found = one([(B, 0.95, 0), (A, 0.9, 0)], truth, difficult=[False, True])
    assert metrics().compute(missed)["mAP"] == pytest.approx(1.0)
    assert metrics().compute(found)["mAP"] == pytest.approx(1.0)
    assert metrics().compute(one([(B, 0.95, 0), (A, 0.9, 0)], truth[:1]))["mAP"] == pytest.approx(0.5)
    assert metrics().tables(found)["per_class"][0]["objects"] == 1


def test_badness_is_misses_and_confident_false_alarms():
    assert metrics().badness(one([(A, 0.9, 0)], [(A, 0)])) == [0]
    assert metrics().badness(one([(A, 0.9, 0), (B, 0.2, 0)], [(A, 0)])) == [0]  # not confident
    assert metrics().badness(one([(A, 0.9, 1)], [(A, 0)])) == pytest.approx([1.9])  # the wrong class
    assert metrics().badness(one([(A, 0.9, 0), (A, 0.8, 0)], [(A, 0), (B, 0)])) == pytest.approx([1.8])
    assert metrics().badness(one([(A, 0.9, 0)], [(A, 0)], crowd=[True])) == [0]
    assert metrics().badness(one([], [(A, 0)], difficult=[True])) == [0]
    assert metrics().badness(one([], [])) == [0]


def test_more_detections_per_image_are_counted_when_asked():
    truth = [([10 * k, 0, 10 * k + 8, 8], 0) for k in range(150)]
    states = one([(box, 0.5 + k / 1000, 0) for k, (box, _) in enumerate(truth)], truth)
    assert metrics().compute(states)["AR@100"] == pytest.approx(100 / 150)
    assert metrics(most=200).compute(states)["AR@200"] == pytest.approx(1.0)
    assert metrics(most=200).compute(states)["mAP"] == pytest.approx(1.0)
    assert set(metrics(most=5).compute(states)) >= {"AR@1", "AR@5"}


def test_a_state_is_in_the_originals_pixels_and_ragged():
    found = [Found(np.ones((k, 4)), np.ones(k), np.zeros(k, int)) for k in (2, 0)]
    seen = []

    def detect(output, places):
        seen.extend(places)
        return found

    batch = {
        "matrix": np.tile(np.eye(3, dtype=np.float32), (2, 1, 1)),
        "size": np.array([[40, 50], [60, 70]]),
        "boxes": np.arange(12, dtype=np.float32).reshape(3, 4),
        "box_labels": np.array([0, 1, 2]),
        "crowd": np.zeros(3, bool),
        "difficult": np.zeros(3, bool),
    }
    batch["area"] = np.array([5, np.nan, 7], np.float32)
    offsets = {f"{name}_offsets": np.array([0, 1, 3]) for name in ("area", "boxes", "box_labels", "crowd", "difficult")}
    state = DetectionMetrics(CLASSES, detect).state({}, batch | offsets)
    assert [(p.height, p.width) for p in seen] == [(40, 50), (60, 70)]
    assert [len(cell) for cell in state["true_boxes"]] == [1, 2]
    assert {len(column) for column in state.values()} == {2}
    assert state["true_area"][0].tolist() == [5] and state["true_area"][1][1] == 7
    assert np.concatenate([state["boxes"], state["boxes"]]).shape == (4,)
