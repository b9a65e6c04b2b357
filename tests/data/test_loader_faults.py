"""What may happen under a run: a data worker killed, the store away, a node lost, a shard gone or damaged. The run goes
on with the same batches, or stops and names the shard."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapsto.config.schema import TrainConfig
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.task import Stream, Task, TaskConfig
from mapsto.data import shard_cache
from mapsto.data.dataset import Dataset
from mapsto.data.feed import Feed
from mapsto.data.loader import worker_batches
from mapsto.data.plan import Run
from mapsto.data.transforms import Compose, Decode, Keep, RandomFlip

PATIENCE_S = 120


def feed_of(dataset: Dataset, hold: Callable[[int], None] | None = None) -> Feed:
    """Rows in stored order, so that a task reads row groups of its own; `hold(row_id)` is called before a row is decoded."""

    class Hold:
        def apply(self, sample: Any, rng: Any) -> Any:
            if hold is not None:
                hold(sample["row_id"])
            return sample

    class Held(Task):
        def streams(self, split: Any) -> Any:
            transform = Compose(Hold(), Decode(), RandomFlip(), Keep("image", "label"))
            return {"main": Stream("train", split, transform, ("image", "label"), "sequential")}

    feed = Feed.of(Held(TaskConfig(kind="held"), {}), {"train": dataset}, ("train",))
    return feed.follow(Run.of(feed.streams["train"], None, TrainConfig(epochs=2, batch_size=16), 1))


def check_whole(got: list[tuple[Any, dict[str, np.ndarray]]], dataset: Dataset) -> None:
    """Every microbatch of the run came once, in order, with the pixels that an undisturbed process makes."""
    feed = feed_of(dataset)
    assert feed.plan is not None
    assert [item for item, _ in got] == [feed.plan.item(g) for g in range(len(feed.plan))]
    for g, (_, batch) in enumerate(got):
        expected = feed.batch(g)
        assert batch.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(batch[name], expected[name], err_msg=f"{name} of microbatch {g}")


def waited(path: Path) -> str:
    """The text of a file, once there is some."""
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists() or not path.read_text():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.02)
    return path.read_text()


def logged(text: str) -> list[str]:
    """The lines of the cluster's worker logs that hold a text."""
    deadline = time.monotonic() + 10
    while True:
        files = Path(os.environ["RAY_TMPDIR"], "session_latest", "logs").glob("worker-*.err")
        found = [line for file in files for line in file.read_text(errors="replace").splitlines() if text in line]
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


@dataclass(frozen=True)
class Away:
    """Every task waits at its first row from `first` on until `go` is there; the one at `fatal` waits to be killed."""

    folder: Path
    first: int
    fatal: int

    def __call__(self, row: int) -> None:
        if row >= self.first and not (self.folder / "go").exists():
            (self.folder / "waiting").write_text("yes")
            waited(self.folder / "go")
        if row == self.fatal and not (self.folder / "pid").exists():
            (self.folder / "pid").write_text(str(os.getpid()))
            time.sleep(PATIENCE_S)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, write_dataset: Any) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("faults"), {"train": 330}, per_group=16, per_file=96)


def test_a_killed_data_worker_and_a_store_that_was_away_change_nothing(
    cluster: str, s3: Any, local: Dataset, tmp_path: Path
) -> None:
    bucket = s3.uri("faults")
    for file in Path(local.artifact.uri).rglob("*"):
        if file.is_file():
            s3.storage.upload(file, f"{bucket}/set/{file.relative_to(local.artifact.uri)}")
    remote = Dataset.open(Artifact(f"{bucket}/set", s3.storage))

    def disturb() -> None:
        waited(tmp_path / "waiting")
        s3.stop()
        try:
            (tmp_path / "go").write_text("yes")
            time.sleep(float(os.environ.get("AWAY_S", "2")))
        finally:
            s3.start()
        os.kill(int(waited(tmp_path / "pid")), signal.SIGKILL)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    got = list(worker_batches(feed_of(remote, Away(tmp_path, 32, 300)), 0, 1))
    disturber.join()
    check_whole(got, local)
    assert any(f"{bucket}/set/shards/" in line for line in logged("; try 2 of 7 in 0.5 s"))
    assert logged("again, try 2: the worker or the node that made them was lost")


