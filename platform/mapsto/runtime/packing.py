"""Where Ray puts bundles of resources on a cluster's nodes, and what that leaves on each: a data task wants a whole CPU of one
node, which the sum over nodes does not tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Node = Mapping[str, float]
"""`CPU`, `GPU`: how many."""
SLACK = 1e-6


def pack(nodes: Sequence[Node], count: int, cpus: float, gpus: float = 0.0) -> list[Node] | None:
    """What the nodes have left, most CPUs first, once `count` bundles are on them as Ray's PACK strategy puts them: the node with
    most left is filled before the next one. None: they do not fit."""
    left: list[Node] = []
    for node in by_cpus(nodes):
        room = [node.get(name, 0.0) / each for name, each in (("CPU", cpus), ("GPU", gpus)) if each]
        here = min(count, math.floor(min(room) + SLACK)) if room else count
        count -= here
        left.append({"CPU": node.get("CPU", 0.0) - here * cpus, "GPU": node.get("GPU", 0.0) - here * gpus})
    return None if count else by_cpus(left)


def by_cpus(nodes: Sequence[Node]) -> list[Node]:
    return sorted(nodes, key=lambda node: node.get("CPU", 0.0), reverse=True)


def trains(nodes: Sequence[Node], workers: int, cpus: float, gpus: float = 0.0, own: float = 0.0) -> bool:
    """Whether workers of so many CPUs and GPUs, and a driver of `own` CPUs, leave some node a whole CPU, for data."""
    return with_data(trial(nodes, workers, cpus, gpus, own))


def with_data(left: Sequence[Node] | None, whole: int = 1) -> bool:
    """Whether so many whole CPUs are left, each of one node."""
    return left is not None and sum(math.floor(node["CPU"] + SLACK) for node in left) >= whole


def trial(nodes: Sequence[Node], workers: int, cpus: float, gpus: float, own: float) -> list[Node] | None:
    """What the nodes have left beside one training: the CPUs of its driver, and its workers."""
    left = pack(nodes, 1, own) if own else list(nodes)
    return left and pack(left, workers, cpus, gpus)


def most_workers(nodes: Sequence[Node], most: int, cpus: float, gpus: float = 0.0) -> int:
    """As many workers, at most `most`, as leave some node a whole CPU; 0 where not even one does."""
    return next((count for count in range(most, 0, -1) if trains(nodes, count, cpus, gpus)), 0)


def most_trials(nodes: Sequence[Node], workers: int, cpus: float, gpus: float, own: float, *, apart: bool) -> int:
    """How many trainings fit beside each other and leave some node a whole CPU for all their data; `apart`: one for each."""
    count, left = 0, trial(nodes, workers, cpus, gpus, own)
    while left is not None and with_data(left, count + 1 if apart else 1):
        count += 1
        left = trial(left, workers, cpus, gpus, own)
    return count
