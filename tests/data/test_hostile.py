"""Sources made to break what reads them: one line, or one counted reference, never a crash and never a guess."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mapsto.core.artifact import Artifact
from mapsto.core.codecs import encode
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.data.chunks import cut
from mapsto.data.reading import fetch
from mapsto.data.shards import ShardJob
from mapsto.data.sources import listing
from mapsto.data.tally import Tally

from .layouts import put, tar

STORE = Storage(retries=0)
PICTURE = encode(np.full((8, 9, 3), 90, np.uint8), "png")


def found(layout: str, source: Path) -> list:
    return list(listing(layout, str(source), STORE, str(source.parent / "work")))


def told(layout: str, source: Path) -> str:
    with pytest.raises(UserError) as error:
        found(layout, source)
    assert "\n" not in str(error.value)
    return str(error.value)


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize("layout", ["archive", "webdataset"])
@pytest.mark.parametrize("end", [300, 512, 700, 1024, 1300, 1536, 1800, 2048, 2100, 3000])
def test_a_tar_cut_short_is_one_line_or_counted(tmp_path, layout, end):
    """Between two members it could have been made so: what is there is read, and the missing mark is counted."""
    whole = tar({"cat/1.png": b"a" * 512, "cat/2.png": b"b" * 512})
    file = put(tmp_path / "x.tar", whole[:end])
    if end % 1024 == 0:
        got = found(layout, file)
        assert [r.name[-9:] for r in got[:-1]] == ["cat/1.png", "cat/2.png"][: end // 1024]
        assert "no end mark" in got[-1].reason
    elif end > 2048:
        assert [r.reason for r in found(layout, file)] == [None, None]
    else:
        assert "x.tar: the archive is broken" in told(layout, file)


@pytest.mark.parametrize("pack", [tar, zipped])
def test_an_archive_within_an_archive_is_counted_not_opened(tmp_path, pack):
    name = "x.tar" if pack is tar else "x.zip"
    inner = {
        "cat/1.png": PICTURE,
        "cat/more.zip": zipped({"2.png": PICTURE}),
        "dog.tar.gz": b"x",
        "cat/deep.TAR": tar({}),
    }
    got = found("archive", put(tmp_path / name, pack(inner)))
    assert [r.reason for r in got] == [None, *["an archive within an archive: not opened"] * 3]


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_of_a_zip_is_kept_apart_whatever_packed_it(tmp_path, method):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name in ("cat/1.png", "cat/2.png"):
            archive.writestr(name, PICTURE)
        (first, _) = archive.infolist()
    data = bytearray(out.getvalue())
    start = first.header_offset + 30 + len(first.filename) + 9  # behind LZMA's own header of nine bytes
    data[start : start + 20] = bytes(20)
    got = {Path(r.member).name: b for r, b in fetch(found("archive", put(tmp_path / "x.zip", bytes(data))), STORE)}
    assert got["2.png"] == PICTURE
    assert isinstance(got["1.png"], str) and got["1.png"].startswith("cannot be read from the archive: ")


def test_a_zip_bomb_is_refused_unread(tmp_path):
    bomb = zipped({"cat/1.png": PICTURE, "cat/bomb.png": bytes(2**27), "cat/flat.bmp": bytes(2**20)})
    assert len(bomb) < 2**18
    got = dict(zip(("one", "bomb", "flat"), fetch(found("archive", put(tmp_path / "x.zip", bomb)), STORE)))
    reasons = {r.name.rsplit("/")[-1]: data for r, data in got.values() if isinstance(data, str)}
    assert reasons == {"bomb.png": "grows beyond 100 times its size: refused"}  # a small flat picture may


def test_a_member_larger_than_its_archive_says_is_refused(tmp_path):
    data = bytearray(zipped({"cat/1.png": bytes(100_000)}))
    place = data.index(b"PK\x01\x02") + 24
    data[place : place + 4] = (50).to_bytes(4, "little")
    [(_, got)] = fetch(found("archive", put(tmp_path / "x.zip", bytes(data))), STORE)
    assert isinstance(got, str)


def summary_of(layout: str, source: Path, work: Path) -> tuple[list[dict], dict]:
    artifact = Artifact(str(work / "d" / "ingest" / "0123456789abcdef"), STORE)
    folder = artifact.path("work")
    listed = cut(listing(layout, str(source), STORE, folder), STORE, folder, {}, 0, None)
    summary = ShardJob(artifact, STORE, listed.classes, listed.columns, 10**8, 1, 2).run(0)
    tally = Tally()
    tally.add(STORE.read_json(artifact.path("work", "done", "000000.json")))
    artifact.write_json(tally.manifest(str(source), layout, listed, ["train"]), "dataset.json")
    return pq.read_table(artifact.path(summary["files"][0]["path"])).to_pylist(), STORE.read_json(
        artifact.path("dataset.json")
    )


def test_names_that_are_not_utf8_are_read_and_written_legibly(tmp_path):
    folder = os.fsencode(tmp_path / "images") + b"/caf\xe9"
    os.makedirs(folder)
    for name in (b"\xff.png", "für.png".encode()):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(PICTURE)
    Path(os.fsdecode(folder + b"/\xfe.png")).write_bytes(b"no picture")
    rows, manifest = summary_of("folder", tmp_path / "images", tmp_path)
    assert sorted(row["source"].rsplit("/", 1)[-1] for row in rows) == ["\\udcff.png", "für.png"]
    assert manifest["classes"] == ["caf\\udce9"] and manifest["rows_quarantined"] == 1


def test_members_whose_names_are_not_utf8(tmp_path):
    data = tar({"cat/aaaa.png": PICTURE}).replace(b"cat/aaaa.png", b"c\xe9t/a\xff\xfea.png")
    total = sum(data[:148]) + 8 * 32 + sum(data[156:512])
    data = data[:148] + b"%06o\0 " % total + data[156:]
    rows, manifest = summary_of("archive", put(tmp_path / "x.tar", data), tmp_path)
    assert rows[0]["image"] == PICTURE and manifest["classes"] == ["c\\udce9t"]
    flagged = zipped({"é.png": PICTURE}).replace("é".encode(), b"\xff\xfe")
    assert "y.zip: the archive is broken" in told("archive", put(tmp_path / "y.zip", flagged))


def test_names_of_no_file(tmp_path):
    lines = [{"image": "a\0.png"}, {"image": "\ud800.png", "label": "\ud800", "caption": "\udfff"}, {"image": "a.png"}]
    put(tmp_path / "a.png", PICTURE)
    file = put(tmp_path / "m.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    got = [data for _, data in fetch(found("manifest", file), STORE)]
    assert sum(isinstance(data, str) and "no file can have this name" in data for data in got) == 2 and PICTURE in got
    rows, manifest = summary_of("manifest", file, tmp_path)
    assert len(rows) == 1 and manifest["classes"] == ["\\ud800"]


def test_a_folder_that_holds_itself(tmp_path):
    put(tmp_path / "images/cat/1.png", PICTURE)
    (tmp_path / "images/again").symlink_to(tmp_path / "images")
    (tmp_path / "images/cat/gone.png").symlink_to(tmp_path / "nowhere")
    got = {r.name.rsplit("/", 1)[-1]: data for r, data in fetch(found("folder", tmp_path / "images"), STORE)}
    assert got == {"1.png": PICTURE, "gone.png": "not found", "again": "not found"}


def coco(**parts: object) -> str:
    return json.dumps({"images": [{"id": 1, "file_name": "1.png"}], "annotations": [], "categories": [{"id": 1, "name": "x"}]} | parts)  # fmt: skip


GOOD = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (coco(images=[5]), "an image without id or file_name: 5"),
        (coco(images=[{"id": [1], "file_name": "1.png"}]), "an image without id or file_name"),
        (coco(images=[{"id": 1, "file_name": None}]), "an image without id or file_name"),
        (coco(categories=[5]), "a category without id or name: 5"),
        (coco(categories=[{"id": 1}]), "a category without id or name"),
        (coco(categories=[{"name": "x"}]), "a category without id or name"),
        (coco(categories={"1": "x"}), "`categories` is a list of objects, not {'1': 'x'}"),
        (coco(categories=5), "`categories` is a list of objects, not 5"),
        (coco(categories=[{"id": 1, "name": "x"}, {"id": 1, "name": "y"}]), "two categories have the id 1: x, y"),
        (coco(annotations=5), "`annotations` is a list of objects, not 5"),
        (coco(annotations=[5]), "an annotation without image_id: 5"),
        (coco(annotations=[GOOD | {"image_id": {}}]), "an annotation without image_id"),
        (coco(annotations=[GOOD | {"category_id": [1]}]), "lacks id, bbox or category_id"),
        (coco(annotations=[GOOD], categories=[]), "category 1 is not in `categories`"),
        (coco(annotations=[GOOD], categories=None), "category 1 is not in `categories`"),
        (coco(annotations=[GOOD | {"bbox": None}]), "bbox and keypoints are lists of numbers"),
        (coco(annotations=[GOOD | {"bbox": [1, 2, 3]}]), "bbox and keypoints are lists of numbers"),
        (coco(annotations=[GOOD | {"bbox": ["1", 2, 3, 4]}]), "bbox and keypoints are lists of numbers"),
        (coco(annotations=[GOOD | {"keypoints": [1, None, 2]}]), "bbox and keypoints are lists of numbers"),
        ("[" * 100_000, "not JSON"),
        (b"\xff\xfe{", "not JSON"),
    ],
)
def test_coco_of_wrong_types_is_one_line(tmp_path, text, says):
    put(tmp_path / "1.png", PICTURE)
    put(tmp_path / "annotations.json", text)
    assert says in told("coco", tmp_path)


def test_coco_with_absent_images_and_strays(tmp_path):
    put(tmp_path / "1.png", PICTURE)
    images = [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "gone.png"}, {"id": 3, "file_name": "1.png"}]
    put(tmp_path / "annotations.json", coco(images=images, annotations=[GOOD, GOOD | {"id": 2, "image_id": 9}]))
    got = [data if isinstance(data, str) else "read" for _, data in fetch(found("coco", tmp_path), STORE)]
    assert sorted(got) == [
        "a second image of one file_name (image id 3)",
        "annotations of an image that `images` does not list",
        "not found",
        "read",
    ]


def test_coco_s_first_image_of_a_name_that_no_file_can_have(tmp_path):
    put(tmp_path / "images/1.png", PICTURE)
    images = [{"id": k, "file_name": name} for k, name in enumerate(("a\0.png", "\ud800.png", "1.png"))]
    put(tmp_path / "annotations.json", coco(images=images))
    got = [data for _, data in fetch(found("coco", tmp_path), STORE)]
    assert PICTURE in got and sum("no file can have this name" in str(data) for data in got) == 2
    put(tmp_path / "annotations.json", coco(images=images[:2]))
    assert len(found("coco", tmp_path)) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"crowd": 1}, {"crowd": False}, {"keypoints": True}, {"segments": "[]"}, {"difficult": {"a": 1}},
        {"segments": ["[" * 100_000]}, {"boxes": [[10**400, 0, 1, 1]]},
    ],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
def test_annotations_that_are_no_lists_keep_their_image_out(tmp_path, wrong):
    box = {"boxes": [[0, 0, 4, 4]], "box_labels": ["x"]}
    texts = {"1.json": json.dumps(box), "2.json": json.dumps(box | wrong)}
    members = {
        f"{k}.{kind}": data for k in (1, 2) for kind, data in (("png", PICTURE), ("json", texts[f"{k}.json"].encode()))
    }
    rows, manifest = summary_of("webdataset", put(tmp_path / "x.tar", tar(members)), tmp_path / "w")
    assert len(rows) == 1 and list(manifest["reasons"]) == [next(iter(wrong))]


def test_boxes_that_are_no_numbers_keep_their_image_out(tmp_path):
    put(tmp_path / "1.png", PICTURE)
    put(tmp_path / "2.png", PICTURE)
    images = [{"id": k, "file_name": f"{k}.png"} for k in (1, 2)]
    text = coco(images=images, annotations=[GOOD, GOOD | {"id": 2, "image_id": 2, "bbox": [0, 0, float("nan"), 1]}])
    put(tmp_path / "annotations.json", text)
    rows, manifest = summary_of("coco", tmp_path, tmp_path / "w")
    assert len(rows) == 1 and list(manifest["reasons"]) == ["boxes"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,image\na.png,b.png\n", "two columns are called image"),
        ("image,label,label\na.png,b,c\n", "two columns are called label"),
        ("path;label\na.png;b\n", "no column image, uri or bytes; it has path;label"),
        ("", "no column image, uri or bytes; it has none"),
        ("image\nf\xfcr.png\n".encode("latin-1"), "not a CSV file in UTF-8"),
    ],
)
def test_a_csv_of_wrong_columns_is_one_line(tmp_path, text, says):
    assert says in told("manifest", put(tmp_path / "m.csv", text))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"image": 5}, "an image is a path or a URI, not 5"),
        ({"image": ["a.png"]}, "an image is a path or a URI"),
        ({"image": "a.png", "boxes": 5}, "boxes is a list"),
        ({"image": "a.png", "boxes": [], "box_labels": 7}, "box_labels is a list"),
    ],
)
def test_a_manifest_of_wrong_types_is_one_line(tmp_path, line, says):
    assert f"row 1: {says}" in told("manifest", put(tmp_path / "m.jsonl", json.dumps(line)))
    assert "not JSON" in told("manifest", put(tmp_path / "n.jsonl", "[" * 100_000))


def test_a_parquet_of_wrong_columns_is_one_line(tmp_path):
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["image", "image"]), tmp_path / "t.parquet"
    )
    assert "two columns are called image" in told("manifest", tmp_path / "t.parquet")
    pq.write_table(pa.table({"image": [1, 2]}), tmp_path / "i.parquet")
    assert "row 1: an image is a path or a URI, not 1" in told("manifest", tmp_path / "i.parquet")


XML = "<annotation><object><name>x</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"
LAUGHS = "<!DOCTYPE a [" + "".join(f'<!ENTITY l{k + 1} "{f"&l{k};" * 10}">' for k in range(9)) + '<!ENTITY l0 "ha">]>'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS + "<annotation>&l9;</annotation>", "EntitiesForbidden"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "EntitiesForbidden"),
        ('<?xml version="1.0" encoding="nope"?><annotation/>', "unknown encoding"),
        ("<annotation>" * 50_000, "no element found"),
        ("", "no element found"),
        (XML.replace("<xmin>1</xmin>", "<xmin>one</xmin>"), "could not convert"),
        (XML.replace("<name>x</name>", ""), "without name or bndbox"),
    ],
)
def test_xml_made_to_break_it_keeps_its_image_out(tmp_path, text, says):
    for name, xml in (("bad", text), ("good", XML)):
        put(tmp_path / f"JPEGImages/{name}.png", PICTURE)
        put(tmp_path / f"Annotations/{name}.xml", xml)
    reasons = {r.name.rsplit("/", 1)[-1]: r.reason for r in found("voc", tmp_path)}
    assert reasons["good.png"] is None and says in reasons["bad.png"]


@pytest.mark.parametrize("layout", ["voc", "pairs", "yolo"])
def test_lists_that_are_not_utf8_are_one_line(tmp_path, layout):
    place = {"voc": "ImageSets/Main/val.txt", "pairs": "ImageSets/Segmentation/val.txt", "yolo": "classes.txt"}[layout]
    file = put(tmp_path / place, b"f\xfcr\n")
    put(tmp_path / "JPEGImages/a.png", PICTURE)
    put(tmp_path / "SegmentationClass/a.png", PICTURE)
    put(tmp_path / "images/a.png", PICTURE)
    put(tmp_path / "Annotations/a.xml", XML)
    assert f"{file}: not a text in UTF-8" in told(layout, tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a\n- b\n", "not YOLO's"),
        ("names: [[a], [b]]\n", "names: a list of words"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b]\n", "names: a list of words"),
        ("names: !!python/object/apply:os.system [x]\n", "not YAML"),
        ("names: [\n", "not YAML"),
    ],
)
def test_yolos_yaml_made_to_break_it_is_one_line(tmp_path, text, says):
    put(tmp_path / "images/a.png", PICTURE)
    put(tmp_path / "data.yaml", text)
    assert says in told("yolo", tmp_path)


def test_webdatasets_samples_with_two_members_of_one_kind_are_kept_out(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in (
            ("1.png", PICTURE), ("1.cls", b"a"), ("2.png", PICTURE), ("2.PNG", PICTURE), ("2.cls", b"a"),
            ("3.png", PICTURE), ("3.cls", b"a"), ("3.cls", b"b"), ("4.png", PICTURE), ("4.mask.png", PICTURE),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    got = {r.name.rsplit("!")[-1]: r.reason for r in found("webdataset", put(tmp_path / "x.tar", out.getvalue()))}
    several = "a sample with several members of one kind "
    assert got == {"1.png": None, "2": f"{several}(png)", "3": f"{several}(cls)", "4.png": None}


def test_webdatasets_json_of_wrong_types_keeps_its_sample_out(tmp_path):
    members = {
        "1.png": PICTURE,
        "1.json": b'{"boxes": 5}',
        "2.png": PICTURE,
        "2.json": b"[" * 100_000,
        "3.png": PICTURE,
        "3.json": b"[]",
    }
    reasons = [r.reason for r in found("webdataset", put(tmp_path / "x.tar", tar(members)))]
    assert [bool(reason) for reason in reasons] == [True, True, False]
    assert all("its text cannot be read" in reason for reason in reasons[:2])
