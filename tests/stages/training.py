"""A training of two workers whose data comes through Ray: it notes which rows it took in which step, and stops where asked."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mapsto.config.training import TrainConfig
from mapsto.core.artifact import Artifact
from mapsto.data.dataset import Dataset
from mapsto.stages.train import distributed, source
from mapsto.stages.train_worker import Setup
from mapsto.tasks.classify import Classify, ClassifyConfig
from tests.faults import heard, say

ROWS, BATCH, EPOCHS = 120, 24, 4
STEPS = ROWS // BATCH


def train(
    data: Dataset,
    artifact: Artifact,
    folder: Path,
    at: Collection[int] = (),
    said: list[str] | None = None,
    **further: Any,
) -> tuple[list[float], list[str]]:
    """Two workers train; (epochs told, lines said, which `said` has as they come). They write what they took into `folder`; at a step of `at` each says
    so there, and waits for the file `go-STEP`. `further`: of the recipe's `train`."""

    def watched(setup: Setup, world: Any, share: Any, epoch: int, step: int) -> Any:
        items, steps = source(setup, world, share, epoch, step)

        def held() -> Iterator[Any]:
            for item, batch in items:
                if item.split == "train":
                    if item.step in at and not (folder / f"go-{item.step}").exists():
                        say(folder / f"held-{item.step}-{world.rank}-of-{world.size}", str(os.getpid()))
                        heard(folder / f"go-{item.step}")
                    rows = ",".join(str(row) for row in batch["row_id"] if row >= 0)
                    with (folder / f"taken-{world.rank}").open("a") as file:
                        file.write(json.dumps([item.step, world.size, rows]) + "\n")
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
        | further
    )  # fmt: skip
    told: list[float] = []
    said = [] if said is None else said
    setup = Setup(task, config, artifact, {"train": data}, {}, watched)
    distributed(setup, lambda record: told.append(record["epoch"]), said.append)
    return told, said


def taken(folder: Path) -> list[dict[int, set[str]]]:
    """For each rank, by step: the rows that it took, which may be more than one list where it took the step more than once."""
    out = []
    for rank in range(2):
        steps: dict[int, set[str]] = defaultdict(set)
        for text in (folder / f"taken-{rank}").read_text().splitlines():
            step, _, rows = json.loads(text)
            steps[step].add(rows)
        out.append(dict(steps))
    return out
