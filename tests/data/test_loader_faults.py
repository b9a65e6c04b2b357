"""What may happen under a run: a data worker killed, the store away, a node lost, a shard gone or damaged. The run goes
on with the same batches, or stops and names the shard."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ray import cloudpickle

from mapsto.config.schema import TrainConfig
from mapsto.core.errors import UserError
from mapsto.core.task import Stream, Task, TaskConfig
from mapsto.data import execution
from mapsto.data.dataset import Dataset
from mapsto.data.execution import each
from mapsto.data.feed import Feed
from mapsto.data.loader import worker_batches
from mapsto.data.plan import Run
from mapsto.data.transforms import Compose, Decode, Keep, RandomFlip
from tests import faults
from tests.faults import AWAY_S, PATIENCE_S, beside, first_to_say, heard, logged, lose, say, wait_until
from tests.noise import in_bucket

GROUP = 16
"""Rows of a row group, and of a microbatch."""
ROWS = 330
AGAIN = "again, try 2: the worker or the node that made them was lost"


@pytest.fixture(autouse=True)
def by_value() -> Iterator[None]:
    """What is defined here travels to the workers whole: they cannot import it."""
    for module in (sys.modules[__name__], faults):
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in (sys.modules[__name__], faults):
        cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A folder that no earlier test session had: a node's cache outlives them, and knows a shard by its path."""
    return tmp_path / secrets.token_hex(4)


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
    return feed.follow(Run.of(feed.streams["train"], None, TrainConfig(epochs=2, batch_size=GROUP), 1))


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


def away(folder: Path, first: int, fatal: int = -1) -> Callable[[int], None]:
    """Every task waits at its first row from `first` on until `go` is there; one at row `fatal` waits to be killed."""

    def hold(row: int) -> None:
        if row >= first and not (folder / "go").exists():
            say(folder / "waiting")
            heard(folder / "go")
        if row == fatal and first_to_say(folder / "pid", str(os.getpid())):
            time.sleep(PATIENCE_S)

    return hold


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, write_dataset: Any) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("faults"), {"train": ROWS}, per_group=GROUP, per_file=96)


def test_a_killed_data_worker_and_a_store_that_was_away_change_nothing(
    cluster: str, s3: Any, local: Dataset, tmp_path: Path
) -> None:
    remote = in_bucket(local, s3)
    before = logged(AGAIN)

    def disturb() -> None:
        heard(tmp_path / "waiting")
        s3.stop()
        try:
            say(tmp_path / "go")
            time.sleep(AWAY_S)
            wait_until(lambda: logged(f"{remote.artifact.uri}/shards/", "; try 2 of 7 in 0.5 s"))
        finally:
            s3.start()
        psutil.Process(int(heard(tmp_path / "pid"))).kill()

    with beside(disturb):
        got = list(worker_batches(feed_of(remote, away(tmp_path, 2 * GROUP, 300)), 0, 1))
    check_whole(got, local)
    assert logged(AGAIN) > before


def elsewhere(folder: Path, head: str) -> Callable[[int], None]:
    """Tasks wait until one of them is on another node than `head`; that one makes a block and waits to be killed."""
    rows = [0]

    def hold(row: int) -> None:
        import ray

        if (folder / "dead").exists():
            return
        if ray.get_runtime_context().get_node_id() == head:
            heard(folder / "there")
            return
        rows[0] += 1
        if rows[0] == 2 * GROUP:  # the first block is whole, and lies in this node's memory only
            say(folder / "there")
            time.sleep(PATIENCE_S)

    return hold


def test_a_lost_node_changes_nothing(second_node: psutil.Process, new: Path, write_dataset: Any) -> None:
    import ray

    dataset = write_dataset(new, {"train": ROWS}, size=64, per_group=GROUP, per_file=96, seed=4)
    before = logged(AGAIN)

    def disturb() -> None:
        heard(new / "there")
        say(new / "dead")
        lose(second_node)

    with beside(disturb):
        head = ray.get_runtime_context().get_node_id()
        got = list(worker_batches(feed_of(dataset, elsewhere(new, head)), 0, 1))
    check_whole(got, dataset)
    assert logged(AGAIN) > before


