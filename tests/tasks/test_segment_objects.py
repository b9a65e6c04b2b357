"""Masks that are drawn from a row's objects, against masks painted by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mapsto.core.codecs import encode
from mapsto.core.errors import UserError
from mapsto.core.registry import task_class
from mapsto.core.sample import DatasetInfo
from mapsto.data.annotations import run_lengths

COLUMNS = ("image", "boxes", "box_labels", "segments")


def make(classes=("background", "cat", "dog"), columns=COLUMNS, **changes):
    cls = task_class("segment")
    info = DatasetInfo("s3://b/data", "f:1", ("dog", "cat", "car"), {"train": 9}, columns)
    config = {"kind": "segment", "classes": classes, "image_size": 32, "model": {"widths": [4, 8]}, **changes}
    return cls(cls.Config(**config), {"train": info})


def drawn(task, segments, labels, boxes, split="val"):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    sample = {"image": encode(image), "boxes": boxes, "box_labels": labels, "segments": segments}
    return task.streams(split)[""].transform([sample], np.random.default_rng(0))


def test_objects_become_a_mask_of_the_classes_that_are_named():
    large, small, car = (np.zeros((40, 60), bool) for _ in range(3))
    large[5:30, 10:50], small[10:20, 20:30], car[0:4, 0:9] = True, True, True
    segments = [json.dumps(run_lengths(small)), json.dumps([[10, 5, 50, 5, 50, 30, 10, 30]]), "[]"]
    segments.append(json.dumps(run_lengths(car)))
    boxes = [[20, 10, 30, 20], [10, 5, 50, 30], [39.5, 25.2, 60, 40], [0, 0, 9, 4]]
    task = make()
    found = drawn(task, segments, [0, 1, 1, 2], boxes)
    expected = np.zeros((40, 60), np.uint8)
    expected[25:, 39:] = 255  # the box of the cat that has no segment
    expected[large], expected[small] = 1, 2  # the cat, and the dog on it; a car is none of the classes
    assert task.streams("val")[""].columns == COLUMNS
    np.testing.assert_array_equal(found["mask"].reshape(found["size"]), expected)
    assert set(found) == {"image", "mask", "matrix", "size"}


def test_they_move_with_the_pixels_and_a_row_without_objects_is_background():
    whole = json.dumps(run_lengths(np.ones((40, 60), bool)))
    assert (drawn(make(), [whole], [0], [[0, 0, 60, 40]], "train")["mask"] == 2).all()
    assert (drawn(make(measure_at="input"), [whole], [1], [[0, 0, 60, 40]])["mask"] == 1).all()
    assert not drawn(make(), None, None, None)["mask"].any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"columns": ("image", "boxes", "box_labels")}, r"no masks; segment needs a column `mask` .* or `segments`"),
        ({"classes": ("background", "cta")}, r"none is called cta \(task.classes\), did you mean 'cat'\?"),
        ({"classes": ("cat", "dog")}, "what none of them covers, not cat: put background there"),
        ({"loss": {"class_weights": "balanced"}}, "does not say; set none"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(changes, said):
    with pytest.raises(UserError, match=said):
        make(**changes).check()


def test_the_mask_column_goes_before():
    assert make(("sky", "cat"), ("image", "mask", "boxes", "box_labels", "segments")).streams("val")[""].columns == (
        "image",
        "mask",
    )
