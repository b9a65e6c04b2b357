"""Clean: planted faults are found, every row is accounted for, untouched shards are shared, and a killed run goes on."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from mapsto.config.curation import CleanConfig, VerifyConfig
from mapsto.config.schema import DataConfig
from mapsto.core.artifact import Artifact
from mapsto.core.codecs import decode, encode
from mapsto.core.errors import UserError
from mapsto.core.stage import Job
from mapsto.core.storage import Storage
from mapsto.curate.annotation.queue import read_findings
from mapsto.data.dataset import Dataset
from mapsto.data.rows import Rows
from mapsto.data.scenes import numbered
from mapsto.stages import clean, clean_facts, clean_verify, ingest
from mapsto.stages.clean import Clean
from mapsto.stages.ingest import Ingest
from mapsto.stages.versions import row as show_row
from mapsto.stages.versions import verify
from tests import pictures


def here(work, numbers):
    """What the Ray tasks do, here."""
    for number in numbers:
        work(number)
        yield number


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for module in (ingest, clean, clean_facts, clean_verify):
        monkeypatch.setattr(module, "each", here)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Two classes of drawn photographs in given splits, and planted faults."""
    folder = tmp_path_factory.mktemp("images")

    def put(name: str, data: bytes) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    drawn = [numbered(11, k, (96, 120)).image for k in range(20)]
    for k, image in enumerate(drawn):
        split = "train" if k < 12 else "val" if k < 16 else "test"
        put(f"{split}/{'ab'[k % 2]}/{k:02d}.jpg", encode(image, "jpeg", 92))
    put("train/a/same-bytes.jpg", encode(drawn[0], "jpeg", 92))  # of 00, label a
    put("train/b/same-pixels.png", encode(decode(encode(drawn[2], "jpeg", 92)), "png"))  # of 02, which is a
    put("train/b/leak.jpg", encode(drawn[17], "jpeg", 60))  # of test/b/17
    put("train/a/near.jpg", encode(np.ascontiguousarray(drawn[5][:, ::-1]), "jpeg", 80))  # mirrored 05
    put("train/a/blank.png", encode(np.full((60, 60, 3), 77, np.uint8), "png"))
    put("train/b/dark.jpg", encode((numbered(11, 90, (96, 120)).image * 0.13).astype(np.uint8)))
    put("train/a/tiny.png", encode(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8), "png"))
    return folder


def made(folder: Path, stage, recipe, parents, resume=False):
    artifact = Artifact(str(folder), Storage(retries=0))
    said: list[str] = []
    section = stage.section(recipe, {})
    artifact.begin({}, section, parents)
    done = stage.run(Job(recipe, section, parents, artifact, artifact.storage, resume, {}, said.append))
    artifact.finish(section=section, parents=parents, metrics=done.metrics, digest=done.digest)
    return Dataset.open(artifact), done, "\n".join(said)


def recipe(source: Path, **rules):
    config = CleanConfig(rules={"leakage": {"policy": "quarantine"}} | rules)
    task = SimpleNamespace(kind="classify")
    return SimpleNamespace(name="trial", data={"train": DataConfig(source=str(source))}, clean=config, task=task)


@pytest.fixture
def before(source, tmp_path) -> Dataset:
    return made(tmp_path / "ingest" / "0", Ingest(), recipe(source), {})[0]


def cleaned(before: Dataset, source: Path, folder: Path, resume=False, **rules):
    return made(folder, Clean(), recipe(source, **rules), {"data": before.artifact}, resume)


def sources(dataset: Dataset, split: str) -> set[str]:
    return {Path(row["source"]).name for row in dataset.read(split, ["source"])}


def found(dataset: Dataset, rule: str) -> list[dict]:
    table = pq.read_table(dataset.artifact.path("findings.parquet")).to_pylist()
    return [row for row in table if row["rule"] == rule]


