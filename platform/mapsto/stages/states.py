"""Run a model over a split and gather the metrics' states, in row order."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core.artifact import Artifact
from ..core.sample import Batch, Split
from ..core.task import Task
from ..data.dataset import Dataset
from ..data.feed import Feed
from ..data.loader import evaluation_rows, opened
from ..engine.evaluate import in_row_order
from ..runtime.session import connect
from ..serving.runtimes import open_runtime, threads_kept

IN_PROCESS = 256
"""Up to so many rows are measured here: starting an actor takes longer."""


class Measurer:
    """Holds the model; in Ray Data an actor, where a row of its input is one microbatch, a row of its output that one's
    states."""

    def __init__(self, model: Artifact, threads: int, device: str) -> None:
        self.runtime = open_runtime(model, threads, device)
        self.metrics = self.runtime.task.metrics()

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        state = self.state(opened(columns)[1])
        return {"state": [pickle.dumps(state)] if state else []}

    def state(self, batch: Batch) -> dict[str, np.ndarray] | None:
        """The states of a microbatch's rows, or None where it holds only padding."""
        keep = batch["valid"].astype(bool)
        if not keep.any():
            return None
        output = self.runtime.run(self.runtime.task.inputs(batch))
        state = {**self.metrics.state(output, batch), "row_id": batch["row_id"]}
        return {name: value[keep] for name, value in state.items()}


def collect(
    model: Artifact, task: Task, datasets: Mapping[str, Dataset], split: Split, config: Any
) -> dict[str, np.ndarray]:
    """States of every row of a split, once each, sorted by `row_id`; `config`: an EvaluateConfig."""
    feed, threads = Feed.evaluating(task, datasets, split), max(1, int(config.cpus_per_worker))
    following = feed.over(split, config.batch_size)
    assert following.plan is not None
    if len(following.plan) * config.batch_size <= IN_PROCESS:
        with threads_kept():
            measurer = Measurer(model, threads, "cpu")
            states = [measurer.state(following.batch(number)) for number in range(len(following.plan))]
        return in_row_order([state for state in states if state])
    from ray.data import ActorPoolStrategy

    connect()
    rows = evaluation_rows(feed, split, config.batch_size)
    measured = rows.map_batches(
        Measurer,
        batch_size=1,
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=config.workers),
        num_cpus=config.cpus_per_worker,
        fn_constructor_args=(model, threads, "cpu"),
    )
    return in_row_order([pickle.loads(row["state"]) for row in measured.iter_rows()])
