"""Boxes against torchvision, and what a ragged batch is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms, box_iou

from mapsto.core.batches import pieces, rows, stack
from mapsto.core.boxes import areas, iou, nms
from mapsto.core.preprocess import Preprocess


def boxes_of(rng: np.random.Generator, count: int) -> np.ndarray:
    low = rng.uniform(0, 60, (count, 2))
    return np.concatenate([low, low + rng.uniform(0, 40, (count, 2))], 1).astype(np.float32)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 40), threshold=st.sampled_from([0.3, 0.6]))
@settings(max_examples=30, deadline=None)
def test_iou_and_suppression_are_torchvisions(seed, count, threshold):
    rng = np.random.default_rng(seed)
    a, b = boxes_of(rng, count), boxes_of(rng, 7)
    np.testing.assert_allclose(iou(a, b), box_iou(torch.from_numpy(a), torch.from_numpy(b)), atol=1e-6)
    scores, labels = rng.random(count).astype(np.float32), rng.integers(0, 3, count)
    theirs = batched_nms(torch.from_numpy(a), torch.from_numpy(scores), torch.from_numpy(labels), threshold)
    assert nms(a, scores, labels, threshold, count).tolist() == theirs.tolist()
    assert nms(a, scores, labels, threshold, 3).tolist() == theirs.tolist()[:3]


def test_empty_and_inverted_boxes_have_no_area_and_no_nan():
    odd = np.array([[5, 5, 5, 9], [8, 8, 2, 2]], np.float32)
    assert areas(odd).tolist() == [0, 0]
    assert iou(odd, odd).tolist() == [[0, 0], [0, 0]]
    assert nms(odd[:0], np.empty(0), np.empty(0, int), 0.5, 10).shape == (0,)


def samples() -> list[dict]:
    counts = (2, 0, 3)
    return [
        {"image": np.full((2, 2, 3), k, np.uint8), "boxes": np.full((n, 4), k, np.float32)}
        for k, n in enumerate(counts)
    ]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("keep", [[0, 2], [1], [2, 1, 0], []])
def test_rows_of_a_ragged_batch_keep_their_own(kind, keep):
    batch = stack(samples(), ragged=("boxes",)) | {"row_id": np.arange(3)}
    assert batch["boxes"].shape == (5, 4) and batch["boxes_offsets"].tolist() == [0, 2, 2, 5]
    if kind == "torch":
        batch = {name: torch.from_numpy(value) for name, value in batch.items()}
    kept = rows(batch, keep)
    assert [len(piece) for piece in pieces(kept, "boxes")] == [[2, 0, 3][k] for k in keep]
    assert [float(piece[0, 0]) for piece in pieces(kept, "boxes") if len(piece)] == [k for k in keep if k != 1]
    assert kept["row_id"].tolist() == keep and type(kept["boxes"]) is type(batch["boxes"])
    assert kept["boxes_offsets"].dtype == batch["boxes_offsets"].dtype


def test_a_ragged_name_is_ragged_though_all_rows_are_alike():
    batch = stack([{"boxes": np.zeros((2, 4), np.float32)}] * 3, ragged=("boxes", "absent"))
    assert batch["boxes"].shape == (6, 4) and set(batch) == {"boxes", "boxes_offsets"}


@given(height=st.integers(1, 200), width=st.integers(1, 200), mode=st.sampled_from(["letterbox", "stretch", "crop"]))
@settings(max_examples=25, deadline=None)
def test_geometry_is_known_without_the_image(height, width, mode):
    preprocess = Preprocess(32, mode)
    _, geometry = preprocess(np.zeros((height, width, 3), np.uint8))
    known = preprocess.geometry(height, width)
    assert (known.height, known.width) == (geometry.height, geometry.width) == (height, width)
    np.testing.assert_array_equal(known.matrix, geometry.matrix)
