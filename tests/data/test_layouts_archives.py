"""Layouts that pack many images into a file, drawn here: idx, CIFAR's binary files, NumPy's, tar archives; broken ones."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections import Counter

import numpy as np
import pytest

from mapsto.core.codecs import decode
from mapsto.core.errors import UserError
from mapsto.data.chunks import cut, read_chunk
from mapsto.data.sources import detect, listing
from mapsto.data.sources.archive import NO_END
from mapsto.data.sources.enclosing import A_TEXT
from mapsto.data.sources.samples import FIRST, MOST

from .layouts import HEIGHT, STORE, WIDTH, ingested, mask, packed, picture, put, tar


def test_idx(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 7), np.uint8)
    root = tmp_path / "mnist"
    put(root / "t10k-images-idx3-ubyte.gz", gzip.compress(struct.pack(">4I", 0x0803, 5, 6, 7) + pixels.tobytes()))
    put(root / "t10k-labels-idx1-ubyte.gz", gzip.compress(struct.pack(">2I", 0x0801, 5) + bytes([3, 1, 4, 1, 5])))
    rows, _, _, classes = ingested(root, tmp_path, "raw")
    assert classes == ("1", "3", "4", "5") and len(rows) == 5
    for name, row in rows.items():
        k = int(name.rsplit("!", 1)[1])
        assert classes[row["label"]] == "31415"[k] and row["split"] == "test"
        np.testing.assert_array_equal(decode(row["image"]), np.repeat(pixels[k][:, :, None], 3, 2))


def test_broken_idx(tmp_path):
    put(tmp_path / "train-images-idx3-ubyte", struct.pack(">4I", 0x0803, 5, 6, 7) + b"short")
    with pytest.raises(UserError, match="not idx images"):
        list(listing("raw", str(tmp_path), STORE, ""))


def test_cifar_binary(tmp_path):
    planes = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    root = tmp_path / "cifar"
    put(root / "data_batch_1.bin", b"".join(bytes([k]) + planes[k].tobytes() for k in range(2)))
    put(root / "test_batch.bin", bytes([1]) + planes[2].tobytes())
    put(root / "batches.meta.txt", "plane\ncar\n")
    rows, _, _, classes = ingested(root, tmp_path, "raw")
    assert classes == ("car", "plane")
    np.testing.assert_array_equal(decode(rows["data_batch_1.bin!1"]["image"]), planes[1].transpose(1, 2, 0))
    assert rows["test_batch.bin!0"]["split"] == "test" and classes[rows["test_batch.bin!0"]["label"]] == "car"


def test_npz(tmp_path):
    train = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    file = tmp_path / "pathmnist.npz"
    np.savez_compressed(
        file, train_images=train, train_labels=np.array([[0], [2], [1], [2]]), test_images=train[:1, :, :, 0],
        test_labels=np.array([[1]]),
    )  # fmt: skip
    rows, _, _, classes = ingested(file, tmp_path, "raw")
    assert classes == ("0", "1", "2") and len(rows) == 5
    np.testing.assert_array_equal(decode(rows["pathmnist.npz!train!3"]["image"]), train[3])
    assert rows["pathmnist.npz!train!3"]["label"] == 2 and rows["pathmnist.npz!test!0"]["split"] == "test"


def test_imagenet_as_handed_out(tmp_path):
    from scipy.io import savemat

    root = tmp_path / "imagenet"
    classes = {f"n0000000{k}": {f"n0000000{k}_{i}.JPEG": picture(10 * k + i) for i in range(2)} for k in (1, 2)}
    inner = {f"{name}.tar": tar(members) for name, members in classes.items()}
    put(root / "ILSVRC2012_img_train.tar", tar({**inner, "notes.txt": b"hello"}))
    put(root / "ILSVRC2012_img_val.tar", tar({f"ILSVRC2012_val_{k:08d}.JPEG": picture(k) for k in (1, 2, 3)}))
    with pytest.raises(UserError, match=r"ILSVRC2012_devkit_t12\.tar\.gz beside it"):
        list(listing("imagenet", str(root), STORE, ""))
    meta = io.BytesIO()
    synsets = np.array([(1, "n00000002"), (2, "n00000001")], [("ILSVRC2012_ID", "f8"), ("WNID", "O")])
    savemat(meta, {"synsets": synsets})
    data = "ILSVRC2012_devkit_t12/data"
    kit = tar({f"{data}/meta.mat": meta.getvalue(), f"{data}/ILSVRC2012_validation_ground_truth.txt": b"2\n1\n"})
    put(root / "ILSVRC2012_devkit_t12.tar.gz", gzip.compress(kit))
    rows, reasons, _, names = ingested(root, tmp_path, "imagenet")
    assert names == ("n00000001", "n00000002") and len(rows) == 6
    for name, row in rows.items():
        tail = name.rsplit("!", 1)[1]
        if row["split"] == "train":
            assert names[row["label"]] == tail[:9] and row["image"] == classes[tail[:9]][tail]
    assert [names[rows[f"ILSVRC2012_img_val.tar!ILSVRC2012_val_{k:08d}.JPEG"]["label"]] for k in (1, 2)] == [*names]
    told = " | ".join(reasons)
    assert "not a class's archive" in told and "no line for its number" in told


def test_webdataset(tmp_path):
    root = tmp_path / "wds"
    ids = mask(np.ones((HEIGHT, WIDTH), int))
    members = {
        "a/001.jpg": picture(1), "a/001.cls": b"4", "a/001.txt": b"a red leaf",
        "a/002.json": json.dumps({"label": "7", "boxes": [[1, 2, 3, 4]], "box_labels": ["x"]}).encode(),
        "a/002.png": picture(2, "png"), "a/002.mask.png": ids,
        "a/003.txt": b"no picture", "../004.jpg": picture(4),
    }  # fmt: skip
    put(root / "set-val-000000.tar", tar(members))
    rows, reasons, _, classes = ingested(root, tmp_path, "webdataset")
    assert classes == ("4", "7", "x")  # not all are numbers: by name
    first, second = (rows[next(n for n in rows if f"00{k}." in n)] for k in (1, 2))
    assert first["caption"] == "a red leaf" and classes[first["label"]] == "4" and first["split"] == "val"
    assert first["image"] == members["a/001.jpg"]
    assert second["boxes"] == [[1, 2, 3, 4]] and second["mask"] == ids and classes[second["label"]] == "7"
    told = " | ".join(reasons)
    assert "without an image (txt)" in told and "leaves the archive" in told


def test_a_truncated_shard_is_one_line(tmp_path):
    data = tar({"1.jpg": picture(), "1.cls": b"0", "2.jpg": picture(), "2.cls": b"1"})
    put(tmp_path / "t/x.tar", data[:1200])
    with pytest.raises(UserError, match=r"x\.tar: the archive is broken") as told:
        list(listing("webdataset", str(tmp_path / "t"), STORE, ""))
    assert "\n" not in str(told.value)


def test_npz_of_several_labels(tmp_path):
    """As ChestMNIST has them: a column per finding; no finding is an empty list, not no answer."""
    pixels = np.zeros((3, 8, 8), np.uint8)
    np.savez(
        tmp_path / "chest.npz", train_images=pixels, train_labels=np.array([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
    )
    rows, _, _, classes = ingested(tmp_path / "chest.npz", tmp_path, "raw")
    assert classes == ("0", "1", "2", "3")
    assert [rows[f"chest.npz!train!{k}"]["labels"] for k in range(3)] == [[0, 3], [], [1]]
    assert all(row["label"] == -1 for row in rows.values())


@pytest.mark.parametrize("cut", ["between classes", "between a class's members"])
def test_an_imagenet_tar_that_is_cut_between_two_members_is_told_of(tmp_path, cut):
    members = {f"n00000001_{k}.JPEG": picture(k) for k in (1, 2)}
    first, second = tar(members), tar({"n00000002_1.JPEG": picture(3)})
    name = "ILSVRC2012_img_train.tar"
    if cut == "between classes":
        outer, where, rows = tar({"n00000001.tar": first, "n00000002.tar": second})[: 512 + len(first)], name, 2
    else:
        size = 512 + -(-len(picture(1)) // 512) * 512
        outer = tar({"n00000001.tar": first[:size], "n00000002.tar": second})
        where, rows = f"{name}!n00000001.tar", 2
    put(tmp_path / name, outer)
    found = list(listing("imagenet", str(tmp_path), STORE, ""))
    assert [(r.name.rsplit("/", 1)[-1], r.reason) for r in found if r.reason] == [(where, NO_END)]
    assert len(found) == rows + 1


@pytest.mark.parametrize("suffix", ["tar.gz", "tgz"])
def test_compressed_shards_of_webdataset(tmp_path, suffix):
    members = {"1.jpg": picture(1), "1.cls": b"4", "2.jpg": picture(2), "2.cls": b"", "3.jpg": picture(3)}
    members["3.json"] = b'{"label": ""}'
    put(tmp_path / f"in/val-000.{suffix}", gzip.compress(tar(members)))
    rows, reasons, _, classes = ingested(tmp_path / "in", tmp_path, "webdataset")
    assert classes == ("4",) and not reasons
    assert {name.rsplit("!", 1)[1]: row["label"] for name, row in rows.items()} == {
        "1.jpg": 0,
        "2.jpg": -1,
        "3.jpg": -1,
    }
    assert all(row["image"] == members[name.rsplit("!", 1)[1]] and row["split"] == "val" for name, row in rows.items())
    broken = put(tmp_path / f"b/x.{suffix}", gzip.compress(tar(members))[:-9])
    with pytest.raises(UserError, match="the archive is broken"):
        list(listing("webdataset", str(broken), STORE, str(tmp_path / "w")))


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("above", ["train/", "", "./flowers/"])
def test_class_folders_with_a_text_beside_each_image_keep_their_classes(tmp_path, suffix, above):
    members = {}
    for k, name in enumerate(["cat"] * 14 + ["dog"] * 2):
        members |= {f"{above}{name}/{k}.png": picture(k, "png"), f"{above}{name}/{k}.txt": b"an animal"}
    data = tar(members)
    source = put(tmp_path / f"in/x.{suffix}", gzip.compress(data) if suffix == "tar.gz" else data)
    layout, why = detect(str(source), STORE)
    assert layout == "archive" and "its folders are classes" in why and "layout `webdataset`" in why and ": txt)" in why
    found = list(listing("archive", str(source), STORE, str(tmp_path / "w")))
    labels = [reference.label for reference in found if reference.name.endswith(".png")]
    assert labels == ["cat"] * 14 + ["dog"] * 2 and len(found) == 32


@pytest.mark.parametrize(
    ("members", "why"),
    [
        (("1.jpg", "1.txt", "2.jpg", "2.txt"), "(1: jpg, txt)"),
        (("train/1.jpg", "train/1.txt", "val/2.jpg", "val/2.txt"), "(train/1: jpg, txt)"),
        (("a/1.jpg", "a/1.txt", "a/2.jpg", "a/2.txt"), "(a/1: jpg, txt); what lies in a/ is of no class by that"),
        (("a/1.jpg", "a/1.cls", "b/2.jpg", "b/2.cls"), "(a/1: cls, jpg)"),
        (("train/a/1.jpg", "train/a/1.json", "train/a/1.txt", "train/b/2.jpg"), "(train/a/1: jpg, json, txt)"),
        (
            ("train/images/1.jpg", "train/images/1.txt", "val/images/2.jpg", "val/images/2.txt"),
            "(train/images/1: jpg, txt); what lies in images/ is of no class by that",
        ),
        (
            (
                *(f"a/{k}.{kind}" for k in range(4) for kind in ("jpg", "txt")),
                *(f"b/{k}.{kind}" for k in range(4) for kind in ("jpg", "txt", "cls")),
            ),
            "(a/0: jpg, txt)",
        ),
        (
            (*(f"a/{k}.{kind}" for k in range(4) for kind in ("jpg", "txt")), "b/1.txt", "b/1.json", "b/1.jpg"),
            "(a/0: jpg, txt)",
        ),
    ],
)
def test_samples_that_say_their_class_or_lie_in_no_class_folders_stay_webdatasets(tmp_path, members, why):
    source = put(tmp_path / "x.tar", tar({name: picture() if name.endswith("jpg") else b"1" for name in members}))
    layout, said = detect(str(source), STORE)
    assert layout == "webdataset" and said.endswith(why)


@pytest.mark.parametrize("how", ["tar", "zip", "folder"])
def test_texts_beside_images_take_no_place_of_theirs_in_the_splits(tmp_path, how):
    members = {}
    for name in ("cat", "dog", "cow"):
        for k in range(20):
            members |= {f"{name}/{k}.png": b"x", f"{name}/{k}.txt": b"x", f"texts/{name}-{k}.json": b"x"}
    source = packed(tmp_path, how, members)
    found = list(listing("folder" if how == "folder" else "archive", str(source), STORE, ""))
    assert len(found) == 180 and {r.reason for r in found if not r.name.endswith(".png")} == {A_TEXT}
    for seed in range(4):
        listed = cut(found, STORE, str(tmp_path / str(seed)), {"val": 0.1, "test": 0.1}, seed, None)
        drawn: Counter[tuple[str | None, str]] = Counter()
        for number in range(listed.chunks):
            split, _, references = read_chunk(STORE, str(tmp_path / str(seed)), number)
            drawn.update((r.label, split) for r in references if split != "train")
        assert listed.classes == ("cat", "cow", "dog") and listed.rows == 180
        assert drawn == {(name, split): 2 for name in listed.classes for split in ("val", "test")}


def test_a_text_that_is_no_images_own_says_no_class(tmp_path):
    names = [f"{folder}/{k}.{kind}" for folder in "ab" for k in range(4) for kind in ("jpg", "txt")]
    source = put(tmp_path / "x.tar", tar(dict.fromkeys([*names, "b/notes.json"], b"x")))
    assert detect(str(source), STORE)[0] == "archive"


def test_a_tars_first_members_are_read_once_and_no_further_than_they_tell(tmp_path, monkeypatch):
    """Of a flat one, eight; where folders must be told apart, a thousand, but once for both layouts that ask."""
    read: list[str] = []
    own = tarfile.TarFile.next

    def counted(self):
        member = own(self)
        read.append(member.name if member else "")
        return member

    monkeypatch.setattr(tarfile.TarFile, "next", counted)
    for above, most in (("", FIRST), ("a/", 600), ("train/", FIRST)):
        names = [f"{above}{k}.{kind}" for k in range(300) for kind in ("jpg", "txt")]
        source = put(tmp_path / "x.tar.gz", gzip.compress(tar(dict.fromkeys(names, b"x"))))
        read.clear()
        assert detect(str(source), STORE)[0] == "webdataset" and len(read) <= most + 2
    names = [f"{folder}/{k}.{kind}" for folder in "ab" for k in range(300) for kind in ("jpg", "txt")]
    source = put(tmp_path / "x.tar.gz", gzip.compress(tar(dict.fromkeys(names, b"x"))))
    read.clear()
    assert detect(str(source), STORE)[0] == "archive" and len(read) <= MOST + 2
