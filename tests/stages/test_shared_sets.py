"""Real data sets are ingested whole: counts against their own files, read here by other means, and pixels against Pillow's.

They lie in the folder that MAPSTO_DATASETS names, each in the layout of its publisher; what is not there is skipped.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from mapsto.core.codecs import decode, quiet
from mapsto.stages import ingest
from tests.stages.ingested import local, run

FOLDER = os.environ.get("MAPSTO_DATASETS", "")
SRGB = ImageCms.createProfile("sRGB")


@pytest.fixture
def ingested(monkeypatch, tmp_path):
    """`ingested(name)`: (folder, data set, what was refused: path below the folder → reason)."""

    def ingested(name: str):
        folder = Path(FOLDER) / name
        if not FOLDER or not folder.is_dir():
            pytest.skip(f"the data set {name} is not here: MAPSTO_DATASETS names no folder that has it")
        monkeypatch.setattr(ingest, "_summaries", local)
        dataset, _, _ = run(folder, tmp_path)
        parts = sorted(Path(dataset.artifact.path("quarantine")).glob("*.jsonl"))
        refused = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
        manifest = dataset.manifest
        assert manifest["rows_in"] == manifest["rows_kept"] + len(refused)
        return folder, dataset, {str(Path(e["source"]).relative_to(folder)): e["reason"] for e in refused}

    return ingested


def rows(dataset, split: str) -> int:
    return dataset.manifest["splits"][split]["rows"]


def every(dataset) -> list[dict]:
    return [row for split in dataset.manifest["splits"] for row in dataset.read(split)]


def test_blood_cells_two_of_their_boxes_are_invalid(ingested):
    folder, dataset, refused = ingested("bccd")
    texts = [path.read_text() for path in (folder / "Annotations").glob("*.xml")]
    written = Counter(name for text in texts for name in re.findall(r"<object>\s*<name>(\w+)</name>", text))
    kept = sum(map(Counter, dataset.manifest["objects"].values()), Counter())
    assert len(texts) == dataset.manifest["rows_kept"] == 364 and not refused and len(kept) == 3
    assert written.total() == 4888 and kept.total() == 4886 and kept <= written
    assert dataset.manifest["dropped"] == {"boxes without area inside the image": 2}
    assert sum(row["boxes_left_out"] for row in every(dataset)) == 2
    for split in ("train", "val", "test"):
        assert rows(dataset, split) == len((folder / f"ImageSets/Main/{split}.txt").read_text().split())


def test_coco_mini(ingested):
    folder, dataset, refused = ingested("coco-mini")
    assert not refused and (rows(dataset, "val"), dataset.manifest["rows_kept"]) == (79, 80 + 79)
    boxes, captions, points = Counter(), Counter(), 0
    for split in ("train2017", "val2017"):
        read = {
            k: json.loads((folder / f"annotations/{k}_{split}.json").read_text()) for k in ("instances", "captions")
        }
        people = json.loads((folder / f"annotations/person_keypoints_{split}.json").read_text())["annotations"]
        names = {image["id"]: image["file_name"] for image in read["instances"]["images"]}
        boxes.update(names[each["image_id"]] for each in read["instances"]["annotations"])
        captions.update(names[each["image_id"]] for each in read["captions"]["annotations"])
        points += sum(each["num_keypoints"] > 0 for each in people)
    for row in every(dataset):
        name = Path(row["source"]).name
        assert len(row["boxes"]) == len(row["segments"]) == boxes[name]
        assert len((row["caption"] or "").splitlines()) == captions[name]
        points -= sum(any(keypoints[2::3]) for keypoints in row["keypoints"])
    assert points == 0 and len(dataset.manifest["classes"]) == 80


def test_camvid_masks_keep_their_ids(ingested):
    folder, dataset, refused = ingested("camvid")
    assert not refused and (rows(dataset, "val"), dataset.manifest["rows_kept"]) == (17, 53 + 17)
    found: Counter[str] = Counter()
    for path in [*(folder / "trainannot").iterdir(), *(folder / "valannot").iterdir()]:
        found.update({str(k): n for k, n in enumerate(Image.open(path).histogram()) if n})
    assert sum(map(Counter, dataset.manifest["mask_pixels"].values()), Counter()) == found and len(found) == 12


def test_penn_fudan_boxes_are_those_that_its_annotations_tell(ingested):
    folder, dataset, refused = ingested("penn-fudan")
    assert not refused and dataset.manifest["rows_kept"] == 24
    number = r"\((\d+), (\d+)\)"
    for row in every(dataset):
        text = (folder / "Annotation" / f"{Path(row['source']).stem}.txt").read_text(errors="replace")
        told = [list(map(int, found)) for found in re.findall(rf": {number} - {number}", text)]
        np.testing.assert_allclose(
            row["boxes"], np.array(told) - [1, 1, 0, 0], atol=2
        )  # theirs are drawn, and count from 1


def test_lfw_has_the_faces_of_the_pairs(ingested):
    folder, dataset, refused = ingested("lfw")
    assert not refused and dataset.manifest["rows_kept"] == 1548
    there = {(row["identity"], Path(row["source"]).name) for row in every(dataset)}
    pairs = [line.split("\t") for line in (folder / "pairsDevTest.txt").read_text().splitlines()[1:]]
    assert len(pairs) == 1000
    wanted = set()
    for name, first, *others in pairs:
        other, second = others if len(others) == 2 else (name, others[0])
        wanted |= {(name, f"{name}_{int(first):04d}.jpg"), (other, f"{other}_{int(second):04d}.jpg")}
    on_disk = {(path.parent.name, path.name) for path in (folder / "images").glob("*/*.jpg")}
    assert there == on_disk and len(wanted - on_disk) <= 1  # one copy lacks Betsy_Coffin_0001.jpg


def test_mnist(ingested):
    folder, dataset, refused = ingested("mnist")
    labels = np.frombuffer(gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    assert not refused and rows(dataset, "test") == len(labels) == 10_000
    assert dataset.manifest["counts"]["test"] == {str(k): int((labels == k).sum()) for k in range(10)}
    pixels = np.frombuffer(gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    row = next(iter(dataset.read("test")))
    np.testing.assert_array_equal(decode(row["image"])[..., 0], pixels.reshape(-1, 28, 28)[row["row_id"]])


def test_clothing(ingested):
    folder, dataset, refused = ingested("clothing")
    assert not refused and dataset.manifest["rows_kept"] == 341
    counts = sum(map(Counter, dataset.manifest["counts"].values()), Counter())
    assert counts == {path.name: len(list(path.iterdir())) for path in folder.iterdir()} and len(counts) == 10


def test_dicom_pictures_are_kept_and_the_rest_is_told_apart(ingested):
    import pydicom

    folder, dataset, refused = ingested("dicom")
    assert dataset.manifest["rows_in"] == 78 and dataset.manifest["rows_kept"] + len(refused) == 78
    for path in folder.iterdir():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = pydicom.dcmread(path)
                if pictured := "PixelData" in found:
                    assert found.pixel_array.size
            except Exception:  # noqa: BLE001  a damaged file's may be any
                pictured = False
        assert (path.name not in refused) == pictured, (path.name, refused.get(path.name))
        assert "object has no attribute" not in refused.get(path.name, "")


def test_odd_and_broken_files_are_read_as_pillow_reads_them_or_refused(ingested):
    folder, dataset, refused = ingested("messy")
    assert dataset.manifest["rows_in"] == len([path for path in folder.rglob("*") if path.is_file()]) == 429
    for row in every(dataset):
        image, profiled = by_pillow(Path(row["source"]).read_bytes())
        ours = decode(row["image"])
        assert ours.shape == image.shape, row["source"]
        # A profile that calls itself sRGB is not applied: littleCMS's rounding is all that it would do.
        assert np.abs(ours.astype(int) - image).max() <= (1 if profiled else 0), row["source"]
    for name, reason in refused.items():
        data = (folder / name).read_bytes()
        if "too large" in reason:
            assert Image.open(io.BytesIO(data)).size == (65535, 65535)
            continue
        assert ("empty file" in reason) == (not data)
        with pytest.raises((OSError, SyntaxError, ValueError)):
            by_pillow(data)
        assert "unknown format" not in reason or not data.startswith((b"\xff\xd8\xff", b"\x89PNG")), (name, reason)


def by_pillow(data: bytes) -> tuple[np.ndarray, bool]:
    """Pillow's own reading, upright, its colour profile applied, alpha over white; and whether there is a profile."""
    with warnings.catch_warnings(action="ignore"), quiet(data), Image.open(io.BytesIO(data)) as stored:
        stored.load()
        image, profile = ImageOps.exif_transpose(stored), stored.info.get("icc_profile")
        if image.mode in ("I", "I;16", "I;16B", "F"):
            values = np.asarray(image).astype(float)
            top = 65535 if image.mode.startswith("I;16") or values.max() > 255 else 255
            grey = (values.clip(0, top) * 255 / top).round().astype(np.uint8)
            return np.stack([grey] * 3, -1), False
        if profile and image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        if profile:
            alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
            flat = image.convert(image.mode[:-1]) if alpha else image
            try:
                used = ImageCms.ImageCmsProfile(io.BytesIO(profile))
                image = ImageCms.profileToProfile(flat, used, SRGB, outputMode="RGB") or image
                if alpha:
                    image.putalpha(alpha)
            except (ImageCms.PyCMSError, OSError, ValueError):  # broken, or of other channels
                profile = None
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB")), bool(profile)
