"""YOLO's own YAML files, drawn here: lists of images, class numbers, keypoints, and what a broken one says."""

from __future__ import annotations

import pytest

from mapsto.core.errors import UserError
from mapsto.data.sources import Told, detect, listing

from .layouts import HEIGHT, STORE, WIDTH, ingested, picture, put

BOX = "1 0.5 0.5 0.25 0.5\n"


def told(root) -> list[str]:
    out = Told()
    list(listing("yolo", str(root), STORE, "", told=out))
    return [note.removeprefix(f"{root}/") for note in out.notes]


@pytest.mark.parametrize("before", ["./", "", "data/", "/datasets/coco/"])
def test_lists_of_images_give_the_splits(tmp_path, before):
    root = tmp_path / "coco"
    for k, (folder, names) in enumerate({"train2017": "ab", "val2017": "cd"}.items()):
        for name in names:
            put(root / f"images/{folder}/{name}.jpg", picture(k))
            put(root / f"labels/{folder}/{name}.txt", BOX)
    put(root / "train2017.txt", f"{before}images/train2017/a.jpg\n\n")
    put(root / "val2017.txt", f"{before}images/val2017/c.jpg\n{before}images/train2017/b.jpg\n")
    put(root / "coco.yaml", "train: train2017.txt\nval: val2017.txt\ntest: test-dev2017.txt\nnames: {0: cat, 1: dog}\n")
    splits = {r.name.removeprefix(f"{root}/images/"): r.split for r in listing("yolo", str(root), STORE, "")}
    assert splits == {
        "train2017/a.jpg": "train", "train2017/b.jpg": "val", "val2017/c.jpg": "val", "val2017/d.jpg": "val",
    }  # fmt: skip
    assert told(root) == ["coco.yaml: test: test-dev2017.txt is not there"]
    rows, _, _, classes = ingested(root, tmp_path, "yolo")
    assert classes == ("cat", "dog") and rows["a.jpg"]["box_labels"] == [1]


def test_one_folder_for_train_and_val_is_train(tmp_path):
    root = tmp_path / "coco128"
    put(root / "images/train2017/a.jpg", picture())
    put(root / "labels/train2017/a.txt", BOX)
    put(
        root / "coco128.yaml",
        "path: ../datasets/coco128\ntrain: images/train2017\nval: images/train2017\nnames: [x, y]\n",
    )
    rows, _, _, _ = ingested(root, tmp_path, "yolo")
    assert rows["a.jpg"]["split"] == "train"
    assert told(root) == [
        "coco128.yaml: val: images/train2017 is also the train split's: its images are of that one alone"
    ]


def test_the_longest_folder_counts(tmp_path):
    put(tmp_path / "images/a.jpg", picture())
    put(tmp_path / "images/held/b.jpg", picture())
    put(tmp_path / "data.yaml", "train: images\nval: images/held\nnames: [x]\n")
    assert [r.split for r in listing("yolo", str(tmp_path), STORE, "")] == ["train", "val"]


@pytest.mark.parametrize(
    "names", ["{10: ten, 2: two, 1: one}", '{"10": ten, "2": two, "1": one}', '{10: ten, "2": two, 1: one}']
)
def test_class_numbers_are_what_the_keys_say(tmp_path, names):
    root = tmp_path / "yolo"
    put(root / "images/a.jpg", picture())
    put(root / "labels/a.txt", "10 0.5 0.5 0.25 0.5\n1 0.5 0.5 0.25 0.5\n")
    put(root / "images/b.jpg", picture(1))
    put(root / "labels/b.txt", "0 0.5 0.5 0.25 0.5\n")
    put(root / "data.yaml", f"names: {names}\n")
    rows, reasons, _, classes = ingested(root, tmp_path, "yolo")
    assert classes == ("one", "two", "ten") and [classes[k] for k in rows["a.jpg"]["box_labels"]] == ["ten", "one"]
    assert list(reasons) == ["its label file cannot be used: line 1: class 0 of 3"]


