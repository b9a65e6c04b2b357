"""Label Studio's files against their documented form; broken ones."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from mapsto.core.errors import UserError
from mapsto.curate.annotation import brush, label_studio
from mapsto.curate.annotation.marks import task

from .reviewed import CLASSES, COLUMNS, HEIGHT, WIDTH, one, row


def test_label_studio_has_percent_and_its_interface_every_name():
    given_row = row(np.random.default_rng(0), boxes=[[4.1, 3, 20.5, 18]], box_labels=[1], segments=["[]"])
    written = label_studio.write(task(given_row, CLASSES, 0, ".png"), ("sky", "road"))
    box = next(r for r in written["predictions"][0]["result"] if r["type"] == "rectanglelabels")
    expected = {"x": 10, "y": 10, "width": 40, "height": 50, "rotation": 0, "rectanglelabels": ["dog"]}
    assert {k: pytest.approx(v) if isinstance(v, int) else v for k, v in expected.items()} == box["value"]
    assert (box["original_width"], box["original_height"]) == (WIDTH, HEIGHT)
    assert written["data"]["image"] == "/data/local-files/?d=images/000000-12-ab12cd34.png"
    root = ET.fromstring(label_studio.config(CLASSES, COLUMNS, [1, 7, 255], ("sky", "road")))
    assert [e.get("value") for e in root.find("Choices")] == list(CLASSES)
    assert [e.get("value") for e in root.find("BrushLabels")] == ["1 road", "7", "255"]
    used = {r["from_name"] for r in written["predictions"][0]["result"]}
    assert used == {e.get("name") for e in root if e.tag != "Image"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "f.json: not JSON"),
        (b"{}", "not a list of tasks"),
        (b"[3]", "task 1: not as Label Studio's export"),
        (b'[{"id": 1, "image": "a.jpg", "choice": "cat"}]', "not JSON-MIN"),
        (b'[{"data": {"image": "a.jpg"}, "annotations": []}]', "the image 'a.jpg' is none of a review's"),
        (one(rotation=30), "task 1: a rotated box"),
        (one(image_rotation=90, where="result"), "a rotated box or image"),
        (one(original_width=7, where="result"), "its image is 7x30 there, 41x30 in the data set"),
        (one(rectanglelabels=["cat", "dog"]), "a region of 2 classes"),
        (one(x="a"), "task 1: not as"),
        (one(x=float("nan")), "no finite number"),
        (one(type="choices", value={"choices": ["a", "b"]}, where="result"), "2 classes chosen"),
        (one(type="brushlabels", value={"rle": [0, 0], "brushlabels": ["1"]}, where="result"), "ends too early"),
        (one(type="brushlabels", value={"rle": brush.encode(np.ones((HEIGHT, WIDTH), bool)), "brushlabels": ["road"]}, where="result"),
         "'road' is no mask's label"),
    ],
)  # fmt: skip
def test_broken_label_studio_files_say_where(data, says):
    with pytest.raises(UserError, match=says) as told:
        label_studio.read(data, "f.json")
    assert "\n" not in str(told.value)


def test_tasks_without_an_answer_and_other_regions_are_counted():
    tasks = json.loads(one()) + json.loads(one()) + json.loads(one())
    tasks[0]["annotations"] = []
    tasks[1]["annotations"][0]["was_cancelled"] = True
    tasks[2]["annotations"][0]["result"].append({"type": "ellipselabels", "value": {}})
    newer = json.loads(json.dumps(tasks[2]["annotations"][0])) | {"updated_at": "2026-01-02"}
    newer["result"][0]["value"]["rectanglelabels"] = ["dog"]
    tasks[2]["annotations"].insert(0, newer)
    found = label_studio.read(json.dumps(tasks).encode(), "f")
    assert found.answers[0].marks.box_labels == ("dog",) and len(found.answers) == 1
    assert found.passed_over == {
        "tasks without an annotation": 1, "tasks skipped by the person": 1, "regions of the kind ellipselabels": 1,
        "older annotations of a task that has several": 1,
    }  # fmt: skip
