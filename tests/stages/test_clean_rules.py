"""Rules about single images and about labels, each with what it finds and what it leaves alone, on ingested files. No Ray."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mapsto.config.schema import DataConfig
from mapsto.core.codecs import encode
from mapsto.data.dataset import Dataset
from mapsto.data.scenes import numbered
from mapsto.stages.clean import Clean
from mapsto.stages.ingest import Ingest

from .old import no_count_of_boxes
from .test_clean import found, made, named, no_cluster, recipe  # noqa: F401  the fixture

DRAWN = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Drawn photographs in colour, and faults of each kind beside what is nearly one."""
    rng, out = np.random.default_rng(4), tmp_path / "images"
    out.mkdir()
    drawn = [numbered(13, k, (80, 100)).image for k in range(DRAWN)]
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = (250, 140, 30)
    for name, image in {
        **{f"{k:02d}.png": image for k, image in enumerate(drawn)},
        "bright.png": rng.integers(225, 256, (64, 64, 3), np.uint8),
        "pale.png": rng.integers(180, 256, (64, 64, 3), np.uint8),
        "two-tone.png": stripes,
        "grey.png": np.repeat(rng.integers(0, 256, (64, 64, 1), np.uint8), 3, 2),
        "long.png": rng.integers(0, 256, (30, 160, 3), np.uint8),
        "longish.png": rng.integers(0, 256, (33, 160, 3), np.uint8),
        "twin.png": drawn[0],
    }.items():
        (out / name).write_bytes(encode(image, "png"))
    return out


def cleaned(folder: Path, rows: list[dict], **rules: dict) -> tuple[Dataset, Dataset]:
    """(before, after) for a manifest of the rows, all of them in train."""
    file = folder / "m.jsonl"
    file.write_text("\n".join(json.dumps({"split": "train"} | row) for row in rows))
    given = recipe(file, **({"exact_duplicate": {"policy": "off"}, "near_duplicate": {"policy": "off"}} | rules))
    given.data["train"] = DataConfig(source=str(file), splits={"val": 0, "test": 0})
    before = made(folder.parent / "ingest" / "0", Ingest(), given, {})[0]
    return before, made(folder.parent / "clean" / "0", Clean(), given, {"data": before.artifact})[0]


def test_each_rule_finds_its_fault_and_not_what_is_nearly_one(folder):
    names = sorted(path.name for path in folder.glob("*.png"))
    before, after = cleaned(folder, [{"image": name, "label": "a"} for name in names])
    told = {
        rule: {named(after, before, row["row_id"]) for row in found(after, rule)}
        for rule in ("bright", "low_information", "odd_mode", "extreme_shape", "missing_label")
    }
    assert told == {
        "bright": {"bright.png"}, "low_information": {"two-tone.png"}, "odd_mode": {"grey.png"}, "extreme_shape": {"long.png"},
        "missing_label": set(),
    }  # fmt: skip


def test_a_missing_label_is_that_of_a_duplicate_or_stays_missing(folder):
    rows = [{"image": f"{k:02d}.png", "label": "ab"[k % 2]} for k in range(4)]
    rows += [{"image": "twin.png"}, {"image": "long.png"}]
    before, after = cleaned(folder, rows, missing_label={"policy": "repair"})
    lines = {named(after, before, row["row_id"]): row["new_label"] for row in found(after, "missing_label")}
    assert lines == {"twin.png": "a", "long.png": None}
    labels = {Path(row["source"]).name: row["label"] for row in after.read("train", ["source", "label"])}
    assert labels["twin.png"] == labels["00.png"] >= 0 and labels["long.png"] == -1


@pytest.mark.parametrize("policy", ["report", "quarantine"])
def test_boxes_without_area_are_findings_of_the_rows_that_lost_them(folder, policy):
    given = {
        "00.png": [[1, 1, 9, 9], [9, 1, 1, 9], [-9, 1, 0, 9]],
        "01.png": [[1, 1, 9, 9]],
        "02.png": [[5, 5, 5, 8]],
        "03.png": [],
    }
    rows = [{"image": name, "boxes": boxes, "box_labels": ["x"] * len(boxes)} for name, boxes in given.items()]
    before, after = cleaned(folder, rows, boxes_without_area={"policy": policy})
    assert {Path(row["source"]).name: row["boxes_left_out"] for row in before.read("train")} == {
        "00.png": 2, "01.png": 0, "02.png": 1, "03.png": 0,
    }  # fmt: skip
    lines = {named(after, before, row["row_id"]): row for row in found(after, "boxes_without_area")}
    assert {name: line["score"] for name, line in lines.items()} == {"00.png": 2, "02.png": 1}
    assert {line["policy"] for line in lines.values()} == {policy} and not found(after, "boxes_outside")
    kept = {Path(row["source"]).name: row["boxes"] for row in after.read("train")}
    assert kept == {name: boxes[:1] for name, boxes in given.items() if policy == "report" or name not in lines} | (
        {"02.png": []} if policy == "report" else {}
    )


def test_a_data_set_from_before_these_counts_is_cleaned_without_them(folder, monkeypatch):
    no_count_of_boxes(monkeypatch)
    before, after = cleaned(folder, [{"image": "00.png", "boxes": [[9, 1, 1, 9]], "box_labels": ["x"]}])
    assert "boxes_left_out" not in {*before.manifest["columns"], *before.read("train")[0]}
    assert after.manifest["rows_kept"] == 1 and not found(after, "boxes_without_area")