@pytest.mark.parametrize(
    ("shape", "values", "points"),
    [
        ("[2, 2]", "0.5 0.25 -1 0.5", [0.5 * WIDTH, 0.25 * HEIGHT, 2, 0, 0, 0]),
        ("[2, 3]", "0.5 0.25 1 0 0 0", [0.5 * WIDTH, 0.25 * HEIGHT, 1, 0, 0, 0]),
    ],
)
def test_pose(tmp_path, shape, values, points):
    root = tmp_path / "pose"
    put(root / "images/a.jpg", picture())
    put(root / "labels/a.txt", f"0 0.5 0.5 0.25 0.5 {values}\n0 0.5 0.5 0.25 0.5\n")
    put(root / "images/b.jpg", picture(1))
    put(root / "labels/b.txt", "0 0 0 0 1 1 0\n")
    put(root / "data.yaml", f"names: [person]\nkpt_shape: {shape}\n")
    rows, reasons, _, _ = ingested(root, tmp_path, "yolo")
    assert rows["a.jpg"]["boxes"] == [[12, 6, 20, 18]] * 2 and rows["a.jpg"]["keypoints"] == [points, []]
    assert "segments" not in rows["a.jpg"]
    assert [reason.split(": ")[2] for reason in reasons] == [f"class x y width height, and 2 keypoints of {shape[4]}"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: 5", r"data\.yaml: train: a path, or a list of paths, not 5"),
        ("val: [1]", r"data\.yaml: val: a path, or a list of paths"),
        ("names: 5", r"data\.yaml: names: a list of words"),
        ("names: cat", r"data\.yaml: names: a list of words"),
        ("names: {a: cat}", r"data\.yaml: names: 'a' is no class number"),
        ('names: {1: cat, "1": dog}', r"data\.yaml: names: a class number is there twice"),
        ("made: 2024-13-45", r"data\.yaml: not YAML: month must be in 1\.\.12"),
        ("made: !!int abc", r"data\.yaml: not YAML: invalid literal for int"),
        ("made: !!timestamp soon", r"data\.yaml: not YAML: "),
        ("[" * 5000, r"data\.yaml: not YAML: maximum recursion depth exceeded"),
        ("kpt_shape: [17]", r"data\.yaml: kpt_shape: \[keypoints, 2 or 3\], such as \[17, 3\], not \[17\]"),
    ],
)
def test_a_broken_description_is_one_line(tmp_path, text, says):
    put(tmp_path / "images/a.jpg", picture())
    put(tmp_path / "data.yaml", f"{text}\n")
    with pytest.raises(UserError, match=says) as error:
        list(listing("yolo", str(tmp_path), STORE, ""))
    assert "\n" not in str(error.value)


DESCRIPTION = "train: images/train\nval: images/val\nnames: [x]\n"


@pytest.mark.parametrize(
    ("files", "layout"),
    [
        (["images/1.png", "masks/1.png"], "pairs"),
        (["images/1.png", "labels/1.png"], "pairs"),
        (["train/cat/1.png", "val/dog/3.png"], "folder"),
        (["images/train/1.png", "labels/train/1.txt"], "yolo"),
    ],
)
def test_a_yaml_file_makes_a_source_of_labels_alone_yolos(tmp_path, files, layout):
    for name in files:
        put(tmp_path / name, picture(0, "png") if name.endswith("png") else BOX)
    put(tmp_path / "coco.yaml", DESCRIPTION)
    assert detect(str(tmp_path), STORE)[0] == layout


@pytest.mark.parametrize("home", ["", "set/"])
def test_labels_behind_more_images_than_are_looked_at(tmp_path, monkeypatch, home):
    monkeypatch.setattr("mapsto.data.sources.look.LOOK", 4)
    for k in range(3):
        put(tmp_path / f"{home}images/train/{k}.png", picture(k, "png"))
        put(tmp_path / f"{home}labels/train/{k}.txt", BOX)
    put(tmp_path / "a.yaml", "created: 2024-13-45\n")
    (tmp_path / "folder.yaml").mkdir()
    put(tmp_path / "coco.yml", DESCRIPTION)
    assert detect(str(tmp_path), STORE) == ("yolo", "it has coco.yml, with names and splits")


def test_of_two_descriptions_neither_is_guessed(tmp_path):
    put(tmp_path / "images/a.jpg", picture())
    for name in ("coco.yaml", "coco8.yaml"):
        put(tmp_path / name, "train: images\nnames: [x]\n")
    with pytest.raises(
        UserError, match=r"which file describes it\? coco\.yaml, coco8\.yaml; call the right one data\.yaml"
    ):
        list(listing("yolo", str(tmp_path), STORE, ""))
