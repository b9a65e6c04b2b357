"""Layouts: what a listing says of labels and splits, and what it refuses."""

import csv
import gzip
import io
import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.data.reading import fetch
from mapsto.data.sources import detect, listing
from mapsto.data.sources.archive import escapes
from mapsto.data.sources.item import placed

STORE = Storage(retries=0)
HOSTILE = ["/etc/passwd.jpg", "../up.jpg", "cat/../../up.jpg", "C:\\up.jpg", "..\\up.jpg"]


def found(layout, uri, tmp_path):
    return list(listing(layout, str(uri), STORE, str(tmp_path / "work")))


def contents(references):
    return {reference.name.split("!")[-1]: data for reference, data in fetch(references, STORE)}


def make_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    ("path", "label", "split"),
    [
        ("cat/1.jpg", "cat", None), ("train/cat/1.jpg", "cat", "train"), ("valid/cat/1.jpg", "cat", "val"),
        ("Test/1.jpg", None, "test"), ("1.jpg", None, None), ("cat/deep/1.jpg", "cat", None),
        ("n01440764_tench.JPEG", "n01440764", None), ("val/n01440764_tench.JPEG", "n01440764", "val"), ("n0144_x.jpg", None, None),
    ],
)  # fmt: skip
def test_a_path_says_label_and_split(path, label, split):
    assert placed(path) == (label, split)


def test_a_folder_lists_all_but_hidden_files(tmp_path):
    source = tmp_path / "images"
    for name in (
        "train/cat/1.jpg",
        "train/dog/2.png",
        "test/cat/3.jpg",
        ".DS_Store",
        "__MACOSX/x.jpg",
        "train/notes.txt",
    ):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(name.encode())
    references = found("folder", source, tmp_path)
    got = sorted((r.label or "", r.split) for r in references)
    assert got == [("", "train"), ("cat", "test"), ("cat", "train"), ("dog", "train")]
    assert detect(str(source), STORE)[0] == "folder"
    assert contents(references)[str(source / "test/cat/3.jpg")] == b"test/cat/3.jpg"


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
def test_archives_give_the_members_bytes_and_refuse_paths_that_escape(tmp_path, suffix):
    members = {f"cat/{k}.jpg": bytes([k]) * (k * 1000 + 1) for k in range(50)} | dict.fromkeys(HOSTILE, b"x")
    path = tmp_path / f"train.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                info = zipfile.ZipInfo("x")
                info.filename = name
                archive.writestr(info, data)
    else:
        make_tar(path, members, "w:gz" if suffix == "tar.gz" else "w")
    references = found("archive", tmp_path, tmp_path)
    assert {r.split for r in references} == {"train"} and len(references) == len(members)
    got = contents(references)
    for name, data in members.items():
        if name in HOSTILE:
            assert got[name] == "its path leaves the archive"
        else:
            assert got[name] == data
    assert detect(str(path), STORE)[0] == detect(str(tmp_path), STORE)[0] == "archive"


def test_links_and_devices_are_refused_and_a_broken_archive_is_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE), ("d.jpg", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert [r.reason for r in found("archive", tmp_path / "a.tar", tmp_path)] == ["a link or device, not a file"] * 3
    for name, data in (
        ("b.tar", b"no tar" * 200),
        ("c.zip", b"no zip"),
        ("d.tar.gz", b"no gzip"),
        ("e.tgz", gzip.compress(b"x" * 9999)[:-9]),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"{name}: the archive is broken"):
            found("archive", tmp_path / name, tmp_path)


@given(st.lists(st.sampled_from(["..", ".", "a", "b.jpg", "", "...", "..a"]), min_size=1, max_size=6))
def test_only_paths_that_leave_are_said_to(parts):
    path = "/".join(parts)
    assert escapes(path) == (path.startswith("/") or ".." in parts)


ROWS = [
    {"image": "a.jpg", "label": "cat", "split": "train", "caption": "a cat, sitting", "boxes": [[1.0, 2.0, 3.0, 4.0]], "box_labels": ["cat"]},
    {"image": "/abs/b.jpg", "label": "dog", "split": "validation", "caption": None, "boxes": None, "box_labels": None},
]  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_manifests_of_every_kind_say_the_same(tmp_path, suffix):
    path = tmp_path / f"list.{suffix}"
    if suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ROWS[0])
            writer.writeheader()
            writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in ROWS)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    first, second = found("manifest", path, tmp_path)
    assert (first.uri, first.label, first.split) == (str(tmp_path / "a.jpg"), "cat", "train")
    assert first.columns == {"caption": "a cat, sitting", "boxes": [[1.0, 2.0, 3.0, 4.0]], "box_labels": ["cat"]}
    assert (second.uri, second.label, second.split, second.columns) == ("/abs/b.jpg", "dog", "val", {})
    assert detect(str(path), STORE)[0] == "manifest"


