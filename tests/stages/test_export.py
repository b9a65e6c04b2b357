"""Export: what an ingest of it holds again, for each format; counts; broken, foreign and overlapping targets. No Ray."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO

from mapsto import cli
from mapsto.core.codecs import decode_mask, encode
from mapsto.core.errors import UserError
from mapsto.core.runs import from_runs, from_text, to_runs
from mapsto.core.storage import Storage
from mapsto.data.annotations import run_lengths
from mapsto.data.export import FORMATS, Target, export
from mapsto.data.export.coco import area
from mapsto.data.export.target import Names, suffix
from mapsto.data.sources import detect

from .test_ingest import here, run  # noqa: F401  the fixture

HEIGHT, WIDTH = 24, 32
POLYGON = "[[2.5, 3, 12, 3, 12, 11.25]]"


def quiet(_: str) -> None:
    pass


@pytest.fixture
def rich(here, tmp_path):  # noqa: F811
    """Twelve images with everything that a row may have, in three splits; equal names in several folders."""
    rng = np.random.default_rng(3)
    folder, lines = tmp_path / "images", []
    for k in range(12):
        split = ("train", "train", "val", "test")[k % 4]
        place = folder / split / "abc"[k % 3]
        place.mkdir(parents=True, exist_ok=True)
        name = f"{'a b' if k % 2 else 'x'}.{'JPEG' if k % 3 else 'png'}"
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        (place / name).write_bytes(encode(pixels, "jpeg" if k % 3 else "png"))
        ids = rng.integers(0, 5, (HEIGHT, WIDTH)).astype(np.uint8)
        mask = folder / "ids" / f"{k}.png"
        mask.parent.mkdir(exist_ok=True)
        mask.write_bytes(encode(ids, "png"))
        rle = json.dumps(run_lengths(ids == 1))
        row = {
            "image": f"{split}/{'abc'[k % 3]}/{name}", "split": split, "mask": f"ids/{k}.png", "caption": f"two\nlines {k}",
            "identity": f"p{k % 2}", "boxes": [[2.5, 3, 12, 11.25], [0, 0, 31.7, 24]], "box_labels": ["cat", "dog"],
            "crowd": [False, False], "difficult": [k % 2 == 0, False], "area": [3.25 + k, float((ids == 1).sum())], "segments": [POLYGON, rle], "keypoints": [[1, 2, 2, 0, 0, 0], []],
        }  # fmt: skip
        lines.append(row | ({"label": "abc"[k % 3]} if k != 5 else {}))
    lines[7] |= {
        "boxes": [],
        "box_labels": [],
        "crowd": [],
        "difficult": [],
        "area": [],
        "segments": [],
        "keypoints": [],
    }
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run(folder / "m.jsonl", tmp_path / "data")[0]


def contents(*datasets, columns: tuple[str, ...]) -> Counter[str]:
    """Every row as text: content, split and the columns named, with class names for ids."""
    out: Counter[str] = Counter()
    for dataset in datasets:
        classes = dataset.manifest["classes"]
        for split in dataset.manifest["splits"]:
            for row in dataset.read(split):
                told = {name: row.get(name) or None for name in columns}
                told["label"] = classes[row["label"]] if "label" in columns and row.get("label", -1) >= 0 else None
                told["box_labels"] = [classes[k] for k in row.get("box_labels") or ()] if "boxes" in columns else None
                if told.get("mask"):
                    told["mask"] = decode_mask(row["mask"]).tobytes().hex()
                if told.get("segments"):
                    told["segments"] = [json.loads(text) for text in row["segments"]]
                out[json.dumps([row["content_sha256"], split, told], sort_keys=True)] += 1
    return out


BACK = {
    "folder": ("pairs", ("mask",)),
    "webdataset": ("webdataset", ("label", "mask", "boxes", "crowd", "difficult", "area", "segments", "keypoints", "caption", "identity")),
    "coco": ("coco", ("boxes", "crowd", "area", "segments", "keypoints", "caption")),
    "yolo": ("yolo", ("boxes",)),
    "voc": ("voc", ("boxes", "difficult", "mask")),
    "parquet": ("manifest", ("label", "mask", "boxes", "crowd", "difficult", "segments", "keypoints", "caption", "identity")),
}  # fmt: skip


@pytest.mark.parametrize("format", BACK)
def test_an_ingest_of_the_export_holds_the_same(rich, here, tmp_path, format):  # noqa: F811
    out = tmp_path / "out"
    report = export(rich, str(out), format, say=quiet)
    layout, columns = BACK[format]
    assert detect(str(out), Storage())[0] == layout
    back = run(out, tmp_path / "again", splits={})[0]
    assert back.manifest["rows_quarantined"] == 0, back.manifest["reasons"]
    assert contents(back, columns=columns) == contents(rich, columns=columns)
    if format in ("coco", "yolo", "parquet"):  # they list the classes, also those without instances
        assert back.manifest["classes"] == rich.manifest["classes"]
    assert report["rows"] == {"train": 6, "val": 3, "test": 3}
    saved = json.loads((out / "export.json").read_text())
    assert saved == report and saved["dataset"] == rich.artifact.uri and not list(out.glob(".*"))
    assert saved["files"] == sum(path.is_file() for path in out.rglob("*")) - 1


def test_parquet_holds_all_of_it(rich, here, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    report = export(rich, str(out), "parquet", say=quiet)
    assert report["left_out"] == {}
    files = sorted(out.glob("*.parquet"))
    assert [file.name.split("-")[0] for file in files] == ["test", "train", "val"]
    back = [run(file, tmp_path / file.stem, splits={})[0] for file in files]
    columns = BACK["webdataset"][1]
    assert contents(*back, columns=columns) == contents(rich, columns=columns)
    with pq.ParquetFile(files[1]) as file:
        features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        assert features["image"] == {"_type": "Image"} and features["label"]["names"] == rich.manifest["classes"]
        assert set(features) == set(file.schema_arrow.names)
        paths = [cell["path"] for cell in file.read(["image"]).column(0).to_pylist()]
    assert len(set(paths)) == 6 and {Path(path).suffix for path in paths} == {".JPEG", ".png"}


def test_a_folder_of_classes_reads_back_with_the_row_that_has_none(here, tmp_path):  # noqa: F811
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    lines = []
    for k in range(8):
        (tmp_path / "in" / f"{k}.jpg").write_bytes(encode(rng.integers(0, 256, (9, 9, 3), np.uint8)))
        lines.append(
            {"image": f"{k}.jpg", "split": "val" if k > 5 else "train"} | ({"label": f"c{k % 2}"} if k else {})
        )
    (tmp_path / "in" / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first = run(tmp_path / "in" / "m.jsonl", tmp_path / "data")[0]
    report = export(first, str(tmp_path / "out"), "folder", say=quiet)
    assert report["left_out"] == {"rows without a label: they are in _unlabelled": 1}
    assert (tmp_path / "out" / "train" / "_unlabelled" / "0.jpg").read_bytes() == (
        tmp_path / "in" / "0.jpg"
    ).read_bytes()
    back = run(tmp_path / "out", tmp_path / "again", splits={})[0]
    assert back.manifest["rows_quarantined"] == 0 and back.manifest["classes"] == ["c0", "c1"]
    assert contents(back, columns=("label",)) == contents(first, columns=("label",))
    for format, message in (
        ("coco", "neither boxes nor captions"),
        ("yolo", "no boxes"),
        ("voc", "neither boxes nor masks"),
    ):
        with pytest.raises(UserError, match=message):
            export(first, str(tmp_path / "other"), format, say=quiet)


def test_what_a_format_cannot_hold_is_counted(rich, tmp_path, capsys):
    assert (
        cli.main(["data", "export", rich.artifact.uri, str(tmp_path / "y"), "--format", "yolo", "--split", "val"]) == 0
    )
    told = capsys.readouterr().out
    assert "left out: caption: rows that have it; the format does not: 3" in told and "3 rows" in told
    assert "left out: label" in told and "left out: segments" in told
    assert not (tmp_path / "y" / "images" / "train").exists()
    report = export(rich, str(tmp_path / "w"), "webdataset", say=quiet)
    assert report["left_out"] == {"rows without a label: samples without .cls": 1}
    with tarfile.open(tmp_path / "w" / "train-000000.tar") as archive:
        names = archive.getnames()
    assert len({name.split(".")[0] for name in names}) == 6 and all(name[:9].isdecimal() for name in names)


def test_shards_are_cut_and_numbered(rich, here, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("mapsto.data.export.webdataset.SHARD_BYTES", 20_000)
    export(rich, str(tmp_path / "out"), "webdataset", say=quiet)
    shards = sorted(path.name for path in (tmp_path / "out").glob("train-*.tar"))
    assert len(shards) > 1 and shards == [f"train-{k:06d}.tar" for k in range(len(shards))]
    back = run(tmp_path / "out", tmp_path / "again", splits={})[0]
    assert contents(back, columns=("label",)) == contents(rich, columns=("label",))


def test_a_broken_export_is_not_mistaken_for_a_whole_one(rich, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def full(self, split, rows):
        raise UserError("no space left on the device")

    with monkeypatch.context() as patch:
        patch.setattr("mapsto.data.export.folder.Folder.add", full)
        with pytest.raises(UserError, match="no space left"):
            export(rich, str(out), "folder", say=quiet)
    assert not (out / "export.json").exists()
    with pytest.raises(UserError, match="not empty; name another folder, or replace an earlier export with --force"):
        export(rich, str(out), "folder", say=quiet)
    (out / "stale.jpg").write_bytes(b"old")
    export(rich, str(out), "folder", force=True, say=quiet)
    assert (out / "export.json").exists() and not (out / "stale.jpg").exists()


def test_force_removes_nothing_but_an_export(rich, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no earlier export that --force may replace"):
        export(rich, str(mine), "folder", force=True, say=quiet)
    for place in (rich.artifact.uri, f"{rich.artifact.uri}/x", str(Path(rich.artifact.uri).parent)):
        with pytest.raises(UserError, match="an export needs a folder of its own"):
            export(rich, place, "folder", force=True, say=quiet)
    assert (mine / "thesis.tex").exists() and Path(rich.artifact.uri, "dataset.json").exists()


def test_errors_name_what_is_wrong(rich, tmp_path, capsys):
    with pytest.raises(UserError, match=r"--format folders: unknown, did you mean 'folder'\?"):
        export(rich, str(tmp_path / "x"), "folders", say=quiet)
    with pytest.raises(UserError, match=r"no split 'vall', did you mean 'val'\?"):
        export(rich, str(tmp_path / "x"), "folder", ["vall"], say=quiet)
    assert not (tmp_path / "x").exists()
    shard = next(Path(rich.artifact.uri).glob("shards/train-*.parquet"))
    image = rich.read("train", limit=1)[0]["image"]
    shard.write_bytes(shard.read_bytes().replace(image, image[:-9] + b"123" + image[-6:]))  # stored plain
    assert cli.main(["data", "export", rich.artifact.uri, str(tmp_path / "x"), "--format", "folder"]) == 2
    told = capsys.readouterr().err
    assert f"{shard}: " in told
    assert "CRC checksum" in told


@pytest.mark.parametrize("bad", ["a/b", "..", ".hidden", "_unlabelled", "", "a\\b"])
def test_a_class_that_cannot_be_a_folder_is_refused(rich, tmp_path, bad):
    rich.manifest["classes"][0] = bad
    with pytest.raises(UserError, match="cannot be a folder's name; take parquet"):
        export(rich, str(tmp_path / "x"), "folder", say=quiet)


def test_over_s3(rich, s3):
    target = f"{s3.uri('exports')}/one"
    report = export(rich, target, "coco", storage=s3.storage, say=quiet)
    names = {name.removeprefix(target + "/") for name, _ in s3.storage.walk(target)}
    assert "export.json" in names and "annotations/instances_val.json" in names and len(names) == report["files"] + 1
    with pytest.raises(UserError, match="not empty"):
        export(rich, target, "parquet", storage=s3.storage, say=quiet)
    export(rich, target, "parquet", storage=s3.storage, force=True, say=quiet)
    with s3.storage.fs(target)[0].open(f"{target.removeprefix('s3://')}/val-00000-of-00001.parquet") as file:
        assert pq.read_table(file).num_rows == 3


def test_names_are_unique_and_plain():
    names = Names()
    given = [
        "s3://b/x/1.jpg",
        "t.tar!y/1.JPG",
        "m.parquet: row 3",
        "/a/.jpg",
        "é ü.png",
        "/a/" + "n" * 300 + ".jpg",
        "1-2.jpg",
    ]
    found = [names.of("f", {"source": name, "row_id": k, "format": "jpeg"}) for k, name in enumerate(given)]
    assert found[0] == ("1", ".jpg") and found[1] == ("1-1", ".JPG") and found[2] == ("m.parquet_row_3", ".jpg")
    assert found[4] == ("é_ü", ".jpg")  # a JPEG whose name said PNG
    assert len({stem.casefold() for stem, _ in found}) == len(given)
    assert all(len(stem.encode()) <= 160 and "/" not in stem and not stem.startswith(".") for stem, _ in found)
    assert names.of("other", {"source": "1.jpg", "row_id": 9, "format": "png"}) == ("1", ".png")
    assert suffix("mpo") == ".jpg" and suffix("webp", ".jpg") == ".webp" and suffix("tiff", ".TIFF") == ".TIFF"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 6))
def test_run_lengths_against_pycocotools(bits, height):
    mask = np.resize(np.array(bits), (height, len(bits)))
    coded = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    runs = to_runs(mask.T.ravel())
    assert from_text(coded["counts"].decode()) == runs
    assert (mask == from_runs(runs, mask.size).reshape(mask.T.shape).T).all()
    assert area({"counts": coded["counts"].decode()}, []) == float(masks.area(coded)) == area({"counts": runs}, [])


@pytest.mark.parametrize("text", ["\x7f", "P", "é", " "])
def test_broken_run_lengths_say_so(text):
    with pytest.raises(UserError, match="compressed run lengths"):
        from_text(text)


def test_runs_that_do_not_add_up_say_so():
    for runs in ([3], [5, 5], [12, -2]):
        with pytest.raises(UserError, match="run lengths"):
            from_runs(runs, 9)


def test_area_of_polygons_and_boxes():
    assert area([[0, 0, 4, 0, 4, 3]], []) == 6 and area([[0, 0, 2, 0, 2, 2, 0, 2], [5, 5, 6, 5, 6, 6]], []) == 4.5
    assert area([], [1, 1, 3, 4]) == 6


def test_pycocotools_reads_the_export(rich, tmp_path):
    export(rich, str(tmp_path / "out"), "coco", say=quiet)
    coco = COCO(str(tmp_path / "out" / "annotations" / "instances_train.json"))
    assert len(coco.imgs) == 6 and {entry["name"] for entry in coco.cats.values()} == set(rich.manifest["classes"])
    rows = {row["row_id"]: row for row in rich.read("train")}
    for entry in coco.anns.values():
        row = rows[entry["image_id"]]
        size = Image.open(tmp_path / "out" / "images" / "train" / coco.imgs[row["row_id"]]["file_name"]).size
        assert size == (row["width"], row["height"])
        mask = coco.annToMask(entry)
        if isinstance(entry["segmentation"], dict):
            assert (mask == (decode_mask(row["mask"]) == 1)).all() and mask.sum() == entry["area"]
    assert len(FORMATS) == 6 and Target("x", Storage()).files == 0
