"""Wrong labels are found by cross-validation with the recipe's own training, on the cluster and with a metric that steers it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mapsto.config.load import load
from mapsto.core.artifact import Artifact
from mapsto.core.codecs import encode
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.data.dataset import Dataset
from mapsto.stages import clean, clean_facts, clean_folds, ingest
from mapsto.stages.pipeline import produce

from .test_clean import here

RECIPE = """
name: folds
root: {root}
data: {{train: {{source: "{source}", splits: {{test: 0}}}}}}
task: {{kind: classify, image_size: 32, model: {{name: airbench_tiny}}, augment: {{crop: pad, pad: 2}}}}
train: {{epochs: 16, batch_size: 10, workers: 1, cpus_per_worker: 0.5, optimizer: {{kind: adamw, lr: 2.0e-3}}, {more}}}
clean: {{folds: 2, rules: {{label_error: {{policy: {policy}}}, near_duplicate: {{policy: "off"}}, leakage: {{policy: "off"}}}}}}
"""
WRONG = {f"{name}/{k}.png" for name in ("red", "blue") for k in (3, 8, 17, 21, 30, 44)}
"""A tenth. Told is what is more sure than the mean of its class, so not each of them."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Red pictures and blue ones, 60 each for training, 6 to validate; some of the training ones lie in the other's folder."""
    rng = np.random.default_rng(2)
    for split, count in (("train", 60), ("val", 6)):
        for k in range(count):
            for name in ("red", "blue"):
                image = rng.integers(0, 120, (32, 32, 3), np.uint8)
                wrong = split == "train" and f"{name}/{k}.png" in WRONG
                image[..., 0 if (name == "red") != wrong else 2] += 135
                path = tmp_path / "images" / split / name / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode(image, "png"))
    return tmp_path / "images"


def cleaned(source: Path, more: str, policy: str = "report") -> Artifact:
    recipe = load(RECIPE.format(root=source.parent / "out", source=source, more=more, policy=policy), [])
    return produce(recipe, "clean", {"role": "train"}, say=lambda line: None)


def wrong(artifact: Artifact) -> set[str]:
    """The files whose labels are findings, as `folder/name`."""
    sources = {}
    dataset = Dataset.open(artifact)
    for split in dataset.manifest["splits"]:
        sources |= {row["row_id"]: row["source"] for row in dataset.read(split, ["source"])}
    rows = [row for row in pq.read_table(artifact.path(clean.FINDINGS)).to_pylist() if row["rule"] == "label_error"]
    assert all(row["new_label"] != row["label"] and row["split"] == "train" and row["score"] >= 0.5 for row in rows)
    return {"/".join(Path(sources[row["row_id"]]).parts[-2:]) for row in rows}


def test_planted_wrong_labels_are_found_by_trainings_that_val_steers(cluster, source):
    artifact = cleaned(source, "schedule: {kind: plateau}", "repair")
    found, dataset = wrong(artifact), Dataset.open(artifact)
    assert found <= WRONG and len(found) >= len(WRONG) / 2
    assert artifact.meta()["metrics"]["repaired"] == len(found)
    classes = dataset.manifest["classes"]
    for row in dataset.read("train", ["source", "label"]):
        place, name = Path(row["source"]).parts[-2:]
        assert (classes[row["label"]] == place) == (f"{place}/{name}" not in found)
    assert not Path(artifact.path("work")).exists()


def test_the_held_rows_are_test_and_val_comes_along_where_it_steers_a_training(source, tmp_path, monkeypatch):
    for module in (ingest, clean_facts, clean_folds):
        monkeypatch.setattr(module, "each", here)
    recipe = load(RECIPE.format(root=tmp_path / "out", source=source, more="max_failures: 0", policy="report"), [])
    dataset = Dataset.open(produce(recipe, "ingest", {"role": "train"}, say=lambda line: None))
    facts, _ = clean_facts.gather(
        Artifact(str(tmp_path / "facts"), Storage()), dataset, tmp_path, False, lambda line: None
    )
    train = np.flatnonzero(facts.split == 0)
    held, relabelled = (
        np.isin(np.arange(len(facts)), rows) for rows in (train[:9], [train[0], train[30], len(facts) - 1])
    )
    label = np.where(relabelled, 1 - facts.label, facts.label)
    for splits in (("train",), ("train", "val")):
        out = clean_folds._held_out(
            Artifact(str(tmp_path / "-".join(splits)), Storage()),
            dataset,
            replace(facts, label=label),
            relabelled,
            held,
            splits,
        )
        rows = {
            name: {row["row_id"]: row["label"] for row in out.read(name, ["label"])} for name in out.manifest["splits"]
        }
        assert {name: len(found) for name, found in rows.items()} == {"train": 111, "test": 9} | dict.fromkeys(
            splits[1:], 12
        )
        assert set(rows["test"]) == set(facts.row_id[held].tolist())
        for found in rows.values():
            assert all(label[facts.row_id == row_id] == name for row_id, name in found.items())


def test_too_few_rows_and_another_task_are_refused(source):
    recipe = load(RECIPE.format(root="x", source=source, more="max_failures: 0", policy="report"), [])
    job = type("Job", (), {"recipe": recipe})
    facts = type("Facts", (), {"split": np.zeros(5, np.uint8), "label": np.zeros(5, np.int64)})
    with pytest.raises(UserError, match=r"clean.folds: 5 labelled training rows are too few for 4 parts"):
        clean_folds.predictions(job, None, facts, None, 4, "train")  # ty: ignore[invalid-argument-type]
