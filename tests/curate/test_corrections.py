"""What a person changed, and nothing else: marks there and back through both tools, edited ones, other images' answers."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections import Counter

import numpy as np
import pytest

from mapsto.core.errors import UserError
from mapsto.curate.annotation import brush, cvat, label_studio
from mapsto.curate.annotation.corrections import correction
from mapsto.curate.annotation.marks import mask_id, mask_label, named, painted, shape, task

from .reviewed import CLASSES, COLUMNS, HEIGHT, SHA, WIDTH, cvat_file, one, row, studio


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tool", ["label-studio", "cvat", "cvat, no mask"])
def test_there_and_back_nothing_has_changed(tool, seed):
    given_row = row(np.random.default_rng(seed), semantic="no" not in tool)
    columns = COLUMNS if "no" not in tool else COLUMNS[:-1]
    each = task(given_row, CLASSES, 3, ".jpg", 0.5)
    assert each.name == "000003-12-ab12cd34.jpg" and named(f"x/images/{each.name}") == (12, "ab12cd34")
    if tool == "label-studio":
        reviewed = label_studio.read(studio([label_studio.write(each)]), "f.json")
    else:
        reviewed = cvat.read(cvat_file(each), "f.xml", semantic="mask" in columns)
    answer = reviewed.answers[0]
    assert (answer.row_id, answer.content, answer.marks.label) == (12, "ab12cd34", CLASSES[2])
    assert not reviewed.passed_over and answer.marks.box_labels == ("cat", "dog", CLASSES[2], "cat")
    whole = [k for k, outline in enumerate(answer.marks.shapes) if outline is None]
    assert len(whole) == {"label-studio": 4, "cvat": 2, "cvat, no mask": 1}[tool]
    np.testing.assert_allclose(answer.marks.boxes[whole], np.array(given_row["boxes"])[whole], rtol=1e-6, atol=1e-12)
    if "mask" in columns:
        np.testing.assert_array_equal(answer.marks.mask, each.marks.mask)
    assert correction(answer, given_row, CLASSES, columns, Counter()) is None


def edited(change):
    given_row = row(np.random.default_rng(1))
    data = studio([label_studio.write(task(given_row, CLASSES, 0, ".jpg"))], change)
    answer = label_studio.read(data, "f.json").answers[0]
    dropped = Counter()
    return given_row, correction(answer, given_row, CLASSES, COLUMNS, dropped), dropped


def test_a_changed_label_alone_is_a_label():
    def change(results):
        results[0]["value"]["choices"] = ["cat"]
        return results

    _, entry, _ = edited(change)
    assert entry == {"row_id": 12, "content_sha256": SHA, "changed": ["label"], "label": "cat", "was": CLASSES[2]}
    _, entry, _ = edited(lambda results: results[1:])
    assert (entry["label"], entry["was"]) == (None, CLASSES[2])


def test_boxes_added_moved_relabelled_and_removed_say_where_they_come_from():
    def change(results):
        boxes = [r for r in results if r["type"] == "rectanglelabels"]
        others = [r for r in results if r["type"] != "rectanglelabels"]
        boxes[0]["value"]["rectanglelabels"] = ["dog"]
        boxes[1]["value"]["width"] *= 1.05
        new = json.loads(json.dumps(boxes[3]))
        new["value"] |= {"x": 0, "y": 0, "width": 1.5, "height": 1.5, "rectanglelabels": ["cat"]}
        outside = json.loads(json.dumps(new))
        outside["value"] |= {"x": 101}
        return [*others, boxes[1], boxes[0], new, outside, boxes[3]]

    given_row, entry, dropped = edited(change)
    assert entry["changed"] == ["boxes"] and entry["origin"] == [1, 0, None, 3]
    assert entry["box_labels"] == ["dog", "dog", "cat", "cat"] and dropped == {"boxes without area inside the image": 1}
    assert entry["boxes"][1] == given_row["boxes"][0] and entry["boxes"][3] == given_row["boxes"][3]
    x0, y0, x1, y1 = given_row["boxes"][1]
    np.testing.assert_allclose(entry["boxes"][0], [x0, y0, min(x0 + (x1 - x0) * 1.05, WIDTH), y1], rtol=1e-6)
    assert entry["segments"] == [None, given_row["segments"][0], None, given_row["segments"][3]]


def test_a_repainted_mask_comes_bit_by_bit():
    import base64

    from mapsto.core.codecs import decode_mask

    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[4:9, 3:20] = 3

    def change(results):
        kept = [r for r in results if r["type"] != "brushlabels"]
        value = {"format": "rle", "rle": brush.encode(ids == 3), "brushlabels": ["3 new name"]}
        return [*kept, {"id": "x", "type": "brushlabels", "from_name": "mask", "to_name": "image", "value": value}]

    _, entry, _ = edited(change)
    assert entry["changed"] == ["mask"]
    np.testing.assert_array_equal(decode_mask(base64.b64decode(entry["mask_png"])), ids)


def test_cvats_two_decimals_are_no_change():
    given_row = row(np.random.default_rng(2), semantic=False)
    root = ET.fromstring(cvat_file(task(given_row, CLASSES, 0, ".jpg")))
    for box in root.iter("box"):
        for key in ("xtl", "ytl", "xbr", "ybr"):
            box.set(key, f"{float(box.get(key)):.2f}")
    for polygon in root.iter("polygon"):
        points = [pair.split(",") for pair in polygon.get("points").split(";")]
        polygon.set("points", ";".join(f"{float(x):.2f},{float(y):.2f}" for x, y in points))
    answer = cvat.read(ET.tostring(root), "f.xml", semantic=False).answers[0]
    assert correction(answer, given_row, CLASSES, COLUMNS, Counter()) is None
    root.find("image/polygon").set("points", "1.25,2;9,2;9,9.5")
    answer = cvat.read(ET.tostring(root), "f.xml", semantic=False).answers[0]
    entry = correction(answer, given_row, CLASSES, COLUMNS, Counter())
    assert entry["changed"] == ["boxes"] and entry["boxes"][1] == [1.25, 2, 9, 9.5] and len(entry["boxes"]) == 4
    assert json.loads(entry["segments"][1]) == [[1.25, 2, 9, 2, 9, 9.5]]
    assert entry["segments"][2:] == given_row["segments"][2:]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"content_sha256": "f" * 64}, "row 12 is another image in this data set"),
        ({"width": 50}, "row 12: its image is 41x30 there, 50x30 in the data set"),
    ],
)
def test_answers_for_other_images_are_refused(change, says):
    answer = label_studio.read(one(), "f.json").answers[0]
    plain = {
        "row_id": 12,
        "content_sha256": SHA,
        "width": WIDTH,
        "height": HEIGHT,
        "label": 0,
        "boxes": [],
        "box_labels": [],
    }
    with pytest.raises(UserError, match=says):
        correction(answer, plain | change, CLASSES, COLUMNS, Counter())


def test_a_new_class_comes_along_for_the_cleaning_to_judge():
    answer = label_studio.read(one(rectanglelabels=["bird"]), "f.json").answers[0]
    entry = correction(answer, row(np.random.default_rng(0)), CLASSES, COLUMNS, Counter())
    assert "bird" not in CLASSES and "bird" in entry["box_labels"]


def test_labels_of_masks_and_shapes():
    assert mask_label(1, ("sky", "road")) == "1 road" and mask_label(9) == "9" and mask_id("1 road") == 1
    for wrong in ("256", "-1", "road", "", "²"):
        with pytest.raises(UserError, match="no mask's label"):
            mask_id(wrong)
    assert painted([], 2, 3).tolist() == [[0] * 3] * 2
    assert shape([], 2, 2) is None and shape({"size": [3, 3], "counts": [9]}, 2, 2) is None
    assert shape({"size": [2, 2], "counts": [1, 3]}, 2, 2).tolist() == [[False, True], [True, True]]
