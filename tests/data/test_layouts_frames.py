"""What COCO's and VOC's files say of an image as a whole: its size, its licence, whether it is listed; and the classes they declare."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from mapsto.core.errors import UserError
from mapsto.data.sources import Told, listing

from .layouts import HEIGHT, STORE, WIDTH, ingested, picture, put

CLASSES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 5, "name": "newt"}]
BOX = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [2, 3, 4, 5]}


def coco(path, images: list[dict], annotations: list[dict], **more) -> None:
    put(path, json.dumps({"images": images, "annotations": annotations, "categories": CLASSES, **more}))


def turned() -> bytes:
    """A photograph of WIDTH x HEIGHT whose orientation turns it to HEIGHT x WIDTH."""
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(out, "JPEG", exif=exif)
    return out.getvalue()


@pytest.mark.parametrize(
    ("size", "data", "reason"),
    [
        ((WIDTH, HEIGHT), picture(), None),
        ((0, 0), picture(), None),
        ((2 * WIDTH, 2 * HEIGHT), picture(), "annotations and image differ in size: 64x48, 32x24"),
        ((HEIGHT, WIDTH), turned(), None),
        (
            (WIDTH, HEIGHT), turned(),
            "annotations and image differ in size: 32x24, 24x32 (were they made before its orientation was applied?)",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_annotations_of_another_size_keep_their_image_out(tmp_path, layout, size, data, reason):
    root = tmp_path / "in"
    if layout == "coco":
        put(root / "1.jpg", data)
        coco(root / "annotations.json", [{"id": 1, "file_name": "1.jpg", "width": size[0], "height": size[1]}], [BOX])
    else:
        put(root / "JPEGImages/1.jpg", data)
        box = "<object><name>x</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>"
        sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
        put(root / "Annotations/1.xml", f"<annotation>{sides}{box}</annotation>")
    rows, reasons, _, _ = ingested(root, tmp_path, layout)
    assert (list(rows), list(reasons)) == ((["1.jpg"], []) if reason is None else ([], [reason]))


@pytest.mark.parametrize(
    ("size", "says"),
    [([HEIGHT, WIDTH], None), ([WIDTH, HEIGHT], "24x32, 32x24"), (None, "?, 32x24"), ([1], "1, 32x24")],
)
def test_an_rle_of_another_size_keeps_its_image_out(tmp_path, size, says):
    put(tmp_path / "in/1.jpg", picture())
    rle = {"counts": [0, HEIGHT * WIDTH]} | ({"size": size} if size else {})
    coco(tmp_path / "in/annotations.json", [{"id": 1, "file_name": "1.jpg"}], [BOX | {"segmentation": rle}])
    rows, reasons, _, _ = ingested(tmp_path / "in", tmp_path, "coco")
    assert len(rows) == (says is None)
    assert [reason.removeprefix("RLE and image differ in size: ").split(" (")[0] for reason in reasons] == [says][
        : len(reasons)
    ]


def test_classes_are_the_categories_by_their_ids_with_or_without_instances(tmp_path):
    put(tmp_path / "in/1.jpg", picture())
    coco(tmp_path / "in/annotations.json", [{"id": 1, "file_name": "1.jpg"}], [BOX])
    rows, _, _, classes = ingested(tmp_path / "in", tmp_path, "coco")
    assert classes == ("cat", "newt", "dog") and rows["1.jpg"]["box_labels"] == [2]


def test_licences_come_along(tmp_path):
    for k in (1, 2, 3):
        put(tmp_path / f"in/{k}.jpg", picture(k))
    images = [{"id": k, "file_name": f"{k}.jpg", "license": k} for k in (1, 2, 3)]
    known = [{"id": 1, "name": "CC BY 4.0", "url": "https://x"}, {"id": 2, "url": "https://y"}, {"name": "nobody's"}]
    coco(tmp_path / "in/annotations.json", images, [BOX], licenses=known)
    rows, _, _, _ = ingested(tmp_path / "in", tmp_path, "coco")
    assert {name: row["license"] for name, row in rows.items()} == {
        "1.jpg": "CC BY 4.0", "2.jpg": "https://y", "3.jpg": None,
    }  # fmt: skip


def test_boxes_of_images_that_are_not_listed_make_no_column_of_boxes(tmp_path):
    put(tmp_path / "in/val2017/1.jpg", picture())
    images = [{"id": 1, "file_name": "1.jpg"}]
    words = [{"id": 1, "image_id": 1, "caption": "a disc"}]
    coco(tmp_path / "in/annotations/captions_val2017.json", images, words)
    coco(tmp_path / "in/annotations/instances_val2017.json", [], [BOX | {"image_id": 404, "area": 3}])
    rows, reasons, _, _ = ingested(tmp_path / "in", tmp_path, "coco")
    assert rows["1.jpg"]["caption"] == "a disc" and "boxes" not in rows["1.jpg"]
    assert list(reasons) == ["annotations of an image that `images` does not list"]
    coco(tmp_path / "in/annotations/instances_val2017.json", [], [BOX, BOX | {"id": 2, "image_id": 404, "area": 3}])
    rows, _, _, _ = ingested(tmp_path / "in", tmp_path / "again", "coco")
    assert rows["1.jpg"]["boxes"] == [[2, 3, 6, 8]] and "area" not in rows["1.jpg"]


def test_panoptic_files_are_told_of(tmp_path):
    put(tmp_path / "in/val2017/1.jpg", picture())
    coco(tmp_path / "in/annotations/panoptic_val2017.json", [{"id": 1, "file_name": "1.jpg"}], [])
    with pytest.raises(UserError, match="of panoptic and stuff segmentation alone"):
        list(listing("coco", str(tmp_path / "in"), STORE, ""))
    coco(tmp_path / "in/annotations/instances_val2017.json", [{"id": 1, "file_name": "1.jpg"}], [BOX])
    told = Told()
    assert len(list(listing("coco", str(tmp_path / "in"), STORE, "", told=told))) == 1
    assert [note.split("annotations/")[1] for note in told.notes] == [
        "panoptic_val2017.json: not read: panoptic segmentation, which is no layout of boxes or captions"
    ]
