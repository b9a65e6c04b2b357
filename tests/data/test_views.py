"""Mosaics of four rows and several views of one."""

import pickle

import numpy as np
import pytest

from mapsto.core.codecs import encode
from mapsto.core.errors import UserError
from mapsto.data.transforms import Compose, GaussianBlur, Keep, Mosaic, MultiCrop, RandomFlip, RandomResizedCrop


def row(level: int, height: int, width: int, **columns) -> dict:
    """A grey picture with one white box at its middle, and the same in the mask."""
    image = np.full((height, width, 3), level, np.uint8)
    y, x = height // 4, width // 4
    image[y : 3 * y, x : 3 * x] = 255
    box = [[x, y, 3 * x, 3 * y]]
    return {
        "image": image,
        "mask": (image[..., 0] == 255).astype(np.uint8),
        "boxes": box,
        "box_labels": [level],
        "keypoints": [[2 * x, 2 * y, 2]],
        "row_id": level,
    } | columns


ROWS = [row(10, 40, 80), row(20, 80, 80), row(30, 80, 40), row(40, 60, 80)]


def test_a_mosaic_lays_four_rows_about_the_crossing():
    out = Mosaic(64).compose(ROWS, (30, 36), 0.5)
    image, mask = out["image"], out["mask"]
    assert image.shape == (64, 64, 3) and mask.shape == (64, 64) and out["row_id"] == 10
    for x, y, level in ((29, 35, 10), (30, 35, 20), (29, 36, 30), (30, 36, 40)):
        assert (image[y, x] == level).all()
    assert (image[0, 0] == 114).all() and mask[0, 0] == 255
    # widths and heights of the four after scaling: 32x16, 32x32, 16x32, 32x24
    wanted = [[-2 + 8, 20 + 4, -2 + 24, 20 + 12], [30 + 8, 4 + 8, 30 + 24, 4 + 24], [14 + 4, 36 + 8, 14 + 12, 36 + 24]]
    wanted.append([30 + 8, 36 + 6, 30 + 24, 36 + 18])
    np.testing.assert_allclose(out["boxes"], wanted)
    assert out["box_labels"].tolist() == [10, 20, 30, 40]
    for box, point in zip(out["boxes"], out["keypoints"], strict=True):
        np.testing.assert_allclose(point[0], [*(box[:2] + box[2:]) / 2, 2])
        x0, y0, x1, y1 = box.astype(int)
        assert (image[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] == 255).all() and (mask[y0:y1, x0:x1] == 1).all()
    assert (mask == 1).sum() == sum((b[2] - b[0]) * (b[3] - b[1]) for b in out["boxes"])


def test_a_mosaic_cuts_boxes_at_its_rim_and_drops_slivers():
    cut = Mosaic(64, least=0.0).compose(ROWS, (16, 16), 1.0)
    assert (cut["boxes"] >= 0).all() and (cut["boxes"] <= 64).all()
    few = Mosaic(64, least=0.9).compose(ROWS, (16, 16), 1.0)
    assert 0 < len(few["boxes"]) < len(cut["boxes"]) and len(few["box_labels"]) == len(few["boxes"])


def test_a_mosaic_through_compose_is_a_function_of_its_generator_and_rows():
    coded = [
        sample | {"image": encode(sample["image"], "png"), "mask": encode(sample["mask"], "png")} for sample in ROWS
    ]
    transform = pickle.loads(pickle.dumps(Compose(Mosaic(64), RandomFlip(0.5), Keep("image", "boxes", "mask"))))
    one, same, other = (transform(coded, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one["image"], same["image"])
    assert (one["image"] != other["image"]).any() and set(one) == {"image", "boxes", "mask"}
    alone = Compose(Mosaic(64, p=0.0))(coded, np.random.default_rng(0))
    assert alone["image"].shape == (64, 64, 3) and len(alone["boxes"]) == 1
    np.testing.assert_allclose(alone["boxes"], [[16, 24, 48, 40]])


def test_rows_that_do_not_fit_are_refused_by_name():
    with pytest.raises(ValueError, match="needs four rows, not 1"):
        Compose(Mosaic(64))(ROWS[:1], np.random.default_rng(0))
    without = {name: value for name, value in ROWS[1].items() if name != "boxes"}
    with pytest.raises(UserError, match="some of its rows have no boxes"):
        Mosaic(64).compose([ROWS[0], without, *ROWS[2:]], (32, 32), 0.5)
    with pytest.raises(UserError, match="boxes without box_labels"):
        Mosaic(64).compose([ROWS[0], ROWS[1] | {"box_labels": []}, *ROWS[2:]], (32, 32), 0.5)
    with pytest.raises(UserError, match="2 and 3 keypoints"):
        Mosaic(64).compose([row(1, 40, 40, keypoints=[[1, 1, 2] * n]) for n in (3, 2, 3, 3)], (32, 32), 0.5)
    none = Mosaic(64).compose([sample | {"box_labels": [], "keypoints": [[]]} for sample in ROWS], (32, 32), 0.5)
    assert len(none["box_labels"]) == 0 and none["keypoints"].shape == (4, 0, 3)
    empty = Mosaic(64).compose([ROWS[0], row(1, 9, 9, boxes=[], box_labels=[], keypoints=[]), *ROWS[2:]], (32, 32), 0.5)
    assert len(empty["boxes"]) == 3 and empty["keypoints"].shape == (3, 1, 3)


def test_several_views_differ_and_repeat():
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    large, small = (
        (RandomResizedCrop(32, (0.4, 1.0)), RandomFlip()),
        (RandomResizedCrop(16, (0.05, 0.4)), GaussianBlur(1.0)),
    )
    crop = MultiCrop(large, large, small)
    one, same, other = (
        crop.apply({"image": encode(image, "png"), "label": 3}, np.random.default_rng(s)) for s in (0, 0, 1)
    )
    assert {name: getattr(value, "shape", value) for name, value in one.items()} == {
        "label": 3,
        "view0": (32, 32, 3),
        "view1": (32, 32, 3),
        "view2": (16, 16, 3),
    }
    for name in ("view0", "view1", "view2"):
        np.testing.assert_array_equal(one[name], same[name])
        assert (one[name] != other[name]).any()
    assert (one["view0"] != one["view1"]).any()
    placed = {"image": image, "label": 3, "mask": image[..., 0], "boxes": np.ones((1, 4)), "box_labels": np.ones(1)}
    assert set(crop.apply(placed, np.random.default_rng(0))) == {"label", "view0", "view1", "view2"}
    stacked = MultiCrop(large, large, stack="views").apply({"image": image}, np.random.default_rng(0))
    np.testing.assert_array_equal(stacked["views"][0], one["view0"])
    assert stacked["views"].shape == (2, 32, 32, 3) and "image" not in stacked
    with pytest.raises(ValueError, match="different sizes"):
        MultiCrop(large, small, stack="views").apply({"image": image}, np.random.default_rng(0))
