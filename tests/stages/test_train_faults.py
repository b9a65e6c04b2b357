"""What may happen under a training whose data comes through Ray: a worker killed, its node lost, the store away while a
checkpoint is written. The run takes the same rows in the same steps and ends with the same weights."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray import cloudpickle
from safetensors.numpy import load

from mapsto.core.artifact import Artifact
from mapsto.core.storage import Storage
from mapsto.data.dataset import Dataset
from tests import faults
from tests.faults import AWAY_S, beside, head_filled, heard, logged, lose, say
from tests.stages import training
from tests.stages.training import EPOCHS, ROWS, STEPS, taken, train

AT = 2 * STEPS + 2
LAST = 2 * STEPS - 1


@pytest.fixture(autouse=True)
def travelling(cluster: str) -> Iterator[None]:
    with faults.by_value(training, faults):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_dataset: Any) -> Dataset:
    folder = tmp_path_factory.mktemp("faults") / secrets.token_hex(4)  # a node's cache knows a shard by its path
    return write_dataset(folder, {"train": ROWS, "val": 24}, per_file=48)


@pytest.fixture(scope="module")
def undisturbed(cluster: str, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    cloudpickle.register_pickle_by_value(training)  # before the function's own fixture
    artifact = Artifact(str(folder / "artifact"), Storage())
    train(data, artifact, folder)
    return artifact, folder


def check_same(artifact: Artifact, folder: Path, undisturbed: tuple[Artifact, Path]) -> None:
    """The same rows in every step, however often it was taken, and the same weights."""
    whole, beside_it = undisturbed
    steps = taken(folder)
    assert steps == taken(beside_it)
    assert [sorted(each) for each in steps] == [list(range(EPOCHS * STEPS))] * 2
    history = [json.loads(text) for text in artifact.read("history.jsonl").splitlines()]
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    mine, theirs = load(artifact.read("model.safetensors")), load(whole.read("model.safetensors"))
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert (mine[name] == theirs[name]).all(), name


def test_a_killed_worker_changes_nothing(data: Dataset, undisturbed: Any, tmp_path: Path) -> None:
    def disturb() -> None:
        pid = int(heard(tmp_path / f"held-{AT}-1-of-2"))
        psutil.Process(pid).kill()
        say(tmp_path / f"go-{AT}")

    artifact = Artifact(str(tmp_path / "artifact"), Storage())
    with beside(disturb):
        told, said = train(data, artifact, tmp_path, [AT])
    assert len(said) == 1
    assert said[0].startswith("train: worker")
    assert set(told) - {2} == {1, 3, 4}  # what a worker reports just before it is killed may not be heard
    check_same(artifact, tmp_path, undisturbed)


def test_a_lost_node_with_the_trainer_changes_nothing(
    second_node: psutil.Process, data: Dataset, undisturbed: Any, tmp_path: Path
) -> None:
    import ray

    holder = head_filled()
    on: list[psutil.Process] = []

    def disturb() -> None:
        for rank in range(2):
            on.append(psutil.Process(int(heard(tmp_path / f"held-{AT}-{rank}-of-2"))))
        assert all(second_node in process.parents() for process in on)
        ray.kill(holder)
        lose(second_node)
        say(tmp_path / f"go-{AT}")

    artifact = Artifact(str(tmp_path / "artifact"), Storage())
    with beside(disturb):
        told, said = train(data, artifact, tmp_path, [AT])
    assert len(said) == 1, said
    assert set(told) - {2} == {1, 3, 4}
    check_same(artifact, tmp_path, undisturbed)


def test_a_store_that_is_away_during_a_checkpoint_changes_nothing(
    s3: Any, data: Dataset, undisturbed: Any, tmp_path: Path
) -> None:
    bucket = s3.uri(f"faults-{secrets.token_hex(4)}")
    artifact = Artifact(f"{bucket}/artifact", s3.storage)

    def disturb() -> None:
        heard(tmp_path / f"held-{LAST}-0-of-2")  # at the last step of an epoch, whose checkpoint comes next
        s3.stop()
        try:
            say(tmp_path / f"go-{LAST}")
            time.sleep(AWAY_S)
        finally:
            s3.start()

    with beside(disturb):
        told, said = train(data, artifact, tmp_path, [LAST])
    assert said == []
    assert told == [1, 2, 3, 4]
    assert logged(f"{bucket}/artifact/checkpoints", "; try 2 of 7") > 0
    check_same(artifact, tmp_path, undisturbed)
