"""Trackers: what they are told, that they never end a run, and that a missing package is said before one begins."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from mapsto.config.load import load
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.runtime import trackers
from mapsto.runtime.trackers import Run, Trackers, flat

RECORDS = [
    {"epoch": 1.0, "step": 10.0, "train/loss": 2.0, "val/top1": 0.5, "time": 1000.0},
    {"epoch": 2.0, "step": 20.0, "train/loss": 1.0, "val/top1": 0.75, "time": 1001.0},
]


def run_in(folder: Path) -> Run:
    return Run(Artifact(str(folder / "run"), Storage()), "mine", {"train": {"epochs": 2, "optimizer": {"lr": 0.1}}})


def settings(**given: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"uri": None, "experiment": None, "project": None, **given})


class Fake:
    """Counts what it is told, and fails at the second epoch when `broken`."""

    made: ClassVar[list[Fake]] = []

    def __init__(self, given: Any, run: Run) -> None:
        self.told: list[Any] = []
        self.broken = given.uri == "broken"
        self.made.append(self)

    def known(self, history: Any) -> int:
        return 0

    def log(self, record: Any) -> None:
        if self.broken and record["epoch"] == 2:
            raise ConnectionError("the server is away")
        self.told.append(record["epoch"])

    def close(self, summary: Any, *, failed: bool) -> None:
        self.told.append((dict(summary), failed))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    Fake.made = []
    for name in ("MLflow", "Wandb"):
        monkeypatch.setattr(trackers, name, Fake)
    monkeypatch.setattr(trackers, "PACKAGES", {"mlflow": "json", "wandb": "json"})
    return Fake.made


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(tmp_path: Path, fakes: list[Fake]) -> None:
    said: list[str] = []
    given = [settings(kind="mlflow", uri="broken"), settings(kind="wandb")]
    books = Trackers(given, run_in(tmp_path), RECORDS[:1], said.append)
    books.log(RECORDS[1])
    books.close({"top1": 0.75})
    books.close({}, failed=True)  # once is enough
    assert [each.told for each in fakes] == [[1.0], [1.0, 2.0, ({"top1": 0.75}, False)]]
    assert said == ["train: tracker mlflow is left out from here on (ConnectionError: the server is away)"]


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trackers, "PACKAGES", {"mlflow": "no_such_module"})
    with pytest.raises(UserError, match=r"train.trackers: mlflow is not installed; pip install 'mapsto\[mlflow\]'"):
        Trackers([settings(kind="mlflow")], run_in(tmp_path), [], print)


def test_trackers_are_imported_only_where_they_are_named() -> None:
    program = "import sys, mapsto.stages.train, mapsto.runtime.trackers; print({'mlflow', 'wandb'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_recipe_takes_one_of_each_kind() -> None:
    text = """
name: x
root: /nowhere
data: {train: {source: /nowhere}}
task: {kind: classify}
train: {trackers: [{kind: mlflow, uri: "sqlite:///runs.db"}, {kind: wandb}]}
"""
    assert [each.kind for each in load(text).train.trackers] == ["mlflow", "wandb"]
    with pytest.raises(UserError, match="trackers: one of each kind"):
        load(text.replace("{kind: wandb}", "{kind: mlflow}"))


def test_settings_have_their_dotted_paths() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


@pytest.mark.parametrize("store", ["artifact", "folder", "sqlite"])
def test_mlflow_has_the_run(store: str, tmp_path: Path) -> None:
    from mlflow import tracking

    run = run_in(tmp_path)
    uri = {"artifact": None, "folder": str(tmp_path / "books"), "sqlite": f"sqlite:///{tmp_path}/runs.db"}[store]
    given = [settings(kind="mlflow", uri=uri)]
    said: list[str] = []
    Trackers(given, run, [], said.append).log(RECORDS[0])  # a driver that was killed
    books = Trackers(given, run, RECORDS[:1], said.append)
    books.log(RECORDS[1])
    books.close({"top1": 0.75})
    assert said == []
    where = {"artifact": Path(run.artifact.path("mlflow")).as_uri(), "folder": (tmp_path / "books").as_uri()}
    client = tracking.MlflowClient(tracking_uri=where.get(store, uri))
    experiment = client.get_experiment_by_name("mine")
    (found,) = client.search_runs([experiment.experiment_id])  # one run, not two
    assert found.info.status == "FINISHED"
    assert found.data.params["train.optimizer.lr"] == "0.1"
    assert found.data.tags["mapsto.artifact"] == run.artifact.uri
    history = client.get_metric_history(found.info.run_id, "val/top1")
    assert [(m.step, m.value, m.timestamp) for m in history] == [(10, 0.5, 1_000_000), (20, 0.75, 1_001_000)]


def test_wandbs_offline_run_is_in_the_artifact(tmp_path: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    run, said = run_in(tmp_path), []
    books = Trackers([settings(kind="wandb")], run, RECORDS[:1], said.append)
    books.log(RECORDS[1])
    books.close({"top1": 0.75})
    assert said == []
    (file,) = Path(run.artifact.path("wandb")).rglob("*.wandb")
    seen = []
    for data in logged(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
        if "val/top1" in items:
            seen.append((items["_step"], items["val/top1"]))
    assert seen == [(10, 0.5), (20, 0.75)]


def logged(file: bytes, block: int = 32768) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format after a header of seven bytes."""
    at, parts = 7, []
    while at < len(file):
        if block - at % block < 7:  # no room for a record's own header
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", file, at + 4)
        parts.append(file[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []
