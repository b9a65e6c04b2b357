"""What a recipe asks of a cluster, and whether the cluster has it: refused with the arithmetic, instead of a wait for ever."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from .packing import SLACK, Node, by_cpus, most_trials, trains, trial, with_data

if TYPE_CHECKING:
    from ..config.schema import Recipe

MB = 2**20
WORKER_MB = 900  # resident after importing torch, torchvision and timm (measured: 860)
LOADER_MB = 250  # ray.data, OpenCV and simplejpeg (measured: 190 + 47 + 30)
REPLICA_MB = 600  # ONNX Runtime or torch, and Serve
PREFETCHED = 8  # microbatches per worker between the loader and the device


def require_cpus(
    workers: int, cpus_per_worker: float, gpus_per_worker: float = 0.0, data_cpus: float = 1.0, *, section: str = "train",
    wait_s: float = 30.0,
) -> None:  # fmt: skip
    """Raise UserError when workers and loading do not fit into the connected cluster, in all or just now.

    A trainer that takes every CPU leaves Ray Data a budget of 0, and the run waits without a word. CPUs and GPUs that other work
    holds are waited for, `wait_s` seconds at most.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    refuse_unfitting(nodes, workers, cpus_per_worker, gpus_per_worker, data_cpus, section)
    deadline = time.monotonic() + wait_s
    while not trains(now := free_nodes(), workers, cpus_per_worker, gpus_per_worker, data_cpus - 1):
        if time.monotonic() > deadline:
            lacking = _held(nodes, now, workers, cpus_per_worker, gpus_per_worker, data_cpus)
            raise UserError(
                f"{section} needs {lacking}: other jobs or served models hold the rest (`ray status` shows them); stop one, or "
                "wait for it",
                outside=True,
            )
        time.sleep(0.5)


def _held(
    nodes: list[Node], now: list[Node], workers: int, cpus_per_worker: float, gpus_per_worker: float, data_cpus: float
) -> str:
    """What is needed of what is not free `now`."""
    for name, need in (("GPU", workers * gpus_per_worker), ("CPU", workers * cpus_per_worker + data_cpus)):
        free = _total(now, name)
        if free < need - SLACK:
            return f"{need:g} {name}s, and only {free:g} of the cluster's {_total(nodes, name):g} are free"
    gpus = f" and {gpus_per_worker:g} GPUs" if gpus_per_worker else ""
    free = " and ".join(f"{node.get('CPU', 0.0):g}" for node in by_cpus(now))
    return (
        f"{workers} workers of {cpus_per_worker:g} CPUs{gpus}, each on one node, and a whole CPU of one node for loading, which do "
        f"not fit into the {free} CPUs that the nodes have free"
    )


def free_nodes() -> list[Node]:
    """What each of the connected cluster's nodes has free just now."""
    from ray._private.state import available_resources_per_node

    return list(available_resources_per_node().values())


def trials_at_once(
    nodes: list[Node], workers: int, cpus_per_worker: float, gpus_per_worker: float, asked: int | None, own: float = 0.0
) -> tuple[int, int, str]:
    """(trials to run at a time, how many could, what to say of it) on what these nodes have free. `own`: CPUs of a trial
    besides its workers'.

    By default each trial leaves a CPU to its data. More may be `asked` for: they share what is left, of which one CPU of a
    node is never given away, because without it every trial waits for its data for ever.
    """
    needed = workers, cpus_per_worker, gpus_per_worker, own
    most = max(1, most_trials(nodes, *needed, apart=False))
    usual = max(1, most_trials(nodes, *needed, apart=True))
    if asked is None or asked <= most:
        return asked or usual, most, ""
    need, free = workers * cpus_per_worker + own, _total(nodes, "CPU")
    gpus = f" and {workers * gpus_per_worker:g} GPUs" if gpus_per_worker else ""
    return (
        most,
        most,
        f"tune.concurrent {asked}: a trial takes {need:g} CPUs{gpus}, and loading needs 1 CPU more, but {free:g} CPUs are free: "
        f"{most} at a time",
    )


