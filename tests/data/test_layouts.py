"""Each layout as its users have it, drawn here: what is found, and what a broken one says. No Ray: tasks run in line."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mapsto.core.artifact import Artifact
from mapsto.core.codecs import decode, encode
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.data.annotations import NO_AREA, run_lengths
from mapsto.data.chunks import cut
from mapsto.data.dataset import Dataset
from mapsto.data.shards import ShardJob
from mapsto.data.sources import detect, listing
from mapsto.data.tally import Tally

STORE = Storage()
HEIGHT, WIDTH = 24, 32


def picture(seed: int = 0, format: str = "jpeg") -> bytes:
    return encode(np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), format)


def put(root: Path, name: str, data: bytes | str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def ingested(
    source: Path, work: Path, layout: str
) -> tuple[dict[str, dict[str, Any]], Counter, Counter, tuple[str, ...]]:
    """Rows by the end of their source's name, reasons of refusal, what was left out, classes; `layout`: as detected."""
    uri = str(source)
    assert detect(uri, STORE)[0] == layout
    artifact = Artifact(str(work / "d" / "ingest" / "0123456789abcdef"), STORE)
    listed = cut(listing(layout, uri, STORE, artifact.path("work")), STORE, artifact.path("work"), {}, 0, None)
    job = ShardJob(artifact, STORE, listed.classes, listed.columns, 10**8, 1, 2)
    rows: dict[str, dict[str, Any]] = {}
    reasons: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for number in range(listed.chunks):
        summary = job.run(number)
        reasons.update({entry["reason"]: 1 for entry in summary["refused"]})
        dropped.update(summary["dropped"])
        if summary["file"]:
            for row in pq.read_table(artifact.path(summary["file"]["path"])).to_pylist():
                rows[row["source"].rsplit("/", 1)[-1]] = row | {"split": summary["split"]}
    assert listed.rows == len(rows) + sum(reasons.values())
    return rows, reasons, dropped, listed.classes


VOC_XML = """<annotation><size><width>32</width><height>24</height></size>
<object><name>cell</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>3</ymin><xmax>10</xmax><ymax>12</ymax></bndbox></object>
<object><name>disc</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>5</xmax><ymax>9</ymax></bndbox></object></annotation>"""


def test_a_single_image(tmp_path):
    put(tmp_path, "in/other.jpg", picture(1))
    rows, reasons, _, classes = ingested(put(tmp_path, "in/style.PNG", picture(0, "png")), tmp_path, "folder")
    assert list(rows) == ["style.PNG"] and rows["style.PNG"]["split"] == "train"
    assert not reasons and not classes


def test_voc(tmp_path):
    root = tmp_path / "voc"
    for k, name in enumerate("abc"):
        put(root, f"JPEGImages/{name}.jpg", picture(k))
    put(root, "Annotations/a.xml", VOC_XML)
    put(root, "Annotations/b.xml", '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>')
    put(root, "Annotations/gone.xml", VOC_XML)
    put(root, "ImageSets/Main/val.txt", "a\n")
    rows, reasons, dropped, classes = ingested(root, tmp_path, "voc")
    assert classes == ("cell", "disc")
    assert set(rows) == {"a.jpg"} and rows["a.jpg"]["split"] == "val"
    assert rows["a.jpg"]["boxes"] == [[0, 2, 10, 12]] and rows["a.jpg"]["box_labels"] == [0]
    assert rows["a.jpg"]["difficult"] == [True]
    assert dropped == {NO_AREA: 1}
    told = " | ".join(sorted(reasons))
    assert "no XML file of its name" in told and "EntitiesForbidden" in told and "JPEGImages does not have" in told


def coco(images: list[dict], annotations: list[dict], categories: list[dict] | None = None) -> str:
    return json.dumps({"images": images, "annotations": annotations, "categories": categories or []})


CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def test_coco(tmp_path):
    root = tmp_path / "coco"
    for k in (1, 2):
        put(root, f"val2017/{k}.jpg", picture(k))
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
        },
        {"id": 6, "image_id": 1, "category_id": 7, "bbox": [0, 0, 32, 24], "segmentation": rle, "iscrowd": 1},
        {"id": 8, "image_id": 404, "category_id": 7, "bbox": [0, 0, 1, 1]},
    ]
    put(root, "annotations/instances_val2017.json", coco(images, things, CATEGORIES))
    person = [{"id": 5, "image_id": 1, "category_id": 3, "bbox": [2, 3, 4, 5], "keypoints": [1, 2, 2, 0, 0, 0]}]
    put(root, "annotations/person_keypoints_val2017.json", coco(images, person, CATEGORIES))
    words = [{"id": k, "image_id": 2, "caption": f"line\n{k}"} for k in (1, 2)]
    put(root, "annotations/captions_val2017.json", coco(images, words))
    rows, reasons, _, classes = ingested(root, tmp_path, "coco")
    assert classes == ("cat", "dog")
    first, second = rows["1.jpg"], rows["2.jpg"]
    assert first["boxes"] == [[2, 3, 6, 8], [0, 0, 32, 24]] and first["box_labels"] == [0, 1]
    assert first["crowd"] == [False, True]
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
    put(tmp_path, "annotations/instances_val.json", text)
    put(tmp_path, "val/1.jpg", picture())
    with pytest.raises(UserError, match=says) as told:
        list(listing("coco", str(tmp_path), STORE, ""))
    assert "\n" not in str(told.value)


def test_a_coco_file_name_cannot_leave_its_folder(tmp_path):
    put(tmp_path, "1.jpg", picture())
    images = [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "../../etc/passwd"}]
    put(tmp_path, "annotations.json", coco(images, []))
    found = list(listing("coco", str(tmp_path), STORE, ""))
    assert [reference.reason for reference in found] == [None, "its file_name leaves the folder"]


def test_yolo(tmp_path):
    root = tmp_path / "yolo"
    for k, split in enumerate(("train", "val")):
        for name in "ab":
            put(root, f"{split}/images/{name}{split}.jpg", picture(k))
    put(root, "train/labels/atrain.txt", "1 0.5 0.5 0.25 0.5\n0 0 0 0.5 0 0.5 1\n")
    put(root, "val/labels/aval.txt", "5 0.5 0.5 1 1\n")
    put(root, "data.yaml", "names: [leaf, stone]\ntrain: ../train/images\nval: ../val/images\n")
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
        put(root, f"images/{name}.jpg", picture())
    put(root, "labels/a.txt", "1 0.5 0.5 0.25 0.5\n")
    put(root, "labels/b.txt", "2 0.5 0.5 0.25 0.5\n")
    put(root, "labels/classes.txt", "leaf\nstone\n")
    rows, reasons, _, classes = ingested(root, tmp_path, "yolo")
    assert classes == ("stone",) and set(rows) == {"a.jpg"}
    assert list(reasons) == ["its label file cannot be used: line 1: class 2 of 2"]


def mask(values: np.ndarray, palette: bool = False) -> bytes:
    image = Image.fromarray(values.astype(np.uint8), "L" if not palette else None)
    if palette:
        image = Image.fromarray(values.astype(np.uint8), "P")
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_pairs_of_images_and_masks(tmp_path):
    ids = np.zeros((HEIGHT, WIDTH), int)
    ids[2:5, 3:9] = 2
    root = tmp_path / "camvid"
    put(root, "train/x.png", picture(1, "png"))
    put(root, "trainannot/x.png", mask(ids, palette=True))
    put(root, "val/y.png", picture(2, "png"))
    put(root, "valannot/z.png", mask(ids))
    put(root, "val/small.png", picture(3, "png"))
    put(root, "valannot/small.png", mask(ids[:5]))
    rows, reasons, _, _ = ingested(root, tmp_path / "w1", "pairs")
    assert set(rows) == {"x.png"} and rows["x.png"]["split"] == "train"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(rows["x.png"]["mask"]))), ids)
    told = " | ".join(reasons)
    assert "no mask of its name in valannot" in told and "not in val" in told and "differ in size: 32x5, 32x24" in told