def named(dataset: Dataset, before: Dataset, row_id: int) -> str:
    for split in before.manifest["splits"]:
        for row in before.read(split, ["source"]):
            if row["row_id"] == row_id:
                return Path(row["source"]).name
    raise KeyError(row_id)


def test_planted_faults_are_found_and_nothing_is_lost(before, source, tmp_path):
    dataset, done, said = cleaned(before, source, tmp_path / "clean" / "1")
    manifest = dataset.manifest
    assert manifest["rows_in"] == before.manifest["rows_kept"] == 27
    assert manifest["rows_in"] == manifest["rows_kept"] + manifest["rows_quarantined"]
    for pair in ({"00.jpg", "same-bytes.jpg"}, {"02.jpg", "same-pixels.png"}):
        assert len(pair & sources(dataset, "train")) == 1  # one of two equal images stays
    gone = sources(before, "train") - sources(dataset, "train")
    assert (
        gone - {"00.jpg", "same-bytes.jpg", "02.jpg", "same-pixels.png"} == {"leak.jpg", "blank.png"} and len(gone) == 4
    )
    assert sources(dataset, "test") == sources(before, "test")
    quarantined = [
        row for path in Path(dataset.artifact.path("quarantine")).iterdir() for row in pq.read_table(path).to_pylist()
    ]
    assert sorted(row["reason"] for row in quarantined) == ["blank", "exact_duplicate", "exact_duplicate", "leakage"]
    for row in quarantined:
        (file,) = (source / "train").rglob(Path(row["source"]).name)
        assert row["image"] == file.read_bytes()
    assert {named(dataset, before, row["row_id"]) for row in found(dataset, "too_small")} == {"tiny.png"}
    assert {named(dataset, before, row["row_id"]) for row in found(dataset, "dark")} == {"dark.jpg"}
    (near,) = found(dataset, "near_duplicate")
    assert {named(dataset, before, near[k]) for k in ("row_id", "other_row_id")} == {"near.jpg", "05.jpg"}
    conflicts = found(dataset, "conflicting_labels")
    assert {named(dataset, before, row["row_id"]) for row in conflicts} == {
        "02.jpg",
        "same-pixels.png",
        "05.jpg",
        "near.jpg",
    }
    assert done.metrics["quarantined"] == 4 and done.metrics["shards_shared"] == 2
    assert "leakage: 1 (quarantine)" in said and verify(dataset) == []
    page = Path(dataset.artifact.path("report.html")).read_text()
    assert "near_duplicate: 1" in page and page.count("<img") >= 7


