"""Two processes that train together without Ray."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path


def two(module: str, *arguments: str) -> None:
    """Run `python -m MODULE RANK ADDRESS ARGUMENT...` as rank 0 and rank 1; waits for the end of both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    root = Path(__file__).resolve().parents[1]
    started = [
        subprocess.Popen([sys.executable, "-m", module, str(rank), address, *arguments], cwd=root) for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=120) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
