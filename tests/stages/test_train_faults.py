"""What may happen under a training whose data comes through Ray: a worker killed, its node lost, the store away while a
checkpoint is written. The run takes the same rows in the same steps and ends with the same weights."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray import cloudpickle
from safetensors.numpy import load
from tests import faults
from tests.faults import AWAY_S, beside, heard, logged, lose, say

from mapsto.config.training import TrainConfig
from mapsto.core.artifact import Artifact
from mapsto.core.storage import Storage
from mapsto.data.dataset import Dataset
from mapsto.stages.train import distributed, source
from mapsto.stages.train_worker import Setup
from mapsto.tasks.classify import Classify, ClassifyConfig

ROWS, BATCH, EPOCHS = 120, 24, 4
STEPS = ROWS // BATCH


@pytest.fixture(autouse=True)
def by_value(cluster: str) -> Iterator[None]:
    for module in (sys.modules[__name__], faults):
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in (sys.modules[__name__], faults):
        cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_dataset: Any) -> Dataset:
    folder = tmp_path_factory.mktemp("faults") / secrets.token_hex(4)  # a node's cache knows a shard by its path
    return write_dataset(folder, {"train": ROWS, "val": 24}, per_file=48)


def train(data: Dataset, artifact: Artifact, folder: Path, at: int | None = None) -> tuple[list[float], list[str]]:
    """Two workers train; (epochs told, lines said). They write what they took into `folder`; at step `at`, the first time,
    both wait for the file `go` there."""

    def watched(setup: Setup, world: Any, share: Any, epoch: int, step: int) -> Any:
        items, steps = source(setup, world, share, epoch, step)

        def held() -> Iterator[Any]:
            for item, batch in items:
                if item.split == "train":
                    if item.step == at and not (folder / "go").exists():
                        say(folder / f"held-{world.rank}", str(os.getpid()))
                        heard(folder / "go")
                    rows = ",".join(str(row) for row in batch["row_id"] if row >= 0)
                    with (folder / f"taken-{world.rank}").open("a") as file:
                        file.write(json.dumps([item.step, rows]) + "\n")
                yield item, batch

        return held(), steps

    folder.mkdir(parents=True, exist_ok=True)
    task = Classify(
        ClassifyConfig.model_validate(
            {"kind": "classify", "image_size": 32, "model": {"name": "airbench"}, "augment": {"crop": "pad", "pad": 4}}
        ),
        {"train": data.info()},
    )
    config = TrainConfig.model_validate(
        {"epochs": EPOCHS, "batch_size": BATCH, "workers": 2, "cpus_per_worker": 0.5, "threads": 1, "optimizer": {"lr": 0.05}}
    )  # fmt: skip
    told: list[float] = []
    said: list[str] = []
    setup = Setup(task, config, artifact, {"train": data}, {}, watched)
    distributed(setup, lambda record: told.append(record["epoch"]), said.append)
    return told, said


@pytest.fixture(scope="module")
def undisturbed(cluster: str, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # before the function's own fixture
    artifact = Artifact(str(folder / "artifact"), Storage())
    train(data, artifact, folder)
    return artifact, folder


def taken(folder: Path) -> list[dict[int, set[str]]]:
    """For each rank, by step: the rows that it took, which may be more than one list where it took the step more than once."""
    out = []
    for rank in range(2):
        steps: dict[int, set[str]] = defaultdict(set)
        for text in (folder / f"taken-{rank}").read_text().splitlines():
            step, rows = json.loads(text)
            steps[step].add(rows)
        out.append(dict(steps))
    return out


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
        pid = int(heard(tmp_path / "held-1"))
        psutil.Process(pid).kill()
        say(tmp_path / "go")

    artifact = Artifact(str(tmp_path / "artifact"), Storage())
    with beside(disturb):
        told, said = train(data, artifact, tmp_path, 2 * STEPS + 2)
    assert len(said) == 1
    assert said[0].startswith("train: worker")
    assert set(told) - {2} == {1, 3, 4}  # what a worker reports just before it is killed may not be heard
    check_same(artifact, tmp_path, undisturbed)


def test_a_lost_node_with_the_trainer_changes_nothing(
    second_node: psutil.Process, data: Dataset, undisturbed: Any, tmp_path: Path
) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Holder:
        def where(self) -> str:
            return ray.get_runtime_context().get_node_id()

    head = ray.get_runtime_context().get_node_id()
    on_head = NodeAffinitySchedulingStrategy(head, soft=False)
    holder = ray.remote(Holder).options(num_cpus=4, scheduling_strategy=on_head).remote()  # the head has no room
    assert ray.get(holder.where.remote()) == head
    on: list[psutil.Process] = []

    def disturb() -> None:
        for rank in range(2):
            on.append(psutil.Process(int(heard(tmp_path / f"held-{rank}"))))
        assert all(second_node in process.parents() for process in on)
        ray.kill(holder)
        lose(second_node)
        say(tmp_path / "go")

    artifact = Artifact(str(tmp_path / "artifact"), Storage())
    with beside(disturb):
        told, said = train(data, artifact, tmp_path, 2 * STEPS + 2)
    assert len(said) == 1, said
    assert set(told) - {2} == {1, 3, 4}
    check_same(artifact, tmp_path, undisturbed)


def test_a_store_that_is_away_during_a_checkpoint_changes_nothing(
    s3: Any, data: Dataset, undisturbed: Any, tmp_path: Path
) -> None:
    bucket = s3.uri(f"faults-{secrets.token_hex(4)}")
    artifact = Artifact(f"{bucket}/artifact", s3.storage)

    def disturb() -> None:
        heard(tmp_path / "held-0")  # at the last step of an epoch, whose checkpoint comes next
        s3.stop()
        try:
            say(tmp_path / "go")
            time.sleep(AWAY_S)
        finally:
            s3.start()

    with beside(disturb):
        told, said = train(data, artifact, tmp_path, 2 * STEPS - 1)
    assert said == []
    assert told == [1, 2, 3, 4]
    assert logged(f"{bucket}/artifact/checkpoints", "; try 2 of 7") > 0
    check_same(artifact, tmp_path, undisturbed)
