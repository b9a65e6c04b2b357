"""A source of training data for the train stage's tests: no data set, and a log of what each worker took."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.item import Item
from mapsto.core.sample import DatasetInfo
from mapsto.core.storage import Storage
from mapsto.stages.train_worker import Setup

ROWS, BATCH, SIDE, CLASSES = 48, 12, 16, ("dark", "light")
INFO = DatasetInfo("memory://", "0", CLASSES, {"train": ROWS, "val": 8}, ("image", "label", "row_id"))


def rows(index: np.ndarray) -> dict[str, np.ndarray]:
    """Noise, dark for even row numbers and light for odd ones."""
    label = index % 2
    noise = np.random.default_rng(7).integers(0, 100, (64, SIDE, SIDE, 3), np.uint8)[index]
    return {
        "image": noise + (100 * label).astype(np.uint8)[:, None, None, None],
        "label": label,
        "row_id": index,
        "valid": np.ones(len(index), bool),
    }


def source(setup: Setup, world: Any, share: Any, start: int, first: int = 0) -> Any:
    steps = ROWS // BATCH

    def items() -> Iterator[tuple[Item, dict[str, np.ndarray]]]:
        log = Path(setup.artifact.path("taken"))
        log.mkdir(exist_ok=True, parents=True)
        for epoch in range(start, setup.config.epochs):
            order = np.random.default_rng(epoch).permutation(ROWS)
            for step in range(first if epoch == start else 0, steps):
                mine = np.array_split(order[step * BATCH : (step + 1) * BATCH], world.size)[world.rank]
                with (log / f"{world.rank}").open("a") as file:
                    file.write(f"{os.getpid()} {epoch} {','.join(map(str, mine))}\n")
                yield Item("train", epoch, epoch * steps + step, world.rank, True, step + 1 == steps), rows(mine)
            mine = np.array_split(np.arange(8), world.size)[world.rank]
            yield Item("val", epoch, (epoch + 1) * steps, world.rank, False, True), rows(mine)

    return items(), steps


def slow(setup: Setup, world: Any, share: Any, start: int, first: int = 0) -> Any:
    """Stops for ever at the third epoch's second step, the first time: time to kill a worker."""
    assert setup.counted, "Ray Data would take what the workers hold from its tasks a second time"
    items, steps = source(setup, world, share, start, first)

    def held() -> Iterator[Any]:
        for item, batch in items:
            if start == 0 and item.step == 2 * steps + 1 and world.rank == 1:
                Path(setup.artifact.path("held")).write_text(str(os.getpid()))
                time.sleep(600)
            yield item, batch

    return held(), steps


def cut_off(setup: Setup, world: Any, share: Any, start: int, first: int = 0) -> Any:
    """Dies in the third epoch, the first time: a killed driver."""
    items, steps = source(setup, world, share, start, first)

    def dying() -> Iterator[Any]:
        for item, batch in items:
            if start == 0 and item.step == 2 * steps + 1:
                raise ConnectionError("the driver was killed")
            yield item, batch

    return dying(), steps


def refused(setup: Setup, world: Any, share: Any, start: int, first: int = 0) -> Any:
    if world.rank == 1:
        raise UserError("s3://bucket/x: access refused")
    return source(setup, world, share, start, first)


def broken(setup: Setup, world: Any, share: Any, start: int, first: int = 0) -> Any:
    raise KeyError("a bug")


def setup(folder: Any, source: Any, config: Any, task: Any = None) -> Setup:
    from mapsto.config.schema import TrainConfig
    from mapsto.tasks.classify import Classify, ClassifyConfig

    task = task or Classify(
        ClassifyConfig(kind="classify", model={"name": "airbench"}, image_size=SIDE), {"train": INFO}
    )  # type: ignore[arg-type]
    return Setup(task, TrainConfig(**config), Artifact(str(folder), Storage()), {}, {}, source)


def patient(setup: Setup, world: Any, share: Any, start: int, first: int = 0) -> Any:
    """Takes its time from the third epoch's second step on, the first time: time to end the driver."""
    items, steps = source(setup, world, share, start, first)

    def held() -> Iterator[Any]:
        for item, batch in items:
            if start == 0 and item.step > 2 * steps:
                Path(setup.artifact.path("held")).write_text(str(os.getpid()))
                time.sleep(3)
            yield item, batch

    return held(), steps


def counting(setup: Setup, world: Any, share: Any, start: int, first: int = 0) -> Any:
    Path(setup.artifact.path("size")).write_text(str(world.size))
    return source(setup, world, share, start, first)
