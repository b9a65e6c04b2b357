"""Images and masks in pairs, drawn here: what is found, and how masks are counted and become boxes."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mapsto.core.artifact import Artifact
from mapsto.data.annotations import run_lengths
from mapsto.data.chunks import cut
from mapsto.data.dataset import Dataset
from mapsto.data.shards import ShardJob
from mapsto.data.sources import listing
from mapsto.data.tally import Tally

from .layouts import HEIGHT, STORE, WIDTH, ingested, mask, picture, put


def test_pairs_of_images_and_masks(tmp_path):
    ids = np.zeros((HEIGHT, WIDTH), int)
    ids[2:5, 3:9] = 2
    root = tmp_path / "camvid"
    put(root / "train/x.png", picture(1, "png"))
    put(root / "trainannot/x.png", mask(ids, palette=True))
    put(root / "val/y.png", picture(2, "png"))
    put(root / "valannot/z.png", mask(ids))
    put(root / "val/small.png", picture(3, "png"))
    put(root / "valannot/small.png", mask(ids[:5]))
    rows, reasons, _, _ = ingested(root, tmp_path / "w1", "pairs")
    assert set(rows) == {"x.png"} and rows["x.png"]["split"] == "train"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(rows["x.png"]["mask"]))), ids)
    told = " | ".join(reasons)
    assert "no mask of its name in valannot" in told and "not in val" in told and "differ in size: 32x5, 32x24" in told


@pytest.mark.parametrize("struct", [True, False])
def test_masks_in_the_cells_of_a_parquet_file(tmp_path, struct):
    """Hugging Face's `{bytes, path}` and plain bytes, over several row groups."""
    ids = [np.full((HEIGHT, WIDTH), k) for k in range(5)]
    cells = [mask(values) for values in ids]
    images = [{"bytes": picture(k), "path": f"{k}.jpg"} for k in range(7)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    masks = [cells[0], cells[1], None, cells[3], b"no picture", mask(ids[4][:5]), cells[4]]
    given = [None if data is None else {"bytes": data, "path": None} for data in masks] if struct else masks
    if struct:
        given[6] = {"bytes": None, "path": "elsewhere.png"}
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": images, "mask": pa.array(given, kind)}), file, row_group_size=2)
    rows, reasons, _, _ = ingested(file, tmp_path, "manifest")
    got = {picture(k): k for k in range(7)}
    found = {got[row["image"]]: row["mask"] for row in rows.values()}
    assert found == {0: cells[0], 1: cells[1], 2: None, 3: cells[3]} | ({} if struct else {6: cells[4]})
    told = " | ".join(reasons)
    assert "mask and image differ in size" in told and "not an image" in told
    assert ("a path here, and no bytes: elsewhere.png" in told) == struct


def test_the_pixels_of_each_mask_id_are_counted(tmp_path):
    rng, root = np.random.default_rng(0), tmp_path / "camvid"
    ids = {name: rng.choice([0, 3, 11, 255], (HEIGHT, WIDTH)) for name in "abc"}
    for name, values in ids.items():
        split = "val" if name == "c" else "train"
        put(root / f"{split}/{name}.png", picture(ord(name), "png"))
        put(root / f"{split}annot/{name}.png", mask(values))
    put(root / "train/cut.png", picture(9, "png")[:200])  # kept out, and its mask with it
    put(root / "trainannot/cut.png", mask(np.full((HEIGHT, WIDTH), 7)))
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
    put(root / "PNGImages/p.png", picture(1, "png"))
    put(root / "PedMasks/p_mask.png", mask(ids))
    rows, _, _, classes = ingested(root, tmp_path, "pairs")
    row = rows["p.png"]
    assert classes == ("object",) and row["boxes"] == [[3, 2, 9, 5], [0, 10, 2, 12]]
    assert [json.loads(s) for s in row["segments"]] == [run_lengths(ids == 1), run_lengths(ids == 2)]


def test_run_lengths_are_columns_of_zeros_and_ones_in_turn():
    # By hand: a 2x3 mask [[0,1,1],[0,0,1]], column by column 0 0 | 1 0 | 1 1.
    assert run_lengths(np.array([[0, 1, 1], [0, 0, 1]], bool)) == {"size": [2, 3], "counts": [2, 1, 1, 2]}
    assert run_lengths(np.ones((2, 2), bool)) == {"size": [2, 2], "counts": [0, 4]}
    assert run_lengths(np.zeros((2, 2), bool)) == {"size": [2, 2], "counts": [4]}


def test_ade20k_and_pascal_folders(tmp_path):
    """PASCAL's masks are of palettes, with 255 for void; of its images most have none."""
    ids = np.full((HEIGHT, WIDTH), 255)
    ids[2:5, 3:9] = 20
    ade = tmp_path / "ade"
    for k, split in enumerate(("training", "validation")):
        put(ade / f"images/{split}/{k}.jpg", picture(k))
        put(ade / f"annotations/{split}/{k}.png", mask(ids))
    rows, reasons, _, _ = ingested(ade, tmp_path / "w1", "pairs")
    assert {name: row["split"] for name, row in rows.items()} == {"0.jpg": "train", "1.jpg": "val"} and not reasons
    pascal = tmp_path / "pascal"
    for name in "abc":
        put(pascal / f"JPEGImages/{name}.jpg", picture(ord(name)))
    for name in "ab":
        put(pascal / f"SegmentationClass/{name}.png", mask(ids, palette=True))
    put(pascal / "ImageSets/Segmentation/train.txt", "a\n")
    put(pascal / "ImageSets/Segmentation/val.txt", "b\n")
    rows, reasons, _, _ = ingested(pascal, tmp_path / "w2", "pairs")
    assert {name: row["split"] for name, row in rows.items()} == {"a.jpg": "train", "b.jpg": "val"} and not reasons
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(rows["b.jpg"]["mask"]))), ids)
