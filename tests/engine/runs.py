"""A training run of the toy task in this process, for the engine's tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from mapsto.config.training import TrainConfig
from mapsto.engine.fit import fit
from mapsto.engine.world import World

from .toy import Regression, items, rows

ROWS, VAL, BATCH, STEPS = 23, 8, 7, 4


def run(
    config: dict[str, Any],
    task: Any = None,
    resume: Any = None,
    data: Any = None,
    first: int | None = None,
    **hooks: Any,
) -> Any:
    """(model, history); a resumed run begins where `resume` stands, its data at step `first` of that epoch. `hooks`: on_epoch,
    notice, on_notice."""
    task = task or Regression()
    model = task.build({})
    settings = TrainConfig(**config)
    start, within = (resume["epoch"], resume["within"]) if resume else (0, 0)
    source = items(
        rows(ROWS) if data is None else data,
        rows(VAL, 1),
        batch=BATCH,
        epochs=settings.epochs,
        start=start,
        accumulate=settings.accumulate,
        evaluate_every=settings.evaluate_every,
    )
    begin = start * STEPS + (within if first is None else first)
    rest = (each for each in source if not (each[0].split == "train" and each[0].step < begin))
    return model, fit(task, model, settings, rest, World(), STEPS, resume, **hooks)


def weights(model: Any) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def same(one: Any, other: Any) -> None:
    mine, theirs = weights(one), weights(other)
    for name, value in mine.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
