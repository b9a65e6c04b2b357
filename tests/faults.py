"""Disturbing a run that goes on beside: marks in files, a node of its own, and what the cluster's logs say."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
from ray import cloudpickle

PATIENCE_S = 120
AWAY_S = 20
"""How long the store is away."""


@contextmanager
def by_value(*modules: ModuleType) -> Iterator[None]:
    """Within, what the modules define travels to the workers whole: they cannot import it."""
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)


def say(path: Path, text: str = "yes") -> None:
    """Write a file at once, for those who wait for it."""
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def first_to_say(path: Path, text: str) -> bool:
    """The same unless somebody else did: the row may be under way in two tasks, for two epochs."""
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        return False
    return True


def wait_until(there: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := there()):
        if time.monotonic() > deadline:
            raise TimeoutError(there)
        time.sleep(0.02)
    return found


def heard(path: Path) -> str:
    """The text of a file, once it is there."""
    wait_until(path.exists)
    return path.read_text()


def logged(*texts: str) -> int:
    """How many lines of the cluster's worker logs hold all the texts."""
    files = Path(os.environ["RAY_TMPDIR"], "session_latest", "logs").glob("worker-*.err")
    lines = [line for file in files for line in file.read_text(errors="replace").splitlines()]
    return sum(all(text in line for text in texts) for line in lines)


@contextmanager
def beside(disturb: Callable[[], None]) -> Iterator[None]:
    """Runs `disturb` beside the block, and raises what it raised."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            disturb()
        except Exception as error:  # noqa: BLE001 (raised below)
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    assert not raised, raised


def lose(node: psutil.Process) -> None:
    """Kill all processes of a node."""
    if node.is_running():
        processes = [node, *node.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)


def head_filled() -> Any:
    """An actor that holds all CPUs of the session's own node, until `ray.kill`: what comes goes elsewhere."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Holder:
        def where(self) -> str:
            return ray.get_runtime_context().get_node_id()

    head = ray.get_runtime_context().get_node_id()
    on_head = NodeAffinitySchedulingStrategy(head, soft=False)
    holder = ray.remote(Holder).options(num_cpus=4, scheduling_strategy=on_head).remote()
    assert ray.get(holder.where.remote()) == head
    return holder


NODE = """
import sys, time
from ray._private.node import Node
from ray._private.parameter import RayParams

own_ports = dict(min_worker_port=0, max_worker_port=0, node_manager_port=0, dashboard_agent_listen_port=None)
Node(
    RayParams(
        gcs_address=sys.argv[1], node_ip_address="127.0.0.1", num_cpus=int(sys.argv[2]), num_gpus=0, object_store_memory=100_000_000,
        include_log_monitor=False, **own_ports,
    ),
    head=False, shutdown_at_exit=False, spawn_reaper=False,
)
time.sleep(3600)
"""
"""`ray start --address`, which itself refuses a cluster on loopback, or takes the machine's outward address for it."""
