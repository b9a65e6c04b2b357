"""Run a model over a split and gather the metrics' states, in row order: evaluate and compress measure alike."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core.artifact import Artifact
from ..core.sample import Split
from ..core.task import Task
from ..data.dataset import Dataset
from ..data.feed import Feed
from ..data.loader import evaluation_rows, opened
from ..engine.evaluate import in_row_order
from ..runtime.session import connect


class Measurer:
    """A Ray actor that holds the model; a row of its input is one microbatch, a row of its output that one's states."""

    def __init__(self, model: Artifact, threads: int, device: str) -> None:
        from ..serving.runtimes import open_runtime

        self.runtime = open_runtime(model, threads, device)
        self.metrics = self.runtime.task.metrics()

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        _, batch = opened(columns)
        keep = batch["valid"].astype(bool)
        if not keep.any():
            return {"state": []}
        output = self.runtime.run(self.runtime.task.inputs(batch))
        state = {**self.metrics.state(output, batch), "row_id": batch["row_id"]}
        return {"state": [pickle.dumps({name: value[keep] for name, value in state.items()})]}


def collect(
    model: Artifact, task: Task, datasets: Mapping[str, Dataset], split: Split, config: Any
) -> dict[str, np.ndarray]:
    """States of every row of a split, once each, sorted by `row_id`; `config`: an EvaluateConfig."""
    from ray.data import ActorPoolStrategy

    connect()
    rows = evaluation_rows(Feed.evaluating(task, datasets, split), split, config.batch_size)
    threads = max(1, int(config.cpus_per_worker))
    measured = rows.map_batches(
        Measurer,
        batch_size=1,
        zero_copy_batch=True,
        compute=ActorPoolStrategy(size=config.workers),
        num_cpus=config.cpus_per_worker,
        fn_constructor_args=(model, threads, "cpu"),
    )
    return in_row_order([pickle.loads(row["state"]) for row in measured.iter_rows()])
