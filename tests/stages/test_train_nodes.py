"""Machines that come and go under a training: it saves as soon as it is told, and goes on with as many workers as there are."""

from __future__ import annotations

import json
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from mapsto.core.artifact import Artifact
from mapsto.core.storage import Storage
from mapsto.data.dataset import Dataset
from tests import faults
from tests.faults import beside, head_filled, heard, lose, say, wait_until
from tests.stages import training
from tests.stages.training import EPOCHS, ROWS, STEPS, taken, train

AddNode = Callable[[int], psutil.Process]


@pytest.fixture(autouse=True)
def travelling(cluster: str) -> Iterator[None]:
    with faults.by_value(training, faults):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_dataset: Any) -> Dataset:
    folder = tmp_path_factory.mktemp("nodes") / secrets.token_hex(4)
    return write_dataset(folder, {"train": ROWS, "val": 24}, per_file=48)


def test_a_drained_node_saves_before_it_goes(
    cluster: str, second_node: psutil.Process, data: Dataset, tmp_path: Path
) -> None:
    import ray
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    head = ray.get_runtime_context().get_node_id()
    (new,) = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - {head}
    holder = head_filled()
    told_at, after = (
        5,
        (12, 22),
    )  # of 45 steps, 15 in an epoch; the notice is looked for after the 1st, 3rd, 7th at the latest
    artifact = Artifact(str(tmp_path / "artifact"), Storage())

    said: list[str] = []

    def saved_at() -> int:
        return int(
            said[0].removeprefix("train: a machine of this run is to be taken away: saving after step ").split()[0]
        )

    def disturb() -> None:
        on = [psutil.Process(int(heard(tmp_path / f"held-{told_at}-{rank}-of-2"))) for rank in range(2)]
        assert all(second_node in process.parents() for process in on)
        ray.kill(holder)
        deadline = time.time_ns() // 1_000_000 + 100_000
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why = GcsClient(address=cluster).drain_node(new, reason, "the machine is wanted back", deadline)
        assert accepted, why
        time.sleep(10)  # Ray Train looks at the nodes from time to time
        say(tmp_path / f"go-{told_at}")
        lost = False
        for step in after:
            for rank in range(2):
                heard(tmp_path / f"held-{step}-{rank}-of-2")
            time.sleep(2)  # what is said takes a moment to be heard
            if not lost and said:
                wait_until(lambda: any(Path(artifact.uri).glob(f"checkpoints/*-{saved_at():09d}/done.json")))
                lose(second_node)
                lost = True
            say(tmp_path / f"go-{step}")
        assert lost, sorted(Path(artifact.uri).glob("checkpoints/*"))

    with beside(disturb):
        told, _ = train(data, artifact, tmp_path, [told_at, *after], said, batch_size=8, epochs=3)
    assert told_at < saved_at() <= after[-1]
    assert all(line.startswith("train: worker") for line in said[1:]), said
    assert set(told) == {1, 2, 3}
    steps, _ = taken(tmp_path)
    assert sorted(steps) == list(range(45)) and all(len(rows) == 1 for rows in steps.values())


def test_workers_come_with_a_node_and_go_with_it(
    add_node: AddNode, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.train.v2.api import config

    @dataclass
    class Often(config.ScalingConfig):  # local, so that it travels by value
        elastic_resize_monitor_interval_s: float = 1.0

    monkeypatch.setattr(config, "ScalingConfig", Often)
    at = STEPS + 2

    def disturb() -> None:
        heard(tmp_path / f"held-{at}-0-of-1")
        node = add_node(3)
        for rank in range(2):
            heard(tmp_path / f"held-{at}-{rank}-of-2")
        (tmp_path / f"held-{at}-0-of-1").unlink()
        lose(node)
        heard(tmp_path / f"held-{at}-0-of-1")
        say(tmp_path / f"go-{at}")

    artifact = Artifact(str(tmp_path / "artifact"), Storage())
    with beside(disturb):
        told, said = train(data, artifact, tmp_path, [at], workers=1, most_workers=2, cpus_per_worker=3)
    assert set(told) == set(range(1, EPOCHS + 1))
    trained = [line for line in said if "workers train" in line]
    assert trained == [f"train: {n} of 1 to 2 workers train, from epoch {e}" for n, e in ((1, 1), (2, 2), (1, 2))]
    assert [line for line in said if line not in trained] == [line for line in said if "lost (" in line]
    steps: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for rank in range(2):
        for text in (tmp_path / f"taken-{rank}").read_text().splitlines():
            step, world, rows = json.loads(text)
            steps[step][world].update(map(int, rows.split(",")))
    assert sorted(steps) == list(range(EPOCHS * STEPS)) and {len(each) for each in steps.values()} == {1, 2}
    assert all(each[1] == each.get(2, each[1]) for each in steps.values())
