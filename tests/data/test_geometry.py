"""Pixels, masks, boxes and keypoints through every geometric transform, against torchvision's v2 functions.

torchvision moves keypoints of a flip from pixel to pixel (width - 1 - x) and all others by the same matrix as boxes; here
all are by the matrix, so a flip's differ by one pixel.
"""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mapsto.core.errors import UserError
from mapsto.core.preprocess import Preprocess
from mapsto.data.transforms import (
    COCO_SWAP,
    Decode,
    PadCrop,
    Prepare,
    RandomAffine,
    RandomFlip,
    RandomPerspective,
    RandomResizedCrop,
    RandomRotate,
    RandomScale,
)
from mapsto.data.transforms.moving import carry, keypoints_of, through

HEIGHT, WIDTH = 60, 80


def scene(seed: int) -> dict:
    """A smooth picture, a mask of discs, ten boxes and four points in each, some of them not labelled."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = [np.sin(x * a + b) * np.cos(y * c) for a, b, c in rng.uniform(0.05, 0.2, (3, 3))]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for k in range(1, 4):
        cx, cy, r = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT), rng.uniform(8, 20)
        mask[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = k
    low = rng.uniform(0, (WIDTH - 20, HEIGHT - 20), (10, 2))
    boxes = np.concatenate([low, low + rng.uniform(4, 20, (10, 2))], 1).astype(np.float32)
    points = np.concatenate([rng.uniform(0, (WIDTH, HEIGHT), (10, 4, 2)), rng.integers(0, 3, (10, 4, 1))], 2)
    points *= points[..., 2:] > 0
    return {
        "image": ((np.stack(waves, 2) + 1) * 127).astype(np.uint8),
        "mask": mask,
        "boxes": boxes,
        "box_labels": np.arange(10),
        "crowd": [False] * 10,
        "area": [100.0 * k for k in range(9)] + [None],
        "segments": [f"[[{k}]]" for k in range(10)],
        "keypoints": points.reshape(10, 12).astype(np.float32).tolist(),
    }


def expected(sample: dict, move, *, size=(HEIGHT, WIDTH)) -> dict:
    """torchvision's answer: `move(tv_tensor, interpolation, fill)` on each of the sample's parts."""
    boxes = tv_tensors.BoundingBoxes(
        torch.from_numpy(sample["boxes"]).double(), format="XYXY", canvas_size=(HEIGHT, WIDTH)
    )
    points = np.asarray(sample["keypoints"], np.float64).reshape(10, 4, 3)
    moved = move(tv_tensors.KeyPoints(torch.from_numpy(points[..., :2].copy()), canvas_size=(HEIGHT, WIDTH)))
    pixels = torch.from_numpy(sample["image"]).permute(2, 0, 1)
    mask = tv_tensors.Mask(torch.from_numpy(sample["mask"])[None])
    return {
        "image": move(tv_tensors.Image(pixels), InterpolationMode.BILINEAR, 0).permute(1, 2, 0).numpy(),
        "mask": move(mask, InterpolationMode.NEAREST, 255)[0].numpy(),
        "boxes": move(boxes).numpy(),
        "points": moved.numpy(),
        "visible": points[..., 2],
        "size": size,
    }


def compare(out: dict, want: dict, *, pixels: float = 1.0, mask: float = 0.02, shift=(0.0, 0.0)) -> None:
    height, width = want["size"]
    assert out["image"].shape == (height, width, 3) and out["image"].dtype == np.uint8
    assert np.abs(out["image"].astype(float) - want["image"]).mean() < pixels
    assert (out["mask"] != want["mask"]).mean() < mask
    left = (want["boxes"][:, 2:] - want["boxes"][:, :2] > 0).all(1)
    np.testing.assert_array_equal(out["box_labels"], np.flatnonzero(left))
    np.testing.assert_allclose(out["boxes"], want["boxes"][left], atol=1e-3)
    assert out["segments"] == [f"[[{k}]]" for k in np.flatnonzero(left)] and len(out["crowd"]) == left.sum()
    assert len(out["area"]) == left.sum() and (np.isnan(out["area"]) == (np.flatnonzero(left) == 9)).all()
    place = want["points"] + shift
    inside = (want["visible"] > 0) & (place >= 0).all(-1) & (place <= (width, height)).all(-1)
    wanted = np.concatenate([place, want["visible"][..., None]], -1) * inside[..., None]
    np.testing.assert_allclose(out["keypoints"], wanted[left], atol=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_affine(seed):
    rng, sample = np.random.default_rng(seed), scene(seed)
    degrees, shear = float(rng.uniform(-60, 60)), rng.uniform(-20, 20, 2).tolist()
    translate, zoom = [int(v) for v in rng.integers(-15, 15, 2)], float(rng.uniform(0.6, 1.5))

    def move(part, interpolation=InterpolationMode.NEAREST, fill=None):
        return F.affine(part, degrees, translate, zoom, shear, interpolation, fill=fill)

    out = RandomAffine().move(sample, degrees, tuple(translate), zoom, tuple(shear))
    compare(out, expected(sample, move))


@pytest.mark.parametrize("degrees", [-30.0, 7.0, 90.0, 180.0])
def test_rotate(degrees):
    sample = scene(1)
    want = expected(
        sample, lambda part, mode=InterpolationMode.NEAREST, fill=None: F.rotate(part, degrees, mode, fill=fill)
    )
    compare(RandomRotate(0).turn(sample, degrees), want)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.6])
def test_scale(factor):
    def move(part, interpolation=InterpolationMode.NEAREST, fill=None):
        return F.affine(part, 0.0, [0, 0], factor, [0.0, 0.0], interpolation, fill=fill)

    compare(RandomScale().zoom(scene(2), factor), expected(scene(2), move))


@pytest.mark.parametrize("seed", range(6))
def test_perspective(seed):
    sample = scene(seed)
    start = np.array([[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]], np.float64)
    end = start + np.random.default_rng(seed).uniform(0, 14, (4, 2)) * [[1, 1], [-1, 1], [-1, -1], [1, -1]]

    def move(part, interpolation=InterpolationMode.BILINEAR, fill=None):
        return F.perspective(part, start.tolist(), end.tolist(), interpolation, fill=fill)

    compare(RandomPerspective().bend(sample, end), expected(sample, move))


@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
def test_flip(direction):
    flip = {"horizontal": F.horizontal_flip, "vertical": F.vertical_flip}[direction]
    sample = scene(3)
    out = RandomFlip(1.0, direction).apply(sample, np.random.default_rng(0))
    shift = (1.0, 0.0) if direction == "horizontal" else (0.0, 1.0)
    compare(out, expected(sample, lambda part, *_: flip(part)), pixels=1e-9, mask=1e-9, shift=shift)


@pytest.mark.parametrize("seed", range(6))
def test_resized_crop(seed):
    sample, step = scene(seed), RandomResizedCrop(48, scale=(0.3, 1.0))
    part = step.part(HEIGHT, WIDTH, np.random.default_rng(seed))

    def move(piece, interpolation=InterpolationMode.BILINEAR, fill=None):
        if isinstance(piece, tv_tensors.Mask):  # its centres, not its upper left corners
            return F.resized_crop(tv_tensors.Image(piece), *part, [48, 48], InterpolationMode.NEAREST_EXACT)
        return F.resized_crop(piece, *part, [48, 48], interpolation, antialias=True)

    compare(step.apply(sample, np.random.default_rng(seed)), expected(sample, move, size=(48, 48)), pixels=2.5)


@pytest.mark.parametrize("seed", range(3))
def test_pad_crop(seed):
    sample = scene(seed)
    rng = np.random.default_rng(seed)
    top, left = int(rng.random() * 17), int(rng.random() * 17)

    def move(part, interpolation=None, fill=None):
        return F.crop(F.pad(part, [8] * 4, fill=fill), top, left, HEIGHT, WIDTH)

    out = PadCrop(8, mode="constant").apply(sample, np.random.default_rng(seed))
    compare(out, expected(sample, move), pixels=1e-9, mask=1e-9)


def test_prepare_and_decode_take_keypoints_along():
    sample = {
        "image": np.zeros((40, 80, 3), np.uint8),
        "keypoints": [[40, 20, 2, 80, 40, 1]],
        "boxes": [[0, 0, 80, 40]],
    }
    out = Prepare(Preprocess(40, "letterbox")).apply(sample, np.random.default_rng(0))
    np.testing.assert_allclose(out["keypoints"], [[[20, 20, 2], [40, 30, 1]]])
    out = Decode().apply(sample, np.random.default_rng(0))
    np.testing.assert_allclose(out["keypoints"], [[[40, 20, 2], [80, 40, 1]]])


def test_a_mirror_exchanges_left_and_right():
    points = np.zeros((1, 17, 3), np.float32)
    points[0] = [[k, 2 * k, 2] for k in range(17)]
    sample = {"image": np.zeros((50, 50, 3), np.uint8), "keypoints": points}
    for direction in ("horizontal", "vertical"):
        out = RandomFlip(1.0, direction, COCO_SWAP).apply(sample, np.random.default_rng(0))["keypoints"][0]
        for k in range(17):
            other = k if k == 0 else k + 1 if k % 2 else k - 1
            place = [50 - other, 2 * other] if direction == "horizontal" else [other, 50 - 2 * other]
            np.testing.assert_allclose(out[k], [*place, 2])
    back = RandomFlip(1.0, "horizontal", COCO_SWAP)
    twice = back.apply(back.apply(sample, np.random.default_rng(0)), np.random.default_rng(0))
    np.testing.assert_allclose(twice["keypoints"], points)


def test_columns_of_boxes_go_with_their_boxes_and_must_fit():
    image = np.zeros((20, 20, 3), np.uint8)
    boxes = [[0, 0, 4, 4], [10, 10, 20, 20]]
    sample = {"image": image, "boxes": boxes, "box_labels": [], "keypoints": [[], [12, 12, 2, 0, 0, 0]]}
    out = RandomScale().zoom(sample, 3.0)
    assert out["boxes"].shape == (1, 4) and len(out["box_labels"]) == 0
    np.testing.assert_allclose(out["keypoints"], [[[16, 16, 2], [0, 0, 0]]])
    with pytest.raises(UserError, match="boxes and difficult differ in number: 2, 1"):
        RandomFlip(1.0).apply(sample | {"difficult": [True]}, np.random.default_rng(0))
    with pytest.raises(UserError, match="box 1 has 3 numbers, another 6"):
        keypoints_of({"keypoints": [[1, 2, 2, 3, 4, 2], [1, 2, 2]]})
    with pytest.raises(UserError, match="box 0 has 4 numbers"):
        keypoints_of({"keypoints": [[1, 2, 2, 3]]})
    with pytest.raises(UserError, match="exchanges 1 and 2, but there are 2 points"):
        RandomFlip(1.0, swap=COCO_SWAP).apply(sample, np.random.default_rng(0))
    empty = RandomFlip(1.0).apply({"image": image, "boxes": [], "keypoints": []}, np.random.default_rng(0))
    assert empty["boxes"].shape == (0, 4) and empty["keypoints"].shape[0] == 0


@pytest.mark.parametrize(
    "step",
    [
        RandomAffine(30, (0.1, 0.1), (0.8, 1.2), (10, 10)),
        RandomPerspective(0.5),
        RandomScale(),
        RandomRotate(20),
        RandomResizedCrop(32),
        PadCrop(6),
    ],
    ids=lambda step: type(step).__name__,
)
def test_the_same_generator_gives_the_same_sample_and_another_draw_another(step):
    sample = scene(4)
    before = sample["image"].copy()
    one, same = (step.apply(sample, np.random.default_rng(5)) for _ in range(2))
    other = step.apply(sample, np.random.default_rng(6))
    np.testing.assert_array_equal(one["image"], same["image"])
    np.testing.assert_array_equal(one["boxes"], same["boxes"])
    assert (one["image"] != other["image"]).any()
    np.testing.assert_array_equal(sample["image"], before)


def test_areas_grow_as_what_is_drawn():
    corners = np.array([[20, 10], [30, 10], [30, 18], [20, 18]], np.float64)
    sample = {"boxes": [[20, 10, 30, 18]], "area": [80.0]}
    leaning = np.array([[1.1, 0.2, 3], [-0.1, 0.9, 2], [0, 0, 1]])
    tilted = leaning + np.array([[0, 0, 0], [0, 0, 0], [1e-3, -2e-3, 0]])
    for matrix, close in ((np.diag([2, 0.5, 1]), 1e-9), (leaning, 1e-9), (tilted, 1e-3)):
        x, y = through(corners, matrix).T
        drawn = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
        assert carry(sample, matrix, 400, 400)["area"] == pytest.approx([drawn], rel=close)