def test_a_shard_deleted_under_the_run_ends_it_with_the_shards_name(
    cluster: str, tmp_path: Path, write_dataset: Any
) -> None:
    dataset = write_dataset(tmp_path, {"train": 330}, per_group=16, per_file=96, seed=3)
    shard = Path(dataset.split("train").files[-1].uri)

    def delete() -> None:
        waited(tmp_path / "waiting")
        shard.unlink()
        (tmp_path / "go").write_text("yes")

    deleter = threading.Thread(target=delete)
    deleter.start()
    with pytest.raises(UserError, match=rf"^{shard}: not found$"):
        list(worker_batches(feed_of(dataset, Away(tmp_path, 32, -1)), 0, 1))
    deleter.join()


@dataclass(frozen=True)
class Elsewhere:
    """Tasks wait until one of them is on another node than `head`; that one waits to be killed, after some rows."""

    folder: Path
    head: str
    first: int

    def __call__(self, row: int) -> None:
        import ray

        dead = self.folder / "dead"
        if row < self.first or dead.exists():
            return
        if ray.get_runtime_context().get_node_id() == self.head:
            waited(self.folder / "there")
        elif row % 16 == 15:  # one block is whole, and lies in this node's memory only
            (self.folder / "there").write_text("yes")
            time.sleep(PATIENCE_S)


@pytest.fixture
def second_node(cluster: str) -> Iterator[subprocess.Popen[bytes]]:
    """A node beside the session's, with two CPUs, as a process group of its own."""
    import ray

    before = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    command = [str(Path(sys.executable).with_name("ray")), "start", f"--address={cluster}", "--block", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000", "--disable-usage-stats"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not {node["NodeID"] for node in ray.nodes() if node["Alive"]} - before:
            assert process.poll() is None and time.monotonic() < deadline, "the second node did not start"
            time.sleep(0.1)
        yield process
    finally:
        with_children_killed(process)


def with_children_killed(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_lost_node_changes_nothing(second_node: subprocess.Popen[bytes], tmp_path: Path, write_dataset: Any) -> None:
    import ray

    dataset = write_dataset(tmp_path, {"train": 330}, size=64, per_group=16, per_file=96, seed=4)

    def kill() -> None:
        waited(tmp_path / "there")
        (tmp_path / "dead").write_text("yes")
        with_children_killed(second_node)

    killer = threading.Thread(target=kill)
    killer.start()
    head = ray.get_runtime_context().get_node_id()
    got = list(worker_batches(feed_of(dataset, Elsewhere(tmp_path, head, 0)), 0, 1))
    killer.join()
    check_whole(got, dataset)


@pytest.fixture
def shard(local: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Dataset]]:
    """A copy of the data set that may be damaged, its last shard, and an empty cache."""
    monkeypatch.setenv("MAPSTO_CACHE", str(tmp_path / "cache"))
    shard_cache._folder.cache_clear()
    shutil.copytree(local.artifact.uri, tmp_path / "copy")
    dataset = Dataset.open(Artifact(str(tmp_path / "copy"), local.artifact.storage))
    yield Path(dataset.split("train").files[-1].uri), dataset
    shard_cache._folder.cache_clear()


def whole_epoch(dataset: Dataset) -> list[int]:
    feed = feed_of(dataset)
    assert feed.plan is not None
    return [int(row) for g in range(len(feed.plan) // 2) for row in feed.batch(g)["row_id"]]


def test_a_shard_that_is_cut_short_damaged_or_another_is_named(shard: tuple[Path, Dataset]) -> None:
    path, dataset = shard
    good = path.read_bytes()
    half = len(good) // 2
    damaged = good[:half] + bytes(b ^ 255 for b in good[half : half + 50]) + good[half + 50 :]
    for bad, why in (
        (good[:half], "cut short or damaged"),
        (b"", "cut short or damaged"),
        (damaged, "CRC checksum verification failed"),
        (
            Path(dataset.split("train").files[0].uri).read_bytes(),
            "96 rows where the data set's manifest has 42: replaced",
        ),
    ):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=f"^{path}: .*{why}"):
            whole_epoch(dataset)
    path.write_bytes(good)
    assert whole_epoch(dataset) == list(range(330))


def test_a_cached_copy_that_was_cut_short_is_fetched_again(
    shard: tuple[Path, Dataset], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, dataset = shard
    index = dataset.split("train")
    whole = shard_cache.cached_group(index, 2, ("image", "row_id"))
    (entry,) = (tmp_path / "cache").glob("*.arrow")
    entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    assert shard_cache.cached_group(index, 2, ("image", "row_id")).num_rows == 16
    assert f"{entry}: not readable" in caplog.text
    assert shard_cache.cached_group(index, 2, ("image", "row_id")).column("row_id").to_pylist() == list(range(32, 48))
    del whole
