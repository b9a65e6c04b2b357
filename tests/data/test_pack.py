"""Packing and metadata in a shard's rows: sizes, annotations against closed forms and pycocotools. No Ray."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mapsto.core.artifact import Artifact
from mapsto.core.codecs import decode, encode, fit
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.data.annotations import run_lengths
from mapsto.data.chunks import cut
from mapsto.data.pack import Packing, packed, run_mask
from mapsto.data.shards import ShardJob
from mapsto.data.sources import listing

STORE = Storage(retries=0)
HEIGHT, WIDTH = 60, 100


def picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 2, y * 3, x + y], -1).astype(np.uint8)


def ingested(source: Path, layout: str, work: Path, **settings) -> tuple[dict[str, dict], list[dict], dict]:
    """(rows by file name, refused, summary) of a source of one chunk."""
    artifact = Artifact(str(work / "d" / "ingest" / "0123456789abcdef"), STORE)
    folder = artifact.path("work")
    listed = cut(listing(layout, str(source), STORE, folder), STORE, folder, {}, 0, None)
    assert listed.chunks == 1
    summary = ShardJob(artifact, STORE, listed.classes, listed.columns, 10**8, 1, 2, **settings).run(0)
    rows = [row for file in summary["files"] for row in pq.read_table(artifact.path(file["path"])).to_pylist()]
    return {row["source"].rsplit("/", 1)[-1]: row for row in rows}, summary["refused"], summary


def test_everything_follows_the_size():
    things = np.zeros((HEIGHT, WIDTH), bool)
    things[12:30, 40:80] = True
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[:, 50:], ids[30:, :50] = 3, 255
    row = {
        "image": b"as it came", "label": 1, "width": WIDTH, "height": HEIGHT, "format": "png", "caption": "kept",
        "boxes": [[40.0, 12.0, 80.0, 30.0], [0.0, 0.0, 100.0, 60.0]], "box_labels": [1, 0], "crowd": [True, False],
        "segments": [json.dumps(run_lengths(things)), json.dumps([[0, 0, 100, 0, 100, 60], [10, 20, 30, 40, 50, 60]])],
        "area": [720.0, None],
        "keypoints": [[10.0, 20.0, 2.0, 0.0, 0.0, 0.0], []], "mask": encode(ids, "png"),
    }  # fmt: skip
    out, image = packed(row, picture(), Packing(50, 90))
    assert (out["width"], out["height"], out["format"]) == (50, 30, "jpeg") and image.shape == (30, 50, 3)
    assert decode(out["image"]).shape == (30, 50, 3)
    np.testing.assert_array_equal(image, fit(picture(), 50))
    assert np.abs(decode(out["image"]).astype(int) - image).mean() < 4
    assert out["boxes"] == [[20, 6, 40, 15], [0, 0, 50, 30]]
    assert out["keypoints"] == [[5, 10, 2, 0, 0, 0], []]
    assert out["area"] == [180, None]
    first, second = map(json.loads, out["segments"])
    np.testing.assert_array_equal(run_mask(first), things[1::2, 1::2])
    assert second == [[0, 0, 50, 0, 50, 30], [5, 10, 15, 20, 25, 30]]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(out["mask"]))), ids[1::2, 1::2])
    assert {k: out[k] for k in ("label", "caption", "box_labels", "crowd")} == {k: row[k] for k in ("label", "caption", "box_labels", "crowd")}  # fmt: skip


def test_sides_shrink_each_by_their_own_rounding():
    row = {"boxes": [[0.0, 0.0, 333.0, 7.0]], "image": b"", "width": 333, "height": 7, "format": "png"}
    out, _ = packed(row, picture(7, 333), Packing(100, 90))
    assert (out["width"], out["height"]) == (100, 2) and out["boxes"] == [[0, 0, 100, 2]]


def test_a_small_image_keeps_its_size_and_becomes_jpeg():
    row = {"boxes": [[1.0, 2.0, 3.0, 4.0]], "image": b"", "width": 8, "height": 6, "format": "png"}
    out, image = packed(row, picture(6, 8), Packing(400, 90))
    assert image.shape == (6, 8, 3) and out["boxes"] == row["boxes"] and out["image"][:3] == b"\xff\xd8\xff"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_run_lengths_are_pycocotools(height, width, seed):
    from pycocotools import mask as coco

    thing = np.random.default_rng(seed).random((height, width)) < 0.4
    theirs = coco.encode(np.asfortranarray(thing.astype(np.uint8)))
    np.testing.assert_array_equal(run_mask({"size": theirs["size"], "counts": theirs["counts"].decode()}), thing)
    np.testing.assert_array_equal(run_mask(run_lengths(thing)), thing)


def test_long_runs_are_pycocotools():
    from pycocotools import mask as coco

    thing = np.zeros((500, 700), np.uint8)
    thing[100:400, 3:690:7] = 1
    theirs = coco.encode(np.asfortranarray(thing))
    np.testing.assert_array_equal(run_mask({"size": theirs["size"], "counts": theirs["counts"].decode()}), thing > 0)


@pytest.mark.parametrize(
    "segment",
    [
        5, [5], [["a", 1]], {"size": [HEIGHT, WIDTH]}, {"size": [HEIGHT, WIDTH], "counts": [5]}, {"size": 3, "counts": []},
        {"size": [2, 2], "counts": [4]}, {"size": [HEIGHT, WIDTH], "counts": "~~~"}, {"size": [HEIGHT, WIDTH], "counts": [-1, 6001]},
        {"size": [10**9, 10**9], "counts": [10**18]},
    ],
)  # fmt: skip
def test_a_segment_that_is_none_keeps_its_image_out(segment):
    row = {"boxes": [[0.0, 0.0, 1.0, 1.0]], "segments": [json.dumps(segment)], "image": b""}
    with pytest.raises(UserError, match="its segmentation cannot be scaled") as told:
        packed(row, picture(), Packing(50, 90))
    assert "\n" not in str(told.value)


def photograph(orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "SecretMaker"
    exif.get_ifd(0x8825)[1] = "N"
    out = io.BytesIO()
    Image.fromarray(picture()).save(out, "JPEG", exif=exif.tobytes())
    return out.getvalue()


def test_rows_have_no_metadata_unless_it_is_wanted(tmp_path):
    source = tmp_path / "images"
    source.mkdir()
    (source / "a.jpg").write_bytes(photograph())
    Image.fromarray(picture()).save(source / "b.gif")
    rows, _, summary = ingested(source, "folder", tmp_path / "1")
    row = rows["a.jpg"]
    assert b"SecretMaker" not in row["image"] and (row["width"], row["height"]) == (HEIGHT, WIDTH)  # upright
    np.testing.assert_array_equal(decode(row["image"]), decode(photograph()))
    assert row["content_sha256"] == hashlib.sha256(row["image"]).hexdigest()
    assert summary["unstripped"] == {"gif": 1}

    rows, _, summary = ingested(source, "folder", tmp_path / "2", keep_metadata=True)
    assert rows["a.jpg"]["image"] == photograph() and not summary["unstripped"]

    rows, _, summary = ingested(source, "folder", tmp_path / "3", packing=Packing(50, 90))
    row = rows["a.jpg"]
    assert (row["width"], row["height"]) == (30, 50) == decode(row["image"]).shape[1::-1]
    assert b"SecretMaker" not in row["image"] and not summary["unstripped"] and rows["b.gif"]["format"] == "jpeg"
    assert row["content_sha256"] == hashlib.sha256(row["image"]).hexdigest()


def test_coco_packed_through_a_shard(tmp_path):
    source = tmp_path / "coco"
    source.mkdir()
    (source / "1.png").write_bytes(encode(picture(), "png"))
    things = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [40, 12, 40, 18], "segmentation": [[40, 12, 80, 12, 80, 30]]}
    ]
    listed = {
        "images": [{"id": 1, "file_name": "1.png"}],
        "annotations": things,
        "categories": [{"id": 1, "name": "x"}],
    }
    (source / "annotations.json").write_text(json.dumps(listed))
    rows, refused, _ = ingested(source, "coco", tmp_path, packing=Packing(50, 90))
    assert not refused and rows["1.png"]["boxes"] == [[20, 6, 40, 15]]
    assert json.loads(rows["1.png"]["segments"][0]) == [[20, 6, 40, 6, 40, 15]]


def test_the_recipe_asks_for_it():
    from pydantic import ValidationError

    from mapsto.config.schema import DataConfig, PackConfig

    plain = DataConfig(source="x")
    assert plain.pack is None and plain.keep_metadata is False and plain.frames_per_s == 1.0
    assert DataConfig.model_validate({"source": "x", "pack": {}}).pack == PackConfig(longest_side=400, quality=90)
    assert DataConfig.model_validate({"source": "x", "frames_per_s": None}).frames_per_s is None
    for wrong in (
        {"pack": {"longest_side": 0}},
        {"pack": {"quality": 101}},
        {"frames_per_s": 0},
        {"frames_per_s": "inf"},
    ):
        with pytest.raises(ValidationError):
            DataConfig.model_validate({"source": "x"} | wrong)