def refuse_unfitting(
    nodes: list[Node],
    workers: int,
    cpus_per_worker: float,
    gpus_per_worker: float,
    data_cpus: float,
    section: str,
) -> None:
    """The arithmetic of `require_cpus` on the nodes' resources."""
    have, need, gpus = _total(nodes, "CPU"), workers * cpus_per_worker, _total(nodes, "GPU")
    worker = "train" if section == "tune" else section  # a trial's workers are as large as train's
    if workers * gpus_per_worker > gpus + SLACK:
        raise UserError(
            f"{section}.workers {workers} x gpus_per_worker {gpus_per_worker:g} = {workers * gpus_per_worker:g} GPUs, but the cluster "
            f"has {gpus:g}: set {worker}.gpus_per_worker={gpus / workers:g}"
        )
    advice = _advice(nodes, workers, cpus_per_worker, gpus_per_worker, data_cpus, section, worker)
    asked = f"{section}.workers {workers} x cpus_per_worker {cpus_per_worker:g}"
    if need + data_cpus > have + SLACK:
        raise UserError(
            f"{asked} = {need:g} CPUs, and loading needs {data_cpus:g} more, but the cluster has {have:g}: {advice}"
        )
    largest = max(node.get("CPU", 0.0) for node in nodes)
    if cpus_per_worker > largest + SLACK:
        raise UserError(f"{worker}.cpus_per_worker {cpus_per_worker:g} fits no node: the largest has {largest:g} CPUs")
    left = trial(nodes, workers, cpus_per_worker, gpus_per_worker, data_cpus - 1)
    if not with_data(left):
        sizes = "nodes of " + ", ".join(f"{node.get('CPU', 0.0):g}" for node in by_cpus(nodes)) + " CPUs"
        gpu = f" and {gpus_per_worker:g} GPUs" if gpus_per_worker else ""
        if left is None:
            raise UserError(
                f"{asked} do not fit on {sizes}: a worker takes its {cpus_per_worker:g} CPUs{gpu} of one node; {advice}"
            )
        rest = " and ".join(f"{node['CPU']:g}" for node in left)
        raise UserError(f"{asked} leave {rest} of {sizes}, and loading needs a whole one of one node: {advice}")


def _advice(
    nodes: list[Node], workers: int, cpus: float, gpus: float, data_cpus: float, section: str, worker: str
) -> str:
    own, left, need = data_cpus - 1, _total(nodes, "CPU") - data_cpus, workers * cpus + data_cpus
    for twentieths in range(int(min(left / workers, cpus) * 20 + SLACK), 1, -1):  # 0.5, 0.35, ...
        if trains(nodes, workers, twentieths / 20, gpus, own):
            return f"set {worker}.cpus_per_worker={twentieths / 20:g}"
    each = min(1.0, cpus)
    for fewer in range(min(int(left / each), workers), 0, -1):
        if trains(nodes, fewer, each, gpus, own):
            return f"set {section}.workers={fewer} and {worker}.cpus_per_worker={each:g}"
    if gpus:
        return f"nodes of more CPUs beside their GPUs are needed: a worker takes {cpus:g} CPUs and {gpus:g} GPUs of one node"
    return f"a cluster of at least {need:g} CPUs is needed (on one machine: mapsto ... --cpus {int(-(-need // 1))})"


def _total(nodes: Sequence[Node], name: str) -> float:
    return sum(node.get(name, 0.0) for node in nodes)


@dataclass(frozen=True)
class Need:
    stage: str
    cpus: float
    gpus: float
    memory_mb: int
    """Estimated, resident over all of the stage's processes."""
    why: str


def estimate(recipe: Recipe) -> list[Need]:
    """What each stage needs, from the recipe alone: measured sizes of the processes, and of the batches in flight.

    The model's own weights, gradients and activations come on top: they are known once it is built.
    """
    task: Any = recipe.task
    side = getattr(task, "image_size", 0) or getattr(task, "size", 0) or 224
    train, evaluate, serve = recipe.train, recipe.evaluate, recipe.serve
    workers = train.range[0]
    rows = 1 if train.descent == "stochastic" else -(-train.batch_size // (workers * train.accumulate))
    if train.descent == "full_batch":
        rows = train.batch_size
    batch = rows * side * side * 3 / MB
    training = workers * (WORKER_MB + PREFETCHED * batch) + LOADER_MB
    needs = [
        Need("ingest", 1, 0, LOADER_MB + 3 * recipe.data[next(iter(recipe.data))].max_pixels // MB, "one image of max_pixels, decoded"),
        Need(
            "train", workers * train.cpus_per_worker + 1, workers * train.gpus_per_worker, round(training),
            f"{workers} workers, {rows} images of {side}x{side} each {PREFETCHED} times in flight, 1 CPU for loading",
        ),
    ]  # fmt: skip
    if recipe.tune is not None:
        at_once = recipe.tune.concurrent or 1
        needs.insert(
            1,
            Need(
                "tune",
                at_once * (needs[-1].cpus + 0.1),
                at_once * needs[-1].gpus,
                round(at_once * training),
                f"{at_once} trials at once",
            ),
        )
    scoring = evaluate.workers * (WORKER_MB + PREFETCHED * evaluate.batch_size * side * side * 3 / MB) + LOADER_MB
    needs.append(
        Need(
            "evaluate",
            evaluate.workers * evaluate.cpus_per_worker + 1,
            evaluate.workers * evaluate.gpus_per_worker,
            round(scoring),
            f"{evaluate.workers} workers",
        )
    )
    if recipe.compress is not None:
        needs.append(
            Need(
                "compress",
                recipe.compress.threads,
                0,
                WORKER_MB + REPLICA_MB,
                "the float model and a variant at a time",
            )
        )
    replicas = serve.replicas.max
    needs.append(
        Need(
            "serve",
            replicas * serve.cpus_per_replica,
            replicas * serve.gpus_per_replica,
            replicas * REPLICA_MB,
            f"{replicas} replicas",
        )
    )
    return needs
