"""Ingest: every file accounted for, the manifest against the images themselves, errors that say what and where."""

import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from mapsto.config.schema import DataConfig
from mapsto.core.artifact import Artifact
from mapsto.core.codecs import decode, decode_mask, encode
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.data.chunks import read_chunk
from mapsto.data.rows import Rows
from mapsto.stages import ingest
from mapsto.stages.ingest import Ingest
from mapsto.stages.versions import verify
from tests import pictures
from tests.stages.ingested import local, run


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(ingest, "_summaries", local)


def images(folder: Path, counts: dict[str, int], side=16, seed=0) -> Path:
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        for k in range(count):
            path = folder / name / f"{k}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(rng.integers(0, 256, (side, side + 4, 3), np.uint8)))
    return folder


def test_a_data_set_of_drawn_photographs(cluster, scenes, tmp_path):
    dataset, done, said = run(scenes, tmp_path / "out")
    manifest = dataset.manifest
    files = [path for path in scenes.rglob("*") if path.is_file()]
    assert manifest["rows_in"] == len(files) == 50 and manifest["rows_quarantined"] == 2 and manifest["rows_kept"] == 48
    assert set(manifest["given_splits"]) == {"train", "val", "test"} and "2 of 50 files quarantined" in said
    assert manifest["classes"] == sorted(manifest["classes"])
    refused = [
        json.loads(line)
        for path in Path(dataset.artifact.path("quarantine")).iterdir()
        for line in path.read_text().splitlines()
    ]
    assert len(refused) == 2 and all(Path(entry["source"]).exists() and entry["reason"] for entry in refused)
    pixels = []
    for split in manifest["splits"]:
        for row in dataset.read(split):
            path = Path(row["source"])
            assert path.read_bytes() == row["image"]
            assert path.parent.name == manifest["classes"][row["label"]] and path.parent.parent.name == split
            image = decode(row["image"])
            assert image.shape == (row["height"], row["width"], 3)
            if split == "train":
                pixels.append(image.reshape(-1, 3) / 255)
    mean = np.mean([p.mean(0) for p in pixels], axis=0)
    square = np.mean([(p**2).mean(0) for p in pixels], axis=0)
    np.testing.assert_allclose(manifest["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(manifest["std"], np.sqrt(square - mean**2), atol=1e-5)
    ids = [row["row_id"] for split in manifest["splits"] for row in dataset.read(split, ["row_id"])]
    assert len(set(ids)) == 48 and done.metrics["images"] == 48
    assert decode(dataset.artifact.read("sheet.jpg")).shape[2] == 3
    assert "48 kept + 2 quarantined" in dataset.artifact.read("report.html").decode()
    assert not Path(dataset.artifact.path("work")).exists()


def test_masks_boxes_and_captions_come_through_a_manifest(here, masked_scenes, tmp_path):
    dataset, _, _ = run(masked_scenes, tmp_path)
    assert {"mask", "boxes", "box_labels", "caption", "label"} <= set(dataset.info().columns)
    given = {Path(r["image"]).name: r for r in map(json.loads, masked_scenes.read_text().splitlines())}
    rows = [row for split in dataset.manifest["splits"] for row in dataset.read(split)]
    assert len(rows) == len(given) == 48
    for row in rows:
        told = given[Path(row["source"]).name]
        np.testing.assert_allclose(np.reshape(row["boxes"], (-1, 4)), np.reshape(told["boxes"], (-1, 4)))
        assert row["caption"] == told["caption"]
        assert decode_mask(row["mask"]).shape == (row["height"], row["width"])


def test_tar_files_over_s3(cluster, s3, tmp_path):
    bucket = s3.uri("ingest-tars")
    folder = images(tmp_path / "plain", {"train/b": 30, "train/a": 30, "test/a": 8})
    for split in ("train", "test"):
        path = tmp_path / f"{split}.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(folder / split, arcname=".")
        s3.storage.upload(path, f"{bucket}/{split}.tar")
    dataset, done, _ = run(bucket, s3.uri("ingest-tars-out"), s3.storage, splits={"val": 0.2, "test": 0.9})
    assert dict(dataset.info().rows) == {"train": 48, "val": 12, "test": 8} and dataset.info().classes == ("a", "b")
    assert dataset.manifest["counts"]["val"] == {"a": 6, "b": 6} and done.metrics["quarantined"] == 0
    assert s3.storage.names(f"{dataset.artifact.uri}/work") == []
    assert s3.key not in json.dumps(dataset.manifest) and s3.secret not in json.dumps(dataset.manifest)


def test_an_interrupted_ingest_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("mapsto.data.chunks.CHUNK_ROWS", 10)
    source = images(tmp_path / "images", {"a": 30, "b": 20})

    def interrupted(work, numbers):
        yield from local(work, numbers[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(ingest, "_summaries", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out")
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    assert len(shards) == 3
    images(source, {"later": 5})  # the listing was made: what came later is not part of this data set
    worked: list[int] = []
    monkeypatch.setattr(ingest, "_summaries", lambda work, numbers: local(work, worked.extend(numbers) or numbers))
    dataset, done, said = run(source, tmp_path / "out", resume=True)
    assert done.metrics["images"] == 50 and "3 of 6 shards are there already" in said and len(worked) == 3
    assert all(path.stat().st_mtime_ns == time for path, time in shards.items())
    monkeypatch.setattr(ingest, "_summaries", local)
    for path in (source / "later").iterdir():
        path.unlink()
    again, whole, _ = run(source, tmp_path / "other")
    assert whole.digest == done.digest and again.manifest["splits"] == dataset.manifest["splits"]


def test_a_chunk_of_large_images_becomes_several_shards(here, tmp_path, monkeypatch):
    """A manifest gives no sizes; what is held is bounded by what was read."""
    images(tmp_path / "i", {"a": 20, "b": 20})
    rows = [{"image": f"i/{c}/{k}.jpg", "label": c, "split": "train"} for k in range(20) for c in "ab"]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = run(tmp_path / "m.jsonl", tmp_path / "whole", splits={})[0]
    largest = max(len(row["image"]) for row in whole.read("train"))
    monkeypatch.setattr("mapsto.data.shards.SHARD_BYTES", 5 * largest)
    parted, done, said = run(tmp_path / "m.jsonl", tmp_path / "parted", splits={})
    assert "1 shards to write" in said and len(parted.split("train").files) >= 6
    for file in parted.manifest["splits"]["train"]["files"]:
        images_of = pq.read_table(parted.artifact.path(file["path"]), columns=["image"])["image"].to_pylist()
        assert len(images_of) == file["rows"] and sum(map(len, images_of[:-1])) < 5 * largest
    by_id = {row["row_id"]: row for row in whole.read("train")}
    assert {row["row_id"]: row for row in parted.read("train")} == by_id and verify(parted) == []
    assert parted.manifest["counts"] == whole.manifest["counts"] == {"train": {"a": 20, "b": 20}}
    assert Rows([parted.split("train")]).image(17) == by_id[17]["image"]
    assert run(tmp_path / "m.jsonl", tmp_path / "again", splits={})[1].digest == done.digest


def test_people_whom_the_source_s_own_splits_part_are_told(here, tmp_path):
    images(tmp_path / "i", {"a": 6})
    rows = [{"image": f"i/a/{k}.jpg", "split": "train" if k < 4 else "test", "identity": f"p{k % 3}"} for k in range(6)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for group, told in (("identity", True), (None, False)):
        _, _, said = run(tmp_path / "m.jsonl", tmp_path / f"out-{group}", splits={}, group=group)
        assert ("group: identity: 2 of 3 groups lie in several of the source's own splits" in said) == told


@pytest.mark.parametrize("gone", [(), ("chunk-000001.json.gz",), ("listed.json",)])
def test_an_ingest_killed_before_it_was_finished_goes_on(here, tmp_path, monkeypatch, gone):
    """All written but `artifact.json`: nothing is done again; where a part of the listing is gone, everything is."""
    monkeypatch.setattr("mapsto.data.chunks.CHUNK_ROWS", 10)
    source = images(tmp_path / "images", {"a": 30, "b": 20})

    def killed(self, **given):
        raise KeyboardInterrupt

    finish = Artifact.finish
    monkeypatch.setattr(Artifact, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out")
    monkeypatch.setattr(Artifact, "finish", finish)
    work = tmp_path / "out/trial/ingest/0000/work"
    for name in gone:
        (work / name).unlink()
    worked: list[int] = []
    monkeypatch.setattr(ingest, "_summaries", lambda job, numbers: local(job, worked.extend(numbers) or numbers))
    _, done, said = run(source, tmp_path / "out", resume=True)
    assert len(worked) == (6 if gone else 0) and not work.exists()
    assert ("it begins anew" in said) == ("chunk-000001.json.gz" in gone)
    assert run(source, tmp_path / "whole")[1].digest == done.digest


def test_a_photograph_of_60_megapixels_is_kept_whole(here, tmp_path):
    source = images(tmp_path / "images", {"a": 10, "b": 10})
    large = encode(np.full((6_000, 10_000, 3), 90, np.uint8))
    (source / "a" / "large.jpg").write_bytes(large)
    dataset, done, _ = run(source, tmp_path / "out")
    assert (done.metrics["images"], done.metrics["quarantined"]) == (21, 0)
    files = [path for path in Path(dataset.artifact.uri).rglob("*.parquet") if "image" in pq.read_schema(path).names]
    rows = [row for path in files for row in pq.read_table(path, columns=["image", "width", "height"]).to_pylist()]
    assert {"image": large, "width": 10_000, "height": 6_000} in rows


def test_what_is_no_image_is_kept_apart_with_its_reason(here, tmp_path):
    source = images(tmp_path / "images", {"a": 20, "b": 20})
    good = (source / "a" / "0.jpg").read_bytes()
    spoiled = {
        "text.jpg": (b"no image", "not an image"), "empty.jpg": (b"", "empty file"), "cut.jpg": (good[: len(good) // 2], "cannot be decoded"),
        "bomb.png": (pictures.bomb(), "megapixels, over the limit"), "small.png": (encode(np.zeros((2, 9, 3), np.uint8), "png"), "smaller than min_side"),
    }  # fmt: skip
    for name, (data, _) in spoiled.items():
        (source / "a" / name).write_bytes(data)
    dataset, done, _ = run(source, tmp_path / "out", min_side=4)
    assert (done.metrics["images"], done.metrics["quarantined"]) == (40, 5)
    lines = [
        json.loads(line)
        for path in Path(dataset.artifact.path("quarantine")).iterdir()
        for line in path.read_text().splitlines()
    ]
    assert {Path(entry["source"]).name for entry in lines} == set(spoiled)
    for entry in lines:
        assert spoiled[Path(entry["source"]).name][1] in entry["reason"], entry


def test_wrong_masks_and_boxes_are_kept_apart(here, tmp_path):
    source = images(tmp_path, {".": 5})
    (tmp_path / "small.png").write_bytes(encode(np.zeros((5, 5), np.uint8), "png"))
    rows = [
        {"image": "0.jpg", "boxes": [[1, 1, 5, 5]], "box_labels": ["x"]}, {"image": "1.jpg", "boxes": [[5, 1, 1, 5]], "box_labels": ["x"]},
        {"image": "2.jpg", "boxes": [[1, 1, 5, 5]], "box_labels": ["x", "y"]}, {"image": "3.jpg", "mask": "small.png"}, {"image": "0.jpg", "mask": "gone.png"},
        {"image": "4.jpg", "boxes": [[1, 2], [3, 4]], "box_labels": ["x"]},
        {"image": "4.jpg", "boxes": [[5, 1, 1, 5]], "box_labels": ["x"], "value": "nan"},
    ]  # fmt: skip
    (source / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset, _, said = run(source / "m.jsonl", tmp_path / "out", splits={})
    assert dataset.manifest["rows_kept"] == 2 and dataset.info().classes == ("x", "y")
    kept = {row["source"].rsplit("/", 1)[-1]: row["boxes"] for row in dataset.read("train")}
    assert kept == {"0.jpg": [[1, 1, 5, 5]], "1.jpg": []}  # the box turned inside out is left out, its image stays
    assert dataset.manifest["dropped"] == {"boxes without area inside the image": 1}
    assert "left out: boxes without area inside the image: 1" in said
    reasons = " ".join(dataset.manifest["reasons"])
    assert (
        "differ in size" in reasons
        and "its mask is not there" in reasons
        and "differ in number" in reasons
        and "boxes" in dataset.manifest["reasons"]
    )


def test_one_class_is_said_and_a_flat_folder_has_no_labels(here, tmp_path):
    _, _, said = run(images(tmp_path / "one", {"cat": 30}), tmp_path / "out")
    assert "one class only (cat)" in said
    dataset, _, _ = run(images(tmp_path / "flat", {".": 30}), tmp_path / "out2")
    assert dataset.info().classes == () and "label" not in dataset.info().columns


def test_errors_say_what_and_where(here, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.jpg").write_bytes(b"no image")
    few = images(tmp_path / "few", {"a": 2})
    only_train = images(tmp_path / "split", {"train/a": 9})
    (only_train / "test" / "a").mkdir(parents=True)
    (only_train / "test" / "a" / "x.jpg").write_bytes(b"no image")
    cases = [
        (tmp_path / "nowhere", "nowhere: not found"),
        (tmp_path / "empty", "empty: the data set is empty"),
        (
            tmp_path / "broken",
            "broken: none of its 1 files is an image that can be read; the first: .*x.jpg: not an image",
        ),
        (few, "few: the val split has no images; 2 images are too few for its share"),
        (only_train, "split: the test split has no images; the source names it, but none of its files"),
    ]
    for source, message in cases:
        with pytest.raises(UserError, match=message):
            run(source, tmp_path / "out" / source.name)
    with pytest.raises(UserError, match=r"data.trian: the recipe has no such data set, did you mean 'train'"):
        Ingest().section(SimpleNamespace(data={"train": DataConfig(source="x")}), {"role": "trian"})


def test_storage_that_is_not_there_or_refuses_is_named(here, s3, tmp_path):
    with pytest.raises(UserError, match=r"s3://no-such-bucket/x: the bucket does not exist"):
        run("s3://no-such-bucket/x", tmp_path, s3.storage)
    wrong = Storage(endpoint_url=s3.endpoint, key="other", secret="wrong", retries=0)
    with pytest.raises(UserError, match=r"s3://.*: access refused; check the key"):
        run(s3.uri("ingest-tars"), tmp_path, wrong)
    away = Storage(endpoint_url="http://127.0.0.1:9", key="a", secret="b", retries=0)
    with pytest.raises(UserError, match=r"s3://any: the storage endpoint cannot be reached"):
        run("s3://any", tmp_path, away)


def test_a_full_disk_is_named_and_loses_nothing(here, tmp_path, monkeypatch):
    source = images(tmp_path / "images", {"a": 20})

    def full(self, uri, data, sha256=None):
        if uri.endswith(".parquet"):
            raise UserError(f"{uri}: no space left on the device; free some, or set `root` elsewhere")
        return write(self, uri, data, sha256)

    write = Storage.write
    monkeypatch.setattr(Storage, "write", full)
    with pytest.raises(UserError, match="no space left"):
        run(source, tmp_path / "out")
    monkeypatch.setattr(Storage, "write", write)
    artifact = Artifact(f"{tmp_path}/out/trial/ingest/0000", Storage())
    assert not artifact.complete() and read_chunk(artifact.storage, artifact.path("work"), 0)[2]
    _, done, _ = run(source, tmp_path / "out", resume=True)
    assert done.metrics["images"] == 20


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_licence_and_consent_come_along(here, tmp_path, suffix):
    import pyarrow as pa
    import pyarrow.parquet as pq

    images(tmp_path / "i", {"a": 4})
    words = [("CC-BY-4.0", "given 2026-01-02"), ("CC0-1.0", ""), ("", "withdrawn"), ("© Müller, all rights", "yes")]
    rows = [
        {"image": f"i/a/{k}.jpg", "split": "train", "license": license, "consent": consent}
        for k, (license, consent) in enumerate(words)
    ]
    path = tmp_path / f"m.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(
            "image,split,license,consent\n" + "".join(",".join(f'"{v}"' for v in r.values()) + "\n" for r in rows)
        )
    dataset = run(path, tmp_path / "out", splits={"val": 0, "test": 0})[0]
    assert {"license", "consent"} <= set(dataset.manifest["columns"])
    read = sorted(dataset.read("train", ["source", "license", "consent"]), key=lambda row: row["source"])
    assert [(row["license"] or "", row["consent"] or "") for row in read] == words


def test_a_folder_that_encloses_all_images_is_told_of(here, tmp_path):
    images(tmp_path / "in" / "flowers", {"train/rose": 2, "train/tulip": 2, "val/rose": 1})
    dataset, _, said = run(tmp_path / "in", tmp_path / "out", splits={"val": 0.1})
    assert dataset.info().classes == ("rose", "tulip") and dict(dataset.info().rows) == {"train": 4, "val": 1}
    assert "all images lie in flowers/, which is taken for no class" in said
