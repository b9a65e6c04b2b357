"""Layouts with boxes, VOC, COCO and YOLO, drawn here: what is found, and what a broken one says."""

from __future__ import annotations

import json

import pytest

from mapsto.core.errors import UserError
from mapsto.data.annotations import NO_AREA
from mapsto.data.sources import listing

from .layouts import HEIGHT, STORE, WIDTH, ingested, picture, put

VOC_XML = """<annotation><size><width>32</width><height>24</height></size>
<object><name>cell</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>3</ymin><xmax>10</xmax><ymax>12</ymax></bndbox></object>
<object><name>disc</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>5</xmax><ymax>9</ymax></bndbox></object></annotation>"""


def test_voc(tmp_path):
    root = tmp_path / "voc"
    for k, name in enumerate("abc"):
        put(root / f"JPEGImages/{name}.jpg", picture(k))
    put(root / "Annotations/a.xml", VOC_XML)
    put(root / "Annotations/b.xml", '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>')
    put(root / "Annotations/gone.xml", VOC_XML)
    put(root / "ImageSets/Main/val.txt", "a\n")
    rows, reasons, dropped, classes = ingested(root, tmp_path, "voc")
    assert classes == ("cell", "disc")
    assert set(rows) == {"a.jpg"} and rows["a.jpg"]["split"] == "val"
    assert rows["a.jpg"]["boxes"] == [[0, 2, 10, 12]] and rows["a.jpg"]["box_labels"] == [0]
    assert rows["a.jpg"]["difficult"] == [True]
    assert dropped == {NO_AREA: 1}
    told = " | ".join(sorted(reasons))
    assert "no XML file of its name" in told and "EntitiesForbidden" in told and "JPEGImages does not have" in told


@pytest.mark.parametrize("width", ["1e999", "nan", "wide", "0", ""])
def test_a_size_of_voc_that_is_none_says_nothing(tmp_path, width):
    put(tmp_path / "voc/JPEGImages/a.jpg", picture())
    put(tmp_path / "voc/Annotations/a.xml", VOC_XML.replace("<width>32<", f"<width>{width}<"))
    rows, reasons, _, _ = ingested(tmp_path / "voc", tmp_path, "voc")
    assert rows["a.jpg"]["boxes"] == [[0, 2, 10, 12]] and not reasons


def coco(images: list[dict], annotations: list[dict], categories: list[dict] | None = None) -> str:
    return json.dumps({"images": images, "annotations": annotations, "categories": categories or []})


CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def test_coco(tmp_path):
    root = tmp_path / "coco"
    for k in (1, 2):
        put(root / f"val2017/{k}.jpg", picture(k))
    images = [{"id": k, "file_name": f"{k}.jpg"} for k in (1, 2)] + [{"id": 9, "file_name": "1.jpg"}]
    rle = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    things = [
        {
            "id": 5,
            "image_id": 1,
            "category_id": 3,
            "bbox": [2, 3, 4, 5],
            "segmentation": [[2, 3, 6, 3, 6, 8]],
            "iscrowd": 0,
            "area": 10.5,
        },
        {"id": 6, "image_id": 1, "category_id": 7, "bbox": [0, 0, 32, 24], "segmentation": rle, "iscrowd": 1},
        {"id": 8, "image_id": 404, "category_id": 7, "bbox": [0, 0, 1, 1]},
    ]
    put(root / "annotations/instances_val2017.json", coco(images, things, CATEGORIES))
    person = [{"id": 5, "image_id": 1, "category_id": 3, "bbox": [2, 3, 4, 5], "keypoints": [1, 2, 2, 0, 0, 0]}]
    put(root / "annotations/person_keypoints_val2017.json", coco(images, person, CATEGORIES))
    words = [{"id": k, "image_id": 2, "caption": f"line\n{k}"} for k in (1, 2)]
    put(root / "annotations/captions_val2017.json", coco(images, words))
    rows, reasons, _, classes = ingested(root, tmp_path, "coco")
    assert classes == ("cat", "dog")
    first, second = rows["1.jpg"], rows["2.jpg"]
    assert first["boxes"] == [[2, 3, 6, 8], [0, 0, 32, 24]] and first["box_labels"] == [0, 1]
    assert first["crowd"] == [False, True] and first["area"] == [10.5, None]
    assert [json.loads(s) for s in first["segments"]] == [[[2, 3, 6, 3, 6, 8]], rle]
    assert first["keypoints"] == [[1, 2, 2, 0, 0, 0], []]
    assert second["boxes"] == [] and second["caption"] == "line 1\nline 2" and second["split"] == "val"
    told = " | ".join(reasons)
    assert "a second image of one file_name (image id 9)" in told and "`images` does not list" in told


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "not COCO's"),
        (coco([{"id": 1}], []), "without id or file_name"),
        (coco([{"id": 1, "file_name": "1.jpg"}], [{"id": 2}]), "without image_id"),
        (coco([{"id": 1, "file_name": "1.jpg"}], [{"id": 2, "image_id": 1, "bbox": [0, 0, 1, 1]}]), "lacks id, bbox or category_id"),
        (
            coco([{"id": 1, "file_name": "1.jpg"}], [{"id": 2, "image_id": 1, "bbox": [0, 0, 1, 1], "category_id": 5}], CATEGORIES),
            "category 5 is not in",
        ),
        (coco([{"id": 1, "file_name": "9.jpg"}], []), "no 9.jpg in"),
    ],
)  # fmt: skip
def test_broken_coco_is_one_line(tmp_path, text, says):
    put(tmp_path / "annotations/instances_val.json", text)
    put(tmp_path / "val/1.jpg", picture())
    with pytest.raises(UserError, match=says) as told:
        list(listing("coco", str(tmp_path), STORE, ""))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("area", ["12", -1, True, float("nan")])
