"""What two gloo processes compute for test_ranks.py: `python -m tests.engine.ranks RANK ADDRESS FOLDER`."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mapsto.config.schema import TrainConfig
from mapsto.core.errors import UserError
from mapsto.engine.checkpoints import from_bytes, to_bytes
from mapsto.engine.fit import fit
from mapsto.engine.world import World

from .toy import Adversaries, Regression, items, rows

CONFIG: dict[str, Any] = {
    "epochs": 2,
    "optimizer": {"lr": 0.05},
    "clip": 1.0,
    "ema": 0.9,
}
THAWED: dict[str, Any] = {
    **CONFIG,
    "accumulate": 2,
    "optimizer": {"lr": 0.05, "layer_decay": 0.5, "groups": [{"match": "bias$", "lr": 2}]},
    "init": {"freeze": ["^0"], "unfreeze_at": 1},
}
"""In the second epoch more is trained than what the first one's DDP knew of."""
HALF: dict[str, Any] = {**THAWED, "precision": "fp16", "schedule": {"kind": "plateau", "patience": 0}, "early_stop": {}}
BATCH = 7  # split over 2 ranks x 2: 2, 2, 2, 1; and an epoch's last batch of 23 rows has 2: 1, 1, 0, 0
ROWS, VAL = 23, 8


def train(
    rank: int, world: int, task: Any, config: dict[str, Any], count: int = ROWS
) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    model = task.build({})
    mine = items(
        rows(count),
        rows(VAL, 1),
        batch=BATCH,
        epochs=2,
        rank=rank,
        world=world,
        accumulate=config.get("accumulate", 1),
    )
    history = fit(task, model, TrainConfig(**config), mine, World.current(), -(-count // BATCH))
    return {name: value.numpy() for name, value in model.state_dict().items()}, history


def gathered(rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Each rank weighs all gathered rows by its rank + 1."""
    mine = torch.arange(6.0 - 2 * rank).reshape(-1, 2).requires_grad_()
    everyone = World.current().gather(mine)
    (everyone * (rank + 1)).sum().backward()
    assert mine.grad is not None
    return everyone.detach().numpy(), mine.grad.numpy()


def asked(rank: int) -> dict[str, Any]:
    """Rank 1 alone is asked, in the second step; the state is then gone on from."""
    config, task = {**CONFIG, "deterministic": True}, Regression(norm=True)
    told: list[tuple[int, bool, bytes]] = []

    def once(resume: Any = None, **hooks: Any) -> dict[str, np.ndarray]:
        model, mine = task.build({}), items(rows(21), rows(VAL, 1), batch=BATCH, epochs=2, rank=rank, world=2)
        taken = (pair for pair in mine if resume is None or pair[0].step >= resume["step"])
        fit(task, model, TrainConfig(**config), taken, World.current(), 3, resume, **hooks)
        return {name: value.numpy() for name, value in model.state_dict().items()}

    calls: list[int] = []
    whole = once(
        on_notice=lambda midway: told.append((midway.step, midway.asked, to_bytes(midway.state()))),
        asked=lambda: calls.append(1) or (rank == 1 and len(calls) == 2),
    )
    state = World.current().broadcast_object(told[0][2])
    return {"told": [each[:2] for each in told], "state": state, "whole": whole, "again": once(from_bytes(state))}


def everything(rank: int) -> dict[str, Any]:
    """All that needs two processes, in one start of them."""
    found: dict[str, Any] = {
        "plain": train(rank, 2, Regression(), CONFIG),
        "accumulated": train(rank, 2, Regression(), {**CONFIG, "accumulate": 2}),
        "thawed": train(rank, 2, Regression(), THAWED),
        "half": train(rank, 2, Regression(), HALF),
        "gan": train(rank, 2, Adversaries(), {**CONFIG, "accumulate": 2}),
        "norm": train(rank, 2, Regression(norm=True), CONFIG, 21),  # a batch norm wants 2 rows
        "gathered": gathered(rank),
        "asked": asked(rank),
    }
    try:
        train(rank, 2, Regression(), {"epochs": 2, "optimizer": {"lr": 1e30}})
    except UserError as error:
        found["error"] = str(error)
    return found


if __name__ == "__main__":
    rank, address, folder = sys.argv[1:]
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=int(rank), world_size=2)
    Path(folder, rank).write_bytes(pickle.dumps(everything(int(rank))))
    torch.distributed.destroy_process_group()
    os._exit(0)  # one of gloo's threads may outlive the group, and the interpreter's end aborts on it, now and then
