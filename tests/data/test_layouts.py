"""Layouts of folders and tables, drawn here: what is found, and what a broken one says."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mapsto.data.sources import Told, detect, listing

from .layouts import STORE, ingested, packed, picture, put, tar


def test_a_single_image(tmp_path):
    put(tmp_path / "in/other.jpg", picture(1))
    rows, reasons, _, classes = ingested(put(tmp_path / "in/style.PNG", picture(0, "png")), tmp_path, "folder")
    assert list(rows) == ["style.PNG"] and rows["style.PNG"]["split"] == "train"
    assert not reasons and not classes


def test_faces_by_person_with_pairs(tmp_path):
    root = tmp_path / "lfw"
    for name in ("Ann_Example", "Bob_Example"):
        put(root / f"images/{name}/{name}_0001.jpg", picture())
    put(root / "images/stray.jpg", picture())
    put(root / "pairsDevTest.txt", "1\n")
    rows, reasons, _, classes = ingested(root, tmp_path, "faces")
    assert classes == ("Ann_Example", "Bob_Example")
    assert rows["Bob_Example_0001.jpg"]["identity"] == "Bob_Example" and rows["Bob_Example_0001.jpg"]["label"] == 1
    assert list(reasons) == ["no person: it lies in no folder of one"]


@pytest.mark.parametrize("home", ["lfw", "lfw_funneled", "lfw_home/lfw_funneled"])
def test_faces_as_scikit_learn_and_torchvision_keep_them(tmp_path, home):
    root = tmp_path / "source"
    for name in ("Ann_Example", "Bob_Example"):
        put(root / home / f"{name}/{name}_0001.jpg", picture())
    put(root / home / "pairs_01.txt", "1\n")
    put(root / "pairs.txt", "1\n")
    rows, reasons, _, classes = ingested(root, tmp_path, "faces")
    assert classes == ("Ann_Example", "Bob_Example") and not reasons
    assert {row["identity"] for row in rows.values()} == set(classes)


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["Ann/0/1", "Ann/1/2", "Bob/0/3"], [("Ann", None), ("Ann", None), ("Bob", None)]),
        (["frames/Ann/0/1", "frames/Bob/0/2"], [("Ann", None), ("Bob", None)]),
        (["lfw/Ann/1", "lfw/Bob/2", "lfw/stray", "stray"], [("Ann", None), ("Bob", None), (None, None), (None, None)]),
        (["f/train/Ann/1", "f/test/images/Bob/0/2"], [("Ann", "train"), ("Bob", "test")]),
        (["train/1", "images/train/Ann/2", "images/Bob/3"], [(None, "train"), ("Ann", "train"), ("Bob", None)]),
        (["Ann/1", "Ann/2"], [("Ann", None), ("Ann", None)]),
        (["images/Ann/images/1", "images/Bob/2"], [("Ann", None), ("Bob", None)]),
    ],
)
def test_who_is_on_a_picture(tmp_path, paths, said):
    for path in paths:
        put(tmp_path / f"{path}.jpg", picture())
    put(tmp_path / "pairs.txt", "1\n")
    found = {r.name: (r.columns.get("identity"), r.split) for r in listing("faces", str(tmp_path), STORE, "")}
    assert [found[f"{tmp_path}/{path}.jpg"] for path in paths] == said and len(found) == len(paths)


def tree(paths: list[str]) -> dict[str, bytes]:
    return {path: picture(k) if path.endswith(".jpg") else b"words" for k, path in enumerate(paths)}


@pytest.mark.parametrize("how", ["folder", "tar", "tgz", "zip"])
@pytest.mark.parametrize(
    ("paths", "said", "strip"),
    [
        (["f/train/rose/1.jpg", "f/train/tulip/2.jpg", "f/val/rose/3.jpg", "f/README.txt"],
         [("rose", "train"), ("tulip", "train"), ("rose", "val")], "f/"),
        (["a/f/rose/1.jpg", "a/f/tulip/2.jpg", "a/LICENSE"], [("rose", None), ("tulip", None)], "a/f/"),
        (["train/rose/1.jpg", "train/rose/2.jpg"], [("rose", "train"), ("rose", "train")], ""),
        (["rose/1.jpg", "rose/2.jpg"], [("rose", None), ("rose", None)], ""),
        (["rose/old/1.jpg", "tulip/2.jpg"], [("rose", None), ("tulip", None)], ""),
        (["f/rose/1.jpg", "f/stray.jpg"], [("f", None), ("f", None)], ""),
    ],
)  # fmt: skip
def test_folders_that_enclose_all_images_are_no_class(tmp_path, how, paths, said, strip):
    told = Told()
    source = str(packed(tmp_path, how, tree(paths)))
    layout = detect(source, STORE)[0]
    assert layout == ("folder" if how == "folder" else "archive")
    found = list(listing(layout, source, STORE, str(tmp_path / "work"), told=told))
    got = {
        r.name.replace("!./", "!").split("source")[1][len("." + how) if how != "folder" else 0 :][1:]: r for r in found
    }
    assert [(got[path].label, got[path].split) for path in paths if path.endswith(".jpg")] == said
    assert len(found) == len(paths)
    assert told.notes == (
        [f"all images lie in {strip}, which is taken for no class: what lies in it is read"] if strip else []
    )


def test_a_folder_within_each_of_several_archives_stays_what_tells_them_apart(tmp_path):
    for name in ("rose", "tulip"):
        put(tmp_path / f"in/{name}.tar", tar({f"{name}/{k}/1.jpg": picture(k) for k in range(2)}))
    assert {r.label for r in listing("archive", str(tmp_path / "in"), STORE, "")} == {"rose", "tulip"}
    for split in ("train", "val"):
        put(tmp_path / f"two/{split}.tar", tar({f"{split}_images/{k}/1.jpg": picture() for k in ("rose", "tulip")}))
    found = [(r.label, r.split) for r in listing("archive", str(tmp_path / "two"), STORE, "")]
    assert found == [("rose", "train"), ("tulip", "train"), ("rose", "val"), ("tulip", "val")]


@pytest.mark.parametrize(
    ("archives", "said"),
    [
        ({"x/train": ["cat/a/1"], "x/val": ["cat/b/9"], "y/train": ["dog/b/2"], "y/val": ["dog/b/3"]},
         {("cat", "train"), ("cat", "val"), ("dog", "train"), ("dog", "val")}),
        ({"train": ["cat/a/1", "dog/b/2"], "val": ["cat/a/3"]}, {("cat", "train"), ("dog", "train"), ("cat", "val")}),
        ({"train": ["f/cat/1", "f/dog/2"], "val": ["g/cat/3"]}, {("cat", "train"), ("dog", "train"), ("cat", "val")}),
        ({"train": ["f/cat/1", "f/dog/2"], "val": ["cat/3"]}, {("cat", "train"), ("dog", "train"), ("cat", "val")}),
        ({"train": ["f/cat/1", "f/dog/2"], "test": ["3", "4"]}, {("cat", "train"), ("dog", "train"), (None, "test")}),
    ],
)  # fmt: skip
def test_a_class_has_one_name_in_the_archives_of_all_splits(tmp_path, monkeypatch, archives, said):
    monkeypatch.setattr("mapsto.data.sources.enclosing.PART", 1)
    for name, images in archives.items():
        put(tmp_path / f"in/{name}.tar", tar({f"{image}.jpg": picture() for image in images}))
    found = list(listing("archive", str(tmp_path / "in"), STORE, ""))
    assert {(r.label, r.split) for r in found} == said and len(found) == sum(map(len, archives.values()))


def test_hugging_face_parquet(tmp_path):
    images = [{"bytes": picture(k), "path": f"{k}.jpg"} for k in range(3)]
    file = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(pa.table({"image": images, "label": [0, 1, 0]}), file, row_group_size=2)
    rows, _, _, classes = ingested(file, tmp_path, "manifest")
    assert classes == ("0", "1") and len(rows) == 3
    assert {row["image"] for row in rows.values()} == {image["bytes"] for image in images}


def test_the_recipe_knows_every_layout():
    from typing import get_args

    from mapsto.config.schema import DataConfig
    from mapsto.data.sources import LAYOUTS

    assert set(get_args(DataConfig.model_fields["layout"].annotation)) == {"auto", *LAYOUTS}
