"""Run a model over a split and gather the metrics' states, in row order."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.artifact import Artifact
from ..core.batches import rows
from ..core.sample import Batch, Split
from ..core.task import Task
from ..data.blocks import opened
from ..data.dataset import Dataset
from ..data.feed import Feed
from ..data.loader import bytes_of, evaluation_rows
from ..engine.evaluate import in_row_order
from ..runtime.resources import require_cpus
from ..runtime.session import connect
from ..serving.runtimes import open_runtime, threads_kept

if TYPE_CHECKING:
    import pyarrow as pa

IN_PROCESS = 256
"""A split of at most so many rows is measured in this process: starting an actor takes longer."""

BATCH_BYTES = 256 << 20
"""Of a batch that is measured, about: fewer rows than `evaluate.batch_size` where they are large."""


class Measurer:
    """Holds the model; in Ray Data an actor, where a row of its output is the states of one microbatch."""

    def __init__(self, model: Artifact, threads: int, device: str) -> None:
        self.runtime = open_runtime(model, threads, device)
        self.metrics = self.runtime.task.metrics()

    def __call__(self, row: pa.Table) -> dict[str, list[bytes]]:
        states = []
        for _, batch in opened(row):
            if (keep := batch["valid"].astype(bool)).any():
                states.append(pickle.dumps({name: value[keep] for name, value in self.state(batch).items()}))
        return {"state": states}

    def state(self, batch: Batch) -> dict[str, np.ndarray]:
        """The states of a microbatch's rows, its padding among them."""
        output = self.runtime.run(self.runtime.task.inputs(batch))
        return {**self.metrics.state(output, batch), "row_id": batch["row_id"]}


def collect(
    model: Artifact, task: Task, datasets: Mapping[str, Dataset], split: Split, config: Any
) -> dict[str, np.ndarray]:
    """States of every row of a split, once each, sorted by `row_id`; `config`: an EvaluateConfig. Raises UserError where the
    cluster has no room for its workers."""
    feed, threads = Feed.evaluating(task, datasets, split), max(1, int(config.cpus_per_worker))
    each = bytes_of(feed).values()
    size = at_once(sum(each) if all(each) else 0, config.batch_size)
    _, index = next(iter(feed.streams[split].values()))
    gpus = config.gpus_per_worker
    if gpus and model.read_json("variant.json")["kind"] != "torch":
        gpus = 0.0
    if index.rows <= IN_PROCESS and not gpus:
        with threads_kept():
            measurer = Measurer(model, threads, "cpu")
            return complete([measurer.state(batch) for batch in batches(feed, split, size)], index.rows)
    from ray.data import ActorPoolStrategy

    connect()
    require_cpus(config.workers, config.cpus_per_worker, gpus, section="evaluate")
    measured = evaluation_rows(feed, split, size, config.workers).map_batches(
        Measurer,
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=config.workers),
        num_cpus=config.cpus_per_worker,
        num_gpus=gpus or None,
        fn_constructor_args=(model, threads, "cuda" if gpus else "cpu"),
    )
    return complete([pickle.loads(row["state"]) for row in measured.iter_rows()], index.rows)


def complete(parts: list[dict[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
    """Parts of states as one, in the order of `row_id`. Raises RuntimeError where they are not of `count` rows, each once."""
    states = in_row_order(parts)
    ids = states["row_id"]
    if len(ids) != count or (np.diff(ids) == 0).any():
        raise RuntimeError(f"measured {len(ids)} rows, {len(np.unique(ids))} different, of a split of {count}")
    return states


def at_once(each: int, most: int) -> int:
    """Rows of a batch, at most `most`, that fit into `BATCH_BYTES`; `each`: bytes of a row, about, 0 where unknown."""
    return max(1, min(most, BATCH_BYTES // each)) if each else most


def batches(feed: Feed, split: Split, size: int) -> Iterator[Batch]:
    """Every row of a split once, in order, as the feed prepares it, in batches of at most `size` rows, without padding."""
    following = feed.over(split, size)
    assert following.plan is not None
    for number in range(len(following.plan)):
        yield unpadded(following.batch(number))


def unpadded(batch: Batch) -> Batch:
    keep = np.flatnonzero(batch["valid"])
    return batch if len(keep) == len(batch["valid"]) else rows(batch, keep)