def test_the_pixels_of_each_mask_id_are_counted(tmp_path):
    rng, root = np.random.default_rng(0), tmp_path / "camvid"
    ids = {name: rng.choice([0, 3, 11, 255], (HEIGHT, WIDTH)) for name in "abc"}
    for name, values in ids.items():
        split = "val" if name == "c" else "train"
        put(root, f"{split}/{name}.png", picture(ord(name), "png"))
        put(root, f"{split}annot/{name}.png", mask(values))
    put(root, "train/cut.png", picture(9, "png")[:200])  # kept out, and its mask with it
    put(root, "trainannot/cut.png", mask(np.full((HEIGHT, WIDTH), 7)))
    uri, artifact = str(root), Artifact(str(tmp_path / "d" / "ingest" / "0123456789abcdef"), STORE)
    work = artifact.path("work")
    listed = cut(listing("pairs", uri, STORE, work), STORE, work, {}, 0, None)
    job, tally = ShardJob(artifact, STORE, listed.classes, listed.columns, 10**8, 1, 2), Tally()
    for number in range(listed.chunks):
        tally.add(job.run(number))
    manifest = tally.manifest(uri, "pairs", listed, ["train", "val"])

    def expected(*names: str) -> dict[str, int]:
        found, counts = np.unique(np.stack([ids[name] for name in names]), return_counts=True)
        return dict(zip(map(str, found.tolist()), counts.tolist(), strict=True))

    assert manifest["mask_pixels"] == {"train": expected("a", "b"), "val": expected("c")}
    assert manifest["rows_quarantined"] == 1
    assert "val, pixels" in tally.page("camvid", manifest)
    artifact.write_json(manifest, "dataset.json")
    assert Dataset(artifact, manifest, "f").info().mask_pixels == manifest["mask_pixels"]
    del manifest["mask_pixels"]  # as before they were counted
    assert Dataset(artifact, manifest, "f").info().mask_pixels == {}


def test_masks_of_instances_become_boxes_and_segments(tmp_path):
    ids = np.zeros((HEIGHT, WIDTH), int)
    ids[2:5, 3:9], ids[10:12, 0:2] = 1, 2
    root = tmp_path / "fudan"
    put(root, "PNGImages/p.png", picture(1, "png"))
    put(root, "PedMasks/p_mask.png", mask(ids))
    rows, _, _, classes = ingested(root, tmp_path, "pairs")
    row = rows["p.png"]
    assert classes == ("object",) and row["boxes"] == [[3, 2, 9, 5], [0, 10, 2, 12]]
    assert [json.loads(s) for s in row["segments"]] == [run_lengths(ids == 1), run_lengths(ids == 2)]


def test_run_lengths_are_columns_of_zeros_and_ones_in_turn():
    # By hand: a 2x3 mask [[0,1,1],[0,0,1]], column by column 0 0 | 1 0 | 1 1.
    assert run_lengths(np.array([[0, 1, 1], [0, 0, 1]], bool)) == {"size": [2, 3], "counts": [2, 1, 1, 2]}
    assert run_lengths(np.ones((2, 2), bool)) == {"size": [2, 2], "counts": [0, 4]}
    assert run_lengths(np.zeros((2, 2), bool)) == {"size": [2, 2], "counts": [4]}


def test_idx(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 7), np.uint8)
    root = tmp_path / "mnist"
    put(root, "t10k-images-idx3-ubyte.gz", gzip.compress(struct.pack(">4I", 0x0803, 5, 6, 7) + pixels.tobytes()))
    put(root, "t10k-labels-idx1-ubyte.gz", gzip.compress(struct.pack(">2I", 0x0801, 5) + bytes([3, 1, 4, 1, 5])))
    rows, _, _, classes = ingested(root, tmp_path, "raw")
    assert classes == ("1", "3", "4", "5") and len(rows) == 5
    for name, row in rows.items():
        k = int(name.rsplit("!", 1)[1])
        assert classes[row["label"]] == "31415"[k] and row["split"] == "test"
        np.testing.assert_array_equal(decode(row["image"]), np.repeat(pixels[k][:, :, None], 3, 2))


def test_broken_idx(tmp_path):
    put(tmp_path, "train-images-idx3-ubyte", struct.pack(">4I", 0x0803, 5, 6, 7) + b"short")
    with pytest.raises(UserError, match="not idx images"):
        list(listing("raw", str(tmp_path), STORE, ""))