@pytest.mark.parametrize("place", ["local", "bucket"])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda good, other: None, "not found"),
        (lambda good, other: good[:1000], "cut short or damaged"),
        (lambda good, other: other, "bytes where the data set's manifest has"),
    ],
    ids=["deleted", "truncated", "overwritten"],
)
def test_a_shard_lost_under_the_run_ends_it_with_the_shards_name(
    cluster: str,
    s3: Any,
    new: Path,
    write_dataset: Any,
    place: str,
    change: Callable[[bytes, bytes], bytes | None],
    why: str,
) -> None:
    sets = [write_dataset(new / str(k), {"train": ROWS}, per_group=GROUP, per_file=96, seed=k) for k in (3, 4)]
    dataset, others = (in_bucket(each, s3) for each in sets) if place == "bucket" else sets
    uri, other = (each.split("train").files[-1].uri for each in (dataset, others))
    storage = dataset.artifact.storage

    def disturb() -> None:
        heard(new / "waiting")
        bad = change(storage.read(uri), storage.read(other))  # the same ids in the same row groups, other images
        storage.delete(uri) if bad is None else storage.write(uri, bad)
        say(new / "go")

    with beside(disturb), pytest.raises(UserError, match=f"^{uri}: .*{why}"):
        list(worker_batches(feed_of(dataset, away(new, 2 * GROUP)), 0, 1))


CUT = f"""
import os, pathlib, time
from .part import VALUE
here = pathlib.Path(__file__).parents[1]
try:
    for _ in range({PATIENCE_S * 10}):
        if (here / "go").exists():
            break
        (here / f"importing-{{os.getpid()}}").touch()
        time.sleep(0.1)
finally:
    (here / f"left-{{os.getpid()}}").touch()
"""
"""A package that takes its time, and says when its import ends, however it does."""


def test_a_worker_interrupted_in_an_import_makes_nothing_more(cluster: str, new: Path) -> None:
    """Ray interrupts the tasks that are under way when another one fails, and uses their workers again. A package whose
    import was cut short and is repeated lacks the submodules that were there already."""
    (new / "cut").mkdir(parents=True)
    (new / "cut" / "__init__.py").write_text(CUT)
    (new / "cut" / "part.py").write_text("VALUE = 1\n")

    def use(number: int) -> None:
        sys.path.insert(0, str(new))
        import cut.part  # ty: ignore[unresolved-import]

        assert cut.part.VALUE == 1

    def fail(number: int) -> None:
        if number:
            use(number)
        wait_until(lambda: any(new.glob("importing-*")))
        raise UserError("one task failed")

    with pytest.raises(UserError, match=r"^one task failed$"):
        list(each(fail, range(4)))
    interrupted = [int(path.name.split("-")[1]) for path in new.glob("importing-*")]
    assert interrupted
    for pid in interrupted:
        wait_until(lambda pid=pid: not psutil.pid_exists(pid) or (new / f"left-{pid}").exists())
    say(new / "go")
    assert list(each(use, range(8))) == list(range(8))
    assert not any(psutil.pid_exists(pid) for pid in interrupted)


def test_a_task_whose_process_always_dies_is_not_tried_for_ever(
    cluster: str, local: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "MOST_TRIES", 2)

    def die(row: int) -> None:
        if row == 20 * GROUP:
            os._exit(1)  # as a decoder that crashes, or the kernel where memory is short

    with pytest.raises(
        UserError, match=r"^microbatches \d+ to \d+: the process that made them was lost 2 times; .*memory"
    ):
        list(worker_batches(feed_of(local, die), 0, 1))
