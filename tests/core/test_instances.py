"""Masks of objects against pycocotools (drawing, run lengths), SciPy (pasting) and the masks that transforms move."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from scipy.ndimage import map_coordinates

from mapsto.core.errors import UserError
from mapsto.core.instances import (
    NOTHING,
    Patch,
    from_segment,
    packed,
    pasted,
    tight,
    to_counts,
    to_polygons,
    unpacked,
)
from mapsto.core.preprocess import Preprocess
from mapsto.data.transforms import Prepare, RandomAffine, RandomFlip, RandomResizedCrop, Step

HEIGHT, WIDTH = 40, 56
SEEDS = st.integers(0, 2**32 - 1)


def blob(rng: np.random.Generator, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Some rectangles together, which may touch the image's edges; now and then nothing."""
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(0, 4)):
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + rng.integers(1, height), x : x + rng.integers(1, width)] = True
    return mask


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_run_lengths_are_cocos(seed: int) -> None:
    mask = blob(np.random.default_rng(seed))
    ours, theirs = to_counts(tight(mask), HEIGHT, WIDTH), coco.encode(np.asfortranarray(mask, np.uint8))
    assert ours.encode() == theirs["counts"]
    read = from_segment(json.dumps({"size": [HEIGHT, WIDTH], "counts": ours}), HEIGHT, WIDTH)
    np.testing.assert_array_equal(read.whole(HEIGHT, WIDTH), mask)


@given(SEEDS, st.booleans())
@example(1362925, False)  # a line that passes between two pixels: drawn in its window, it takes the other one
@settings(max_examples=60, deadline=None)
def test_polygons_are_drawn_as_coco_draws_them(seed: int, outside: bool) -> None:
    rng = np.random.default_rng(seed)
    low, high = (-10, 70) if outside else (0, 40)
    polygons = [rng.uniform(low, high, 2 * rng.integers(3, 8)).round(2).tolist() for _ in range(rng.integers(1, 4))]
    theirs = coco.decode(coco.merge(coco.frPyObjects(polygons, HEIGHT, WIDTH)))
    assert (from_segment(json.dumps(polygons), HEIGHT, WIDTH).whole(HEIGHT, WIDTH) != theirs).sum() <= len(polygons)


def test_polygons_answered_are_nearly_the_mask() -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    mask = (y - 20) ** 2 + (x - 30) ** 2 < 15**2
    again = from_segment(json.dumps(to_polygons(tight(mask))), HEIGHT, WIDTH).whole(HEIGHT, WIDTH)
    assert (again & mask).sum() / (again | mask).sum() > 0.9
    assert to_polygons(NOTHING) == []


@pytest.mark.parametrize(
    ("segment", "said"),
    [
        ([[0, 0, 5, 5]], "six or more finite numbers"),
        ([[0, 0, 5, 5, 9, float("nan")]], "six or more finite numbers"),
        ({"size": [40, 40], "counts": [1600]}, r"of size \[40, 40\]; the image is \[40, 56\]"),
        ({"size": [40, 56], "counts": [5, 5]}, "add up to 10"),
        ({"size": [40, 56]}, "with `counts`"),
        ("text", "six or more"),
    ],
)
def test_what_is_no_segmentation_of_the_image_is_refused(segment: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        from_segment(json.dumps(segment), HEIGHT, WIDTH)


def test_an_empty_segmentation_is_no_mask() -> None:
    patch = from_segment("[]", HEIGHT, WIDTH)
    assert patch.area == 0 and not patch.whole(HEIGHT, WIDTH).any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "step",
    [
        Prepare(Preprocess(28, "letterbox")),
        Prepare(Preprocess(64, "stretch")),
        RandomResizedCrop(48, (0.1, 0.9)),
        RandomFlip(1.0),
        RandomFlip(1.0, "vertical"),
    ],
    ids=["letterbox", "stretch", "crop", "flip", "down"],
)
def test_a_mask_moves_as_a_mask_of_class_ids_does(step: Step, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = blob(rng) | (np.arange(WIDTH) == 20)
    sample = {
        "image": np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        "mask": mask.astype(np.uint8),
        "boxes": [[0, 0, WIDTH, HEIGHT]],
        "masks": [tight(mask)],
    }
    out = step.apply(sample, np.random.default_rng(seed))
    np.testing.assert_array_equal(out["masks"][0].whole(*out["image"].shape[:2]), out["mask"] == 1)


def test_a_turned_mask_is_where_the_turned_pixels_are() -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:30, 15:40] = True
    image = np.repeat(mask[..., None], 3, 2).astype(np.uint8) * 255
    sample = {"image": image, "boxes": [[15, 10, 40, 30]], "masks": [tight(mask)]}
    out = RandomAffine().move(sample, degrees=30, scale=1.2)
    ours, theirs = out["masks"][0].whole(HEIGHT, WIDTH), out["image"][..., 0] >= 128
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.97


def test_an_object_that_leaves_the_image_takes_its_mask_along() -> None:
    masks = [Patch(0, 0, np.ones((4, 4), bool)), Patch(40, 30, np.ones((5, 5), bool))]
    sample = {"image": np.zeros((40, 56, 3), np.uint8), "boxes": [[0, 0, 4, 4], [40, 30, 45, 35]], "masks": masks}
    out = RandomAffine().move(sample, translate=(-20, 0))
    assert len(out["boxes"]) == len(out["masks"]) == 1
    assert (out["masks"][0].left, out["masks"][0].top, out["masks"][0].area) == (20, 30, 25)


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_pasting_is_scipys_interpolation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.random((7, 7)).astype(np.float32)
    low = rng.uniform(-15, 40, 2)
    box = np.concatenate([low, low + rng.uniform(0.5, 40, 2)])
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    place = [(y - box[1]) / (box[3] - box[1]) * 7 - 0.5, (x - box[0]) / (box[2] - box[0]) * 7 - 0.5]
    seen = map_coordinates(cells, place, order=1, mode="nearest")
    inside = (x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])
    sure = np.abs(seen - 0.5) > 1e-4
    ours = pasted(cells, box, HEIGHT, WIDTH).whole(HEIGHT, WIDTH)
    np.testing.assert_array_equal(ours[sure], (inside & (seen >= 0.5))[sure])


def test_packed_masks_come_out_as_they_went_in() -> None:
    rng = np.random.default_rng(0)
    patches = [tight(blob(rng)) for _ in range(6)] + [NOTHING]
    again = unpacked(*packed(patches))
    assert [(p.left, p.top, p.pixels.shape) for p in again] == [(p.left, p.top, p.pixels.shape) for p in patches]
    assert all((a.pixels == b.pixels).all() for a, b in zip(again, patches, strict=True))
    assert unpacked(*packed([])) == []