def test_cifar_binary(tmp_path):
    planes = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    root = tmp_path / "cifar"
    put(root, "data_batch_1.bin", b"".join(bytes([k]) + planes[k].tobytes() for k in range(2)))
    put(root, "test_batch.bin", bytes([1]) + planes[2].tobytes())
    put(root, "batches.meta.txt", "plane\ncar\n")
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


def tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_imagenet_as_handed_out(tmp_path):
    from scipy.io import savemat

    root = tmp_path / "imagenet"
    classes = {f"n0000000{k}": {f"n0000000{k}_{i}.JPEG": picture(10 * k + i) for i in range(2)} for k in (1, 2)}
    inner = {f"{name}.tar": tar(members) for name, members in classes.items()}
    put(root, "ILSVRC2012_img_train.tar", tar({**inner, "notes.txt": b"hello"}))
    put(root, "ILSVRC2012_img_val.tar", tar({f"ILSVRC2012_val_{k:08d}.JPEG": picture(k) for k in (1, 2, 3)}))
    with pytest.raises(UserError, match=r"ILSVRC2012_devkit_t12\.tar\.gz beside it"):
        list(listing("imagenet", str(root), STORE, ""))
    meta = io.BytesIO()
    synsets = np.array([(1, "n00000002"), (2, "n00000001")], [("ILSVRC2012_ID", "f8"), ("WNID", "O")])
    savemat(meta, {"synsets": synsets})
    data = "ILSVRC2012_devkit_t12/data"
    kit = tar({f"{data}/meta.mat": meta.getvalue(), f"{data}/ILSVRC2012_validation_ground_truth.txt": b"2\n1\n"})
    put(root, "ILSVRC2012_devkit_t12.tar.gz", gzip.compress(kit))
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
    put(root, "set-val-000000.tar", tar(members))
    rows, reasons, _, classes = ingested(root, tmp_path, "webdataset")
    assert classes == ("4", "7", "x")  # not all are numbers: by name
    first, second = (rows[next(n for n in rows if f"00{k}." in n)] for k in (1, 2))
    assert first["caption"] == "a red leaf" and classes[first["label"]] == "4" and first["split"] == "val"
    assert first["image"] == members["a/001.jpg"]
    assert second["boxes"] == [[1, 2, 3, 4]] and second["mask"] == ids and classes[second["label"]] == "7"
    told = " | ".join(reasons)
    assert "without an image (txt)" in told and "leaves the archive" in told


def test_faces_by_person_with_pairs(tmp_path):
    root = tmp_path / "lfw"
    for name in ("Ann_Example", "Bob_Example"):
        put(root, f"images/{name}/{name}_0001.jpg", picture())
    put(root, "images/stray.jpg", picture())
    put(root, "pairsDevTest.txt", "1\n")
    rows, reasons, _, classes = ingested(root, tmp_path, "faces")
    assert classes == ("Ann_Example", "Bob_Example")
    assert rows["Bob_Example_0001.jpg"]["identity"] == "Bob_Example" and rows["Bob_Example_0001.jpg"]["label"] == 1
    assert list(reasons) == ["no person: it lies in no folder"]


def test_hugging_face_parquet(tmp_path):
    images = [{"bytes": picture(k), "path": f"{k}.jpg"} for k in range(3)]
    file = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(pa.table({"image": images, "label": [0, 1, 0]}), file, row_group_size=2)
    rows, _, _, classes = ingested(file, tmp_path, "manifest")
    assert classes == ("0", "1") and len(rows) == 3
    assert {row["image"] for row in rows.values()} == {image["bytes"] for image in images}


def test_a_truncated_shard_is_one_line(tmp_path):
    data = tar({"1.jpg": picture(), "1.cls": b"0", "2.jpg": picture(), "2.cls": b"1"})
    put(tmp_path, "t/x.tar", data[:1200])
    with pytest.raises(UserError, match=r"x\.tar: the archive is broken") as told:
        list(listing("webdataset", str(tmp_path / "t"), STORE, ""))
    assert "\n" not in str(told.value)


def test_the_recipe_knows_every_layout():
    from typing import get_args

    from mapsto.config.schema import DataConfig
    from mapsto.data.sources import LAYOUTS

    assert set(get_args(DataConfig.model_fields["layout"].annotation)) == {"auto", *LAYOUTS}
