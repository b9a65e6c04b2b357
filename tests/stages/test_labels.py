"""Several labels and a number per image: from a manifest, through exports, and back. No Ray."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mapsto.config.curation import CleanConfig
from mapsto.config.schema import DataConfig
from mapsto.core.codecs import encode
from mapsto.core.storage import Storage
from mapsto.data.dataset import Dataset
from mapsto.stages import clean, clean_facts
from mapsto.stages.clean import Clean
from mapsto.stages.export import export
from mapsto.stages.purge import purge
from mapsto.stages.purge_plan import Asked

from .test_clean import made
from .test_ingest import here, run  # noqa: F401  the fixture

LABELS: list[Any] = [["cat", "dog"], ["dog"], [], ["bird", "dog", "bird"], None, ["cat"], ["dog", "cat"], ["bird"]]
VALUES = [1.5, -2, 3.25, 0, 7, 1e3, 2, 4]


def manifest(folder: Path, *further: dict[str, Any]) -> Path:
    rng, lines = np.random.default_rng(0), []
    for k in range(8):
        (folder / f"{k}.jpg").write_bytes(encode(rng.integers(0, 256, (20, 20, 3), np.uint8)))
        lines.append(
            {"image": f"{k}.jpg", "split": "val" if k > 5 else "train", "labels": LABELS[k], "value": VALUES[k]}
        )
    lines += [{"image": "0.jpg", "split": "train"} | more for more in further]
    file = folder / "m.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def told(dataset: Dataset) -> list[tuple[str, Any, Any]]:
    """(content, labels' names, value) of each row."""
    classes, out = dataset.manifest["classes"], []
    for split in dataset.manifest["splits"]:
        for row in dataset.read(split):
            names = None if row["labels"] is None else [classes[k] for k in row["labels"]]
            out.append((row["content_sha256"], names, row["value"]))
    return sorted(out, key=str)


def test_labels_and_values_are_ingested(here: Any, tmp_path: Path) -> None:  # noqa: F811
    dataset = run(manifest(tmp_path), tmp_path / "data", splits={})[0]
    assert dataset.manifest["classes"] == ["bird", "cat", "dog"]
    assert {"labels", "value"} <= set(dataset.manifest["columns"])
    wanted = [None if names is None else sorted(set(names)) for names in LABELS]
    assert sorted((names, value) for _, names, value in told(dataset) if names is not None) == sorted(
        (names, value) for names, value in zip(wanted, VALUES, strict=True) if names is not None
    )
    train, found = np.array(VALUES[:6]), dataset.info().values
    assert found["train"] == pytest.approx(
        {"rows": 6, "mean": train.mean(), "std": train.std(), "min": train.min(), "max": train.max()}
    )
    assert found["val"]["rows"] == 2


@pytest.mark.parametrize("format", ["webdataset", "parquet"])
def test_they_go_out_and_come_back(here: Any, tmp_path: Path, format: str) -> None:  # noqa: F811
    first = run(manifest(tmp_path), tmp_path / "data", splits={})[0]
    list(export(first.artifact.uri, str(tmp_path / "out"), format))
    sources = sorted((tmp_path / "out").glob("*.parquet")) if format == "parquet" else [tmp_path / "out"]
    back = [run(source, tmp_path / f"again-{k}", splits={})[0] for k, source in enumerate(sources)]
    assert sorted((each for dataset in back for each in told(dataset)), key=str) == told(first)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"value": "much"}, "value: a finite number, not much"), ({"value": True}, "value: a finite number"),
        ({"value": [1]}, "value: a finite number"), ({"labels": [["a"]]}, "labels: a list of class names"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_is_set_apart(here: Any, tmp_path: Path, more: Any, says: str) -> None:  # noqa: F811
    dataset = run(manifest(tmp_path, more), tmp_path / "data", splits={})[0]
    assert dataset.manifest["rows_quarantined"] == 1
    (line,) = [
        json.loads(text)
        for file in Path(dataset.artifact.path("quarantine")).glob("*.jsonl")
        for text in file.read_text().splitlines()
    ]
    assert says in line["reason"]


def told_values(dataset: Dataset) -> dict[str, Any]:
    """By numpy, from the rows that are there."""
    found = {}
    for split in dataset.manifest["splits"]:
        values = np.array([row["value"] for row in dataset.read(split, ["value"])])
        found[split] = pytest.approx(
            {"rows": len(values), "mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
        )
    return found


def test_what_a_manifest_says_of_values_is_of_the_rows_that_are_there(
    here: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy goes by cleaning, a row is erased: the largest value, which one of them had, is told no more."""
    for module in (clean, clean_facts):
        monkeypatch.setattr(module, "each", lambda work, numbers: (work(number) or number for number in numbers))
    first = run(manifest(tmp_path, {"value": 1e9}), tmp_path / "data", splits={})[0]
    assert first.manifest["values"]["train"]["max"] == 1e9
    recipe: Any = SimpleNamespace(
        name="trial", data={"train": DataConfig(source="x")}, clean=CleanConfig(), task=SimpleNamespace(kind="regress")
    )
    cleaned = made(tmp_path / "clean" / "0", Clean(), recipe, {"data": first.artifact})[0]
    assert cleaned.manifest["rows_quarantined"] == 1
    assert cleaned.manifest["values"] == told_values(cleaned)

    (row,) = [row["row_id"] for row in first.read("train", ["value"]) if row["value"] == 1e3]
    list(purge(first.artifact.uri, Asked(rows=(row,)), Storage(), yes=True))
    erased = Dataset.open(first.artifact)
    assert erased.manifest["rows_kept"] == 8 and 1e3 not in [each["max"] for each in erased.manifest["values"].values()]
    assert erased.manifest["values"] == told_values(erased)
