"""A training by two gloo processes without Ray, as test_train.py compares with: `python -m tests.stages.pair RANK ADDRESS
FOLDER CONFIG`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from mapsto.engine.world import World
from mapsto.stages.train_worker import train

from . import fakes


def pair(folder: Path, config: dict[str, Any]) -> None:
    """Train `fakes.source` into a folder, and wait for the end."""
    root = Path(__file__).resolve().parents[2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.stages.pair"]
    started = [
        subprocess.Popen([*command, str(rank), address, str(folder), json.dumps(config)], cwd=root, env={**os.environ})
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=300) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()


if __name__ == "__main__":
    rank, address, folder, config = sys.argv[1:]
    torch.distributed.init_process_group("gloo", init_method=address, rank=int(rank), world_size=2)
    world = World.current()
    train(
        fakes.setup(folder, fakes.source, json.loads(config)), world, world.broadcast_object, lambda record, notes: None
    )
    torch.distributed.destroy_process_group()
