"""CVAT's files against their documented form; broken ones."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from mapsto.core.codecs import encode
from mapsto.core.errors import UserError
from mapsto.curate.annotation import cvat
from mapsto.curate.annotation.marks import task

from .reviewed import CLASSES, HEIGHT, WIDTH, cvat_file, row


def test_cvat_has_what_its_description_says():
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[2:4, 5:8] = [[0, 7, 7], [7, 0, 7]]
    given_row = row(np.random.default_rng(0), mask=encode(pixels, "png"))
    root = ET.fromstring(cvat_file(task(given_row, CLASSES, 0, ".jpg")))
    image = root.find("image")
    assert image.attrib == {"id": "0", "name": "000000-12-ab12cd34.jpg", "width": "41", "height": "30"}
    mask = image.find("mask")
    place = {k: mask.get(k) for k in ("label", "left", "top", "width", "height", "rle")}
    assert place == {"label": "7", "left": "5", "top": "2", "width": "3", "height": "2", "rle": "1, 3, 1, 1"}
    assert image.find("tag").get("label") == CLASSES[2]
    groups = [p.get("group_id") for p in image.findall("polygon")]
    assert groups == [None, "3", "3"] and image.find("polygon").get("points") == "1.25,2.0;9.0,2.0;9.0,7.5"
    assert [e.text for e in root.findall("meta/task/labels/label/name")] == [*CLASSES, "1", "7", "255"]


def image(inner: str, name: str = "000000-12-ab12cd34.jpg") -> bytes:
    return f'<annotations><image id="0" name="{name}" width="41" height="30">{inner}</image></annotations>'.encode()


BOMB = b'<!DOCTYPE a [<!ENTITY x "aaaa"><!ENTITY y "&x;&x;">]><annotations><image name="&y;"/></annotations>'


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<a", "f.xml: not XML"),
        (BOMB, "refused .EntitiesForbidden.: it defines entities"),
        (b"<annotations><track/><image/></annotations>", "export them as 'CVAT for images 1.1'"),
        (b"<html/>", "not CVAT's annotations"),
        (image("", "cat.jpg"), "the image 'cat.jpg' is none of a review's"),
        (image('<box label="cat" rotation="3" xtl="1" ytl="1" xbr="2" ybr="2"/>'), "a rotated box"),
        (image('<box label="cat" xtl="1" ytl="1" xbr="2"/>'), "KeyError: 'ybr'"),
        (image('<box label="cat" xtl="nan" ytl="1" xbr="2" ybr="3"/>'), "no finite number"),
        (image('<tag label="cat"/><tag label="dog"/>'), "2 tags .cat, dog."),
        (image('<polygon label="cat" points="1,2;3,4"/>'), "a polygon of 2 points"),
        (image('<polygon label="cat" points="1,2;3"/>'), "not as CVAT for images 1.1 has it"),
        (image('<mask label="1" rle="2,3" left="0" top="0" width="2" height="2"/>'), "run lengths: 2 that add up to 5"),
        (image('<mask label="1" rle="2,2" left="40" top="0" width="2" height="2"/>'), "leaves the image of 41x30"),
        (image('<mask label="1" rle="4" left="0" top="0" width="2" height="2"/>'), "a mask without a pixel"),
        (image('<mask label="x" rle="0,4" left="0" top="0" width="2" height="2"/>'), "'x' is no mask's label"),
    ],
)
def test_broken_cvat_files_say_where(data, says):
    with pytest.raises(UserError, match=says) as told:
        cvat.read(data, "f.xml", semantic=True)
    assert "\n" not in str(told.value)


def test_other_shapes_are_counted_and_later_masks_cover():
    inner = (
        '<points label="cat" points="1,2"/><mask label="2" z_order="1" rle="0,4" left="0" top="0" width="2" height="2"/>'
        '<mask label="1" z_order="0" rle="0,9" left="0" top="0" width="3" height="3"/>'
    )
    found = cvat.read(image(inner), "f", semantic=True)
    assert found.passed_over == {"shapes of the kind points": 1}
    assert found.answers[0].marks.mask[:3, :3].tolist() == [[2, 2, 1], [2, 2, 1], [1, 1, 1]]
