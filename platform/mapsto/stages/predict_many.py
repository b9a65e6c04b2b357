"""Many files through Ray Data: actors hold the model, read, decode and answer; the lines come back in order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from ..core.artifact import Artifact
from ..core.stage import Job
from ..core.storage import Storage
from ..serving.predictor import Asked, Line, Predictor
from ..serving.runtimes import open_runtime

FILES_PER_EXECUTION = 100_000
"""Names held at once; a longer listing goes through in several executions."""
FILES_PER_BATCH = 32


class Actor:
    """Takes a batch of JSON-encoded requests, returns a batch of JSON-encoded lines."""

    def __init__(self, model: Artifact, storage: Storage, out: Artifact, threads: int) -> None:
        self._predictor = Predictor(open_runtime(model, threads), storage, out)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        lines = self._predictor([Asked(**json.loads(one)) for one in batch["asked"]])
        return {"line": [json.dumps(line, ensure_ascii=False) for line in lines]}


def predict_many(model: Artifact, asked: Iterable[Asked], job: Job) -> Iterator[Line]:
    """One line for every request, in the listing's order. Actors and their CPUs as in the recipe's `evaluate`."""
    import ray
    from ray.data import ActorPoolStrategy

    from ..runtime.session import connect
    from .predict import chunks

    if not ray.is_initialized():
        connect()
    config = job.recipe.evaluate
    for part in chunks(asked, FILES_PER_EXECUTION):
        rows = ray.data.from_items(
            [{"asked": json.dumps(asdict(one))} for one in part], override_num_blocks=-(-len(part) // FILES_PER_BATCH)
        )
        rows.context.execution_options.preserve_order = True
        answered = rows.map_batches(
            Actor, batch_size=FILES_PER_BATCH, compute=ActorPoolStrategy(size=config.workers), num_cpus=config.cpus_per_worker,
            fn_constructor_args=(model, job.storage, job.artifact, max(1, int(config.cpus_per_worker))),
        )  # fmt: skip
        for batch in answered.iter_batches(batch_size=None):
            yield from (_loaded(line) for line in batch["line"])


def _loaded(line: Any) -> Line:
    return json.loads(str(line))
