"""What test_train.py compares with, trained by two gloo processes without Ray: `python -m tests.stages.pair RANK ADDRESS
FOLDER CONFIG`."""

from __future__ import annotations

import json
import os
import sys

import torch

from mapsto.engine.world import World
from mapsto.stages.train_worker import train

from . import fakes

if __name__ == "__main__":
    rank, address, folder, config = sys.argv[1:]
    torch.distributed.init_process_group("gloo", init_method=address, rank=int(rank), world_size=2)
    world = World.current()
    setup = fakes.setup(folder, fakes.source, json.loads(config))
    train(setup, world, world.broadcast_object, lambda record, notes: None)
    torch.distributed.destroy_process_group()
    os._exit(0)  # as in tests/engine/ranks.py