def test_bytes_in_a_parquet_manifest(tmp_path):
    table = pa.table({"bytes": [b"one", None, b"three", b"four"], "label": [3, 1, 3, 1]})
    pq.write_table(table, tmp_path / "m.parquet", row_group_size=2)
    references = found("manifest", tmp_path / "m.parquet", tmp_path)
    assert [r.label for r in references] == ["3", "1", "3", "1"]
    assert [data for _, data in fetch(references, STORE)] == [b"one", "the row holds no image", b"three", b"four"]


def test_a_folder_of_parquet_files_is_one_manifest(tmp_path):
    """As the Hub has it: the split is the files' names' first word, where the rows give none."""
    for name, split in (
        ("train-00000-of-00002", None), ("train-00001-of-00002", "val"), ("validation-00000-of-00001", None), ("more", None),
    ):  # fmt: skip
        table = pa.table(
            {"image": [{"bytes": name.encode(), "path": None}], "mask": ["masks/1.png"]}
            | ({"split": [split]} if split else {})
        )
        pq.write_table(table, tmp_path / f"{name}.parquet")
    (tmp_path / "masks").mkdir()
    for name in ("masks/1.png", "README.md", "._more.parquet"):
        (tmp_path / name).write_bytes(b"x")
    assert detect(str(tmp_path), STORE)[0] == "manifest"
    references = found("manifest", tmp_path, tmp_path)
    assert [r.split for r in references] == [None, "train", "val", "val"]
    assert {r.columns["mask"] for r in references} == {str(tmp_path / "masks/1.png")}
    read = [data for _, data in fetch(references, STORE)]
    assert read == [b"more", b"train-00000-of-00002", b"train-00001-of-00002", b"validation-00000-of-00001"]


def test_an_image_folder_with_a_table_beside_it_stays_one(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/1.jpg").write_bytes(b"x")
    pq.write_table(pa.table({"file_name": ["cat/1.jpg"]}), tmp_path / "metadata.parquet")
    assert detect(str(tmp_path), STORE)[0] == "folder"
    with pytest.raises(UserError, match="no column image"):
        found("manifest", tmp_path, tmp_path)
    (tmp_path / "metadata.parquet").write_bytes(b"no Parquet")
    assert detect(str(tmp_path), STORE)[0] == "folder"
    with pytest.raises(UserError, match="no folder of Parquet files"):
        found("manifest", tmp_path / "cat", tmp_path)


def test_masks_as_bytes_beside_images_that_are_files_are_refused(tmp_path):
    pq.write_table(pa.table({"image": ["a.png"], "mask": [b"x"]}), tmp_path / "m.parquet")
    with pytest.raises(UserError, match=r"m\.parquet: the column mask holds bytes, and the images are files"):
        found("manifest", tmp_path / "m.parquet", tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "path,label\nx.jpg,1\n", "no column image, uri or bytes; it has path, label"),
        ("a.csv", "image,split\nx.jpg,tset\n", "row 1: split 'tset' is unknown, did you mean 'test'"),
        ("a.csv", "image\nx.jpg,extra\n", ":2: more fields than the header has"),
        ("a.jsonl", '{"image": "a.jpg"}\n{"image": \n', ":2: not JSON"),
        ("a.jsonl", "[1]\n", ":1: each line is an object"),
        ("a.csv", 'image,boxes\nx.jpg,"[[1,2"\n', "row 1: boxes and box_labels are JSON lists"),
        ("a.parquet", "no parquet", "not a Parquet file"),
    ],
)
def test_a_broken_manifest_is_named_with_its_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        found("manifest", tmp_path / name, tmp_path)
    assert message in str(error.value) and name in str(error.value)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="not found"):
        detect(str(tmp_path / "nowhere"), STORE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the data set is empty"):
        detect(str(tmp_path / "empty"), STORE)
    with pytest.raises(UserError, match="layout 'foldr' is unknown, did you mean 'folder'"):
        listing("foldr", str(tmp_path), STORE, "")
    (tmp_path / "m.jsonl").write_text('{"image": "gone.jpg"}\n')
    assert [data for _, data in fetch(found("manifest", tmp_path / "m.jsonl", tmp_path), STORE)] == ["not found"]


def test_a_manifest_that_lies_beside_images_is_told_of(tmp_path):
    for name in ("masks/1.png", "train/a/1.png", "metadata.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    layout, why = detect(str(tmp_path), Storage())
    assert layout == "folder"
    assert why == (
        "2 of its first 3 files are images by name; metadata.jsonl beside them is not read: name it as the source to take "
        "what it says"
    )
    (tmp_path / "metadata.jsonl").rename(tmp_path / "train" / "metadata.jsonl")
    assert detect(str(tmp_path), Storage())[1] == "2 of its first 3 files are images by name"
