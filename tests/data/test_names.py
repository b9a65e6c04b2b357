"""Two images of one name, in every layout: refused in one line or counted with the reason, never one for the other."""

import io
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mapsto.core.codecs import encode
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.data.reading import fetch
from mapsto.data.sources import listing

from .layouts import put, tar

STORE = Storage(retries=0)
BOX = "<object><name>x</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>"


def picture(grey: int) -> bytes:
    return encode(np.full((8, 9, 3), grey, np.uint8), "png")


def found(layout: str, source: Path) -> list:
    return list(listing(layout, str(source), STORE, str(source.parent / "work")))


def reasons(layout: str, source: Path) -> list[str | None]:
    return sorted((r.reason for r in found(layout, source)), key=str)


def test_members_of_a_zip(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own of two members of one name
        for name, grey in (("a/1.png", 10), ("a/1.png", 90), ("a/2.png", 200)):
            archive.writestr(name, picture(grey))
    references = found("archive", put(tmp_path / "x.zip", out.getvalue()))
    assert [r.reason for r in references] == ["several members have this name"] * 2 + [None]
    assert [data for _, data in fetch(references[2:], STORE)] == [picture(200)]


def test_members_of_a_tar_lie_at_their_own_places(tmp_path):
    out = tar({"a/1.png": picture(10)})
    (first,) = found("archive", put(tmp_path / "x.tar", out))
    assert [data for _, data in fetch([first], STORE)] == [picture(10)]


def test_images_and_annotations_of_coco(tmp_path):
    def told(images: list, annotations: list) -> str:
        data = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
        put(tmp_path / "annotations.json", json.dumps(data))
        with pytest.raises(UserError) as error:
            found("coco", tmp_path)
        return str(error.value)

    box = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3]}
    first, second = {"id": 1, "file_name": "1.png"}, {"id": 1, "file_name": "2.png"}
    assert "two images have the id 1: 1.png, 2.png" in told([first, second], [box])
    assert "two annotations have the id 7" in told([first], [box, box | {"bbox": [2, 2, 3, 3]}])


def test_one_annotation_for_two_images_of_voc(tmp_path):
    for name in ("a.png", "a.jpg", "b.png"):
        put(tmp_path / "JPEGImages" / name, picture(9))
    for name in ("a", "b"):
        put(tmp_path / f"Annotations/{name}.xml", f"<annotation>{BOX}</annotation>")
    assert reasons("voc", tmp_path) == [None, *["several images have this name, and one annotation"] * 2]


def test_images_of_one_name_in_two_folders_have_their_own_masks(tmp_path):
    for folder in ("a", "b"):
        put(tmp_path / f"images/{folder}/1.png", picture(9))
        put(tmp_path / f"masks/{folder}/1.png", picture(0))
    put(tmp_path / "images/2.png", picture(9))
    for name in ("2.png", "2.tif"):
        put(tmp_path / "masks" / name, picture(0))
    put(tmp_path / "images/c/3.png", picture(9))
    put(tmp_path / "masks/3.png", picture(0))
    got = {r.name.split("/images/")[1]: r for r in found("pairs", tmp_path)}
    assert {name: r.columns.get("mask", r.reason).split("/masks/")[-1] for name, r in got.items()} == {
        "a/1.png": "a/1.png",
        "b/1.png": "b/1.png",
        "2.png": "2 masks of its name in masks",
        "c/3.png": "3.png",
    }


def test_samples_of_webdataset(tmp_path):
    members = {"1.jpg": picture(1), "1.png": picture(2), "1.cls": b"0", "2.jpg": picture(3), "2.seg.png": picture(4)}
    got = reasons("webdataset", put(tmp_path / "x.tar", tar(members)))
    assert got == [None, "a sample of several images (jpg, png); a mask is called mask.png or seg.png"]


def test_a_text_too_large_to_hold_keeps_its_sample_out(tmp_path, monkeypatch):
    monkeypatch.setattr("mapsto.data.sources.webdataset.LARGEST_TEXT", 2**20)
    members = {
        "1.png": picture(1),
        "1.json": b'{"caption": "' + b"x" * 2**20 + b'"}',
        "2.png": picture(2),
        "2.cls": b"0",
    }
    got = reasons("webdataset", put(tmp_path / "x.tar", tar(members)))
    assert got == [None, "its json is over 1 MB"]


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("image,lable", "column 'lable' is unknown, did you mean 'label'?"),
        ("image,split,lables", "did you mean 'labels'?"),
    ],
)
def test_a_misspelt_column_is_told(tmp_path, header, says):
    with pytest.raises(UserError, match=says.replace("?", r"\?")):
        found("manifest", put(tmp_path / "m.csv", f"{header}\na.png,1{',train' * (header.count(',') - 1)}\n"))


def test_a_column_beside_the_known_one_is_the_users_own(tmp_path):
    (reference,) = found("manifest", put(tmp_path / "m.csv", "image,label,lable,size\na.png,cat,7,12\n"))
    assert reference.label == "cat"


def test_a_broken_development_kit_is_one_line(tmp_path):
    put(tmp_path / "ILSVRC2012_img_val.tar", tar({"ILSVRC2012_val_00000001.JPEG": picture(1)}))
    put(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", b"\x1f\x8b\x08 no archive")
    with pytest.raises(UserError, match=r"ILSVRC2012_devkit_t12\.tar\.gz: the archive is broken"):
        found("imagenet", tmp_path)
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    kit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    put(kit / "ILSVRC2012_validation_ground_truth.txt", "1\n")
    put(kit / "meta.mat", b"no MATLAB file")
    with pytest.raises(UserError, match=r"meta\.mat is broken, or no MATLAB file of synsets"):
        found("imagenet", tmp_path)


def test_what_a_killed_process_leaves_of_a_file_is_none(tmp_path):
    put(tmp_path / ".a.json.123.part", b"{")
    put(tmp_path / "a.json", b"{}")
    assert STORE.names(str(tmp_path)) == ["a.json"]
    STORE.upload(tmp_path / "a.json", str(tmp_path / "deep/b.json"))
    assert (tmp_path / "deep/b.json").read_bytes() == b"{}" and STORE.names(str(tmp_path / "deep")) == ["b.json"]