def test_the_manifest_describes_the_rows_that_are_left(before, source, tmp_path):
    dataset, _, _ = cleaned(before, source, tmp_path / "clean" / "1")
    manifest = dataset.manifest
    rows = {split: dataset.read(split) for split in manifest["splits"]}
    for split, each in rows.items():
        counts = {c: n for k, c in enumerate(manifest["classes"]) if (n := sum(row["label"] == k for row in each))}
        assert manifest["counts"][split] == counts and manifest["splits"][split]["rows"] == len(each)
    pixels = [decode(row["image"]).reshape(-1, 3) / 255 for row in rows["train"]]
    mean = np.mean([p.mean(0) for p in pixels], axis=0)
    square = np.mean([(p**2).mean(0) for p in pixels], axis=0)
    np.testing.assert_allclose(manifest["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(manifest["std"], np.sqrt(square - mean**2), atol=1e-5)
    everything = [row for each in rows.values() for row in each]
    assert manifest["formats"] == dict(Counter(row["format"] for row in everything))
    assert sum(manifest["longest_side"].values()) == len(everything)


def test_repairs(before, source, tmp_path):
    rules = {"leakage": {"policy": "repair"}, "exact_duplicate": {"policy": "report"}, "blank": {"policy": "report"}}
    dataset, done, _ = cleaned(before, source, tmp_path / "clean" / "1", **rules)
    assert "leak.jpg" in sources(dataset, "test") and "leak.jpg" not in sources(dataset, "train")
    assert done.metrics["repaired"] == 1 and done.metrics["quarantined"] == 0
    tie = {"conflicting_labels": {"policy": "repair"}, "exact_duplicate": {"policy": "off"}}
    dataset, _, _ = cleaned(before, source, tmp_path / "clean" / "2", **tie)
    assert not {"02.jpg", "same-pixels.png", "05.jpg", "near.jpg"} & sources(
        dataset, "train"
    )  # one label each: no majority
    assert dataset.manifest["reasons"]["conflicting_labels"] == 4


def test_report_only_shares_every_shard(before, source, tmp_path):
    rules = {name: {"policy": "report"} for name in ("exact_duplicate", "leakage", "blank", "boxes_outside")}
    dataset, done, _ = cleaned(before, source, tmp_path / "clean" / "1", **rules)
    assert done.metrics["quarantined"] == 0 and done.metrics["shards_shared"] == 3
    assert not Path(dataset.artifact.path("shards")).exists()
    assert dataset.read("train") == before.read("train")


def test_an_interrupted_run_gives_the_same_without_looking_twice(before, source, tmp_path, monkeypatch):
    whole, _, _ = cleaned(before, source, tmp_path / "clean" / "1")

    def dies(work, numbers):
        for number in list(numbers)[:2]:
            work(number)
            yield number
        raise KeyboardInterrupt

    monkeypatch.setattr(clean_facts, "each", dies)
    with pytest.raises(KeyboardInterrupt):
        cleaned(before, source, tmp_path / "clean" / "2")
    asked: list[int] = []

    def counts(work, numbers):
        asked.extend(numbers)
        yield from here(work, numbers)

    monkeypatch.setattr(clean_facts, "each", counts)
    again, _, said = cleaned(before, source, tmp_path / "clean" / "2", resume=True)
    assert asked == [2] and "2 of 3 shards are there already" in said
    assert {s: again.read(s) for s in again.manifest["splits"]} == {s: whole.read(s) for s in whole.manifest["splits"]}
    assert not Path(again.artifact.path("work")).exists()


def test_a_run_killed_before_it_was_finished_looks_at_nothing_twice(before, source, tmp_path, monkeypatch):
    def killed(self, **given):
        raise KeyboardInterrupt

    whole, _, _ = cleaned(before, source, tmp_path / "clean" / "1")
    with monkeypatch.context() as at_the_end:
        at_the_end.setattr(Artifact, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            cleaned(before, source, tmp_path / "clean" / "2")
    asked: list[int] = []
    for module in (clean, clean_facts):
        monkeypatch.setattr(module, "each", lambda work, numbers: here(work, asked.extend(numbers) or numbers))
    again, _, _ = cleaned(before, source, tmp_path / "clean" / "2", resume=True)
    assert asked == [] and again.artifact.meta()["digest"] == whole.artifact.meta()["digest"]
    assert not Path(again.artifact.path("work")).exists()


def test_a_split_without_images_is_refused(before, source, tmp_path):
    with pytest.raises(UserError, match=r"would leave the \w+ split without images; set a rule's policy to `report`"):
        cleaned(before, source, tmp_path / "clean" / "1", blurred={"policy": "quarantine", "threshold": 2.0})


def test_boxes_outside_are_cut(tmp_path):
    folder = tmp_path / "boxed"
    folder.mkdir()
    lines = []
    for k in range(6):
        (folder / f"{k}.jpg").write_bytes(encode(numbered(4, k, (64, 80)).image))
        boxes = [[-9, 4, 30, 40], [10, 10, 20, 20]] if k == 0 else [[1, 1, 9, 9]]
        lines.append(
            {
                "image": f"{k}.jpg",
                "split": "val" if k > 3 else "train",
                "boxes": boxes,
                "box_labels": ["x"] * len(boxes),
            }
        )
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = recipe(folder / "m.jsonl")
    config.data["train"] = DataConfig(source=str(folder / "m.jsonl"), splits={"val": 0, "test": 0})
    before = made(tmp_path / "ingest" / "0", Ingest(), config, {})[0]
    dataset, done, _ = made(tmp_path / "clean" / "0", Clean(), config, {"data": before.artifact})
    assert done.metrics["repaired"] == 1
    boxes = {Path(row["source"]).name: row["boxes"] for row in dataset.read("train")}
    assert boxes["0.jpg"] == [[0, 4, 30, 40], [10, 10, 20, 20]] and boxes["1.jpg"] == [[1, 1, 9, 9]]
    assert dataset.manifest["objects"] == before.manifest["objects"]


def test_neither_a_person_nor_a_cluster_of_copies_straddles_two_splits(tmp_path):
    folder, lines = tmp_path / "people", []
    folder.mkdir()

    def put(name: str, image: np.ndarray, split: str, identity: str) -> None:
        (folder / name).write_bytes(encode(np.ascontiguousarray(image), "jpeg", 90))
        lines.append({"image": name, "split": split, "identity": identity})

    drawn = [numbered(21, k, (96, 120)).image for k in range(12)]
    for k, image in enumerate(drawn):
        put(f"{k}.jpg", image, ("train", "train", "val", "test")[k // 3], f"person {k // 3}")
    put("copy.jpg", drawn[11][:, ::-1], "train", "person 0")  # of the test split's person 3, under another name
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = recipe(folder / "m.jsonl", leakage={"policy": "repair"})
    config.data["train"] = DataConfig(source=str(folder / "m.jsonl"), splits={"val": 0, "test": 0}, group="identity")
    before = made(tmp_path / "ingest" / "0", Ingest(), config, {})[0]
    dataset, _, _ = made(tmp_path / "clean" / "0", Clean(), config, {"data": before.artifact})
    where = {split: {row["identity"] for row in dataset.read(split)} for split in dataset.manifest["splits"]}
    assert where == {"train": {"person 1"}, "val": {"person 2"}, "test": {"person 0", "person 3"}}
    assert {"copy.jpg", "11.jpg"} <= sources(dataset, "test") and verify(dataset) == []
    config.data["train"] = config.data["train"].model_copy(update={"group": None})  # copies alone
    dataset, _, _ = made(tmp_path / "clean" / "1", Clean(), config, {"data": before.artifact})
    assert {"copy.jpg", "11.jpg"} <= sources(dataset, "test") and {"0.jpg", "1.jpg"} <= sources(dataset, "train")


def test_near_duplicates_are_verified_by_features(before, source, tmp_path):
    """A threshold that mirrored copies reach, as their mirror images are looked at; and one that none does."""

    def by_hog(number: int, least: float):
        config = recipe(source)
        config.clean = CleanConfig(rules=config.clean.rules, verify=VerifyConfig(features="hog", least=least))
        return made(tmp_path / "clean" / str(number), Clean(), config, {"data": before.artifact})

    dataset, _, said = by_hog(1, 0.9)
    assert "2 of 2 pairs of near duplicates are alike in their hog features" in said
    assert len(found(dataset, "near_duplicate")) == 1 and dataset.manifest["reasons"]["leakage"] == 1
    dataset, _, said = by_hog(2, 1.0)
    assert "0 of 2 pairs" in said and not found(dataset, "near_duplicate") and not found(dataset, "leakage")


def test_rows_are_found_by_their_id_in_every_version(before, source, tmp_path):
    dataset, _, _ = cleaned(before, source, tmp_path / "clean" / "1")
    for version in (before, dataset):
        for split in version.manifest["splits"]:
            rows, truth = Rows([version.split(split)]), version.read(split)
            assert [rows.image(row["row_id"]) for row in truth] == [row["image"] for row in truth]
        lines, image = show_row(version, truth[0]["row_id"])
        assert image == truth[0]["image"] and any(truth[0]["source"] in line for line in lines)
    with pytest.raises(UserError, match=r"no row of .* has this row_id"):
        show_row(dataset, 10**9)


def test_every_rule_of_the_recipe_is_one_of_the_rules():
    from typing import get_args

    from mapsto.config.curation import REPAIRS, RuleName
    from mapsto.curate.rules import RULES

    assert set(get_args(RuleName)) == set(RULES)
    assert {name for name, rule in RULES.items() if rule.repairs} == REPAIRS
    assert replace(RULES["dark"], threshold=1).policy == "report"


def test_classes_that_are_few_are_told_with_how_much_the_largest_outnumbers_them(tmp_path):
    for k in range(9):
        put = tmp_path / "images" / "train" / ("many" if k < 7 else "few") / f"{k}.jpg"
        put.parent.mkdir(parents=True, exist_ok=True)
        put.write_bytes(encode(numbered(3, k, (64, 64)).image))
    (tmp_path / "images/train/few/broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    told = {"class_imbalance": {"threshold": 3}}
    first, _, _ = made(tmp_path / "one", Ingest(), recipe(tmp_path / "images"), {})
    given = recipe(tmp_path / "images", **told)
    given.data["train"].splits.clear()
    artifact = Artifact(str(tmp_path / "one"), Storage())
    _, _, said = made(tmp_path / "two", Clean(), given, {"data": artifact})
    table = pq.read_table(tmp_path / "two" / clean.FINDINGS).to_pylist()
    rare = [(row["label"], row["score"]) for row in table if row["rule"] == "class_imbalance"]
    counts = first.manifest["counts"]["train"]
    assert rare == [("few", counts["many"] / counts["few"])] * counts["few"] and "class_imbalance" in said
    html = (tmp_path / "two/report.html").read_text()
    assert "imbalanced: weigh classes" in html and "Set apart before" in html  # the broken file is counted there


def test_files_that_ingest_refused_are_findings(tmp_path):
    folder, image = tmp_path / "images", numbered(3, 0, (64, 64)).image
    folder.mkdir()
    for name, data in {
        "good.jpg": encode(image), "more.jpg": encode(image[::-1]), "text.jpg": b"no image", "empty.jpg": b"", "cut.jpg": encode(image)[:900],
        "bomb.png": pictures.bomb(), "small.png": encode(image[:2], "png"), "mask.png": encode(np.zeros((5, 5), np.uint8), "png"),
    }.items():  # fmt: skip
        (folder / name).write_bytes(data)
    names = ("good.jpg", "text.jpg", "empty.jpg", "cut.jpg", "bomb.png", "small.png")
    lines = [{"image": name, "split": "train"} for name in names]
    lines += [{"image": "more.jpg", "split": "train", "mask": "mask.png"}]
    lines += [{"image": "good.jpg", "split": "train", "boxes": [[1, 2]], "box_labels": ["a"]}]
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    given = recipe(folder / "m.jsonl")
    given.data["train"] = DataConfig(source=str(folder / "m.jsonl"), min_side=4, splits={"val": 0, "test": 0})
    before = made(tmp_path / "ingest" / "0", Ingest(), given, {})[0]
    dataset, _, _ = made(tmp_path / "clean" / "0", Clean(), given, {"data": before.artifact})
    table = pq.read_table(dataset.artifact.path("findings.parquet")).to_pylist()
    refused = [row for row in table if row["row_id"] is None]
    assert {(Path(row["source"]).name, row["rule"]) for row in refused} == {
        ("text.jpg", "unreadable"), ("empty.jpg", "unreadable"), ("cut.jpg", "truncated"), ("bomb.png", "too_large"), ("small.png", "min_side"),
        ("more.jpg", "mask_size"), ("good.jpg", "annotations"),
    }  # fmt: skip
    assert {(row["policy"], row["score"], row["split"]) for row in refused} == {("quarantine", 1.0, "train")}
    with pytest.raises(UserError, match="no findings of unreadable"):  # they cannot be reviewed: they are no rows
        read_findings(Path(dataset.artifact.path("findings.parquet")).read_bytes(), "f", "unreadable")