def test_an_area_that_is_none_keeps_its_image_out(tmp_path, area):
    put(tmp_path / "1.jpg", picture())
    thing = {"id": 2, "image_id": 1, "bbox": [0, 0, 4, 4], "category_id": 7, "area": area}
    put(tmp_path / "annotations.json", coco([{"id": 1, "file_name": "1.jpg"}], [thing], CATEGORIES))
    _, reasons, _, _ = ingested(tmp_path, tmp_path / "out", "coco")
    assert list(reasons) == ["area: each is a number of pixels, 0 or more"]


def test_a_coco_file_name_cannot_leave_its_folder(tmp_path):
    put(tmp_path / "1.jpg", picture())
    images = [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "../../etc/passwd"}]
    put(tmp_path / "annotations.json", coco(images, []))
    found = list(listing("coco", str(tmp_path), STORE, ""))
    assert [reference.reason for reference in found] == [None, "its file_name leaves the folder"]


def test_yolo(tmp_path):
    root = tmp_path / "yolo"
    for k, split in enumerate(("train", "val")):
        for name in "ab":
            put(root / f"{split}/images/{name}{split}.jpg", picture(k))
    put(root / "train/labels/atrain.txt", "1 0.5 0.5 0.25 0.5\n0 0 0 0.5 0 0.5 1\n")
    put(root / "val/labels/aval.txt", "5 0.5 0.5 1 1\n")
    put(root / "data.yaml", "names: [leaf, stone]\ntrain: ../train/images\nval: ../val/images\n")
    rows, reasons, _, classes = ingested(root, tmp_path, "yolo")
    assert classes == ("leaf", "stone")
    row = rows["atrain.jpg"]
    assert row["boxes"] == [[12, 6, 20, 18], [0, 0, 16, 24]] and row["box_labels"] == [1, 0]
    assert [json.loads(s) for s in row["segments"]] == [[], [[0, 0, 16, 0, 16, 24]]]
    assert rows["btrain.jpg"]["boxes"] == [] and rows["bval.jpg"]["split"] == "val"
    assert list(reasons) == ["its label file cannot be used: line 1: class 5 of 2"]


def test_yolo_class_names_in_a_text_file_end_with_the_last_name(tmp_path):
    root = tmp_path / "yolo"
    for name in "ab":
        put(root / f"images/{name}.jpg", picture())
    put(root / "labels/a.txt", "1 0.5 0.5 0.25 0.5\n")
    put(root / "labels/b.txt", "2 0.5 0.5 0.25 0.5\n")
    put(root / "labels/classes.txt", "leaf\nstone\n")
    rows, reasons, _, classes = ingested(root, tmp_path, "yolo")
    assert classes == ("leaf", "stone") and set(rows) == {"a.jpg"}
    assert list(reasons) == ["its label file cannot be used: line 1: class 2 of 2"]


def test_yolo_as_darknet_and_cvat_write_it(tmp_path):
    put(tmp_path / "x/obj.names", "cell\nplate\n")
    put(tmp_path / "x/obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    put(tmp_path / "x/train.txt", "data/obj_train_data/a.jpg\n")
    put(tmp_path / "x/obj_train_data/a.jpg", picture(1))
    put(tmp_path / "x/obj_train_data/a.txt", "1 0.5 0.5 0.25 0.5\n")
    put(tmp_path / "x/obj_valid_data/deep/b.jpg", picture(2))
    put(tmp_path / "x/obj_valid_data/c.txt", "0 0.5 0.5 0.25 0.5\n")
    rows, reasons, dropped, classes = ingested(tmp_path / "x", tmp_path / "w", "yolo")
    assert classes == ("cell", "plate") and not dropped
    assert {name: row["split"] for name, row in rows.items()} == {"a.jpg": "train", "b.jpg": "val"}
    assert rows["a.jpg"]["boxes"] == [[WIDTH * 0.375, HEIGHT * 0.25, WIDTH * 0.625, HEIGHT * 0.75]]
    assert list(reasons) == ["a label file of an image that is not there"]
