"""What a recipe asks of a cluster, and whether the cluster has it: refused with the arithmetic, instead of a wait for ever."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError

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

    A trainer that takes every CPU leaves Ray Data a budget of 0, and the run waits without a word. CPUs that other work
    holds are waited for, `wait_s` seconds at most.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    refuse_unfitting(nodes, workers, cpus_per_worker, gpus_per_worker, data_cpus, section)
    need = workers * cpus_per_worker + data_cpus
    deadline = time.monotonic() + wait_s
    while (free := ray.available_resources().get("CPU", 0.0)) < need - 1e-6:
        if time.monotonic() > deadline:
            raise UserError(
                f"{section} needs {need:g} CPUs, and only {free:g} of the cluster's {_total(nodes, 'CPU'):g} are free: other jobs or "
                "served models hold the rest (`ray status` shows them); stop one, or wait for it",
                outside=True,
            )
        time.sleep(0.5)


def trials_at_once(
    nodes: list[Mapping[str, float]], free: float, workers: int, cpus_per_worker: float, gpus_per_worker: float,
    asked: int | None, own: float = 0.0,
) -> tuple[int, int, str]:  # fmt: skip
    """(trials to run at a time, how many could, what to say of it) on these nodes, of whose CPUs `free` are not held by
    others. `own`: CPUs of a trial besides its workers'.

    By default each trial leaves a CPU to its data. More may be `asked` for: they share what is left, of which one CPU is
    never given away, because without it every trial waits for its data for ever.
    """
    need = workers * cpus_per_worker + own
    slots = [int(node.get("CPU", 0.0) / cpus_per_worker + 1e-6) for node in nodes]
    if gpus_per_worker:
        slots = [
            min(n, int(node.get("GPU", 0.0) / gpus_per_worker + 1e-6)) for n, node in zip(slots, nodes, strict=True)
        ]
    most = max(1, min(int((free - 1.0) / need + 1e-6), sum(slots) // workers))
    usual = max(1, min(most, int(free / (need + 1.0) + 1e-6)))
    if asked is None or asked <= most:
        return asked or usual, most, ""
    gpus = f" and {workers * gpus_per_worker:g} GPUs" if gpus_per_worker else ""
    return (
        most,
        most,
        f"tune.concurrent {asked}: a trial takes {need:g} CPUs{gpus}, and loading needs 1 CPU more, but {free:g} CPUs are free: "
        f"{most} at a time",
    )


def refuse_unfitting(
    nodes: list[Mapping[str, float]],
    workers: int,
    cpus_per_worker: float,
    gpus_per_worker: float,
    data_cpus: float,
    section: str,
) -> None:
    """The arithmetic of `require_cpus` on the nodes' resources."""
    have, need = _total(nodes, "CPU"), workers * cpus_per_worker
    worker = "train" if section == "tune" else section  # a trial's workers are as large as train's
    if need + data_cpus > have + 1e-6:
        raise UserError(
            f"{section}.workers {workers} x cpus_per_worker {cpus_per_worker:g} = {need:g} CPUs, and loading needs {data_cpus:g} more, "
            f"but the cluster has {have:g}: {_advice(have - data_cpus, workers, need + data_cpus, section, worker)}"
        )
    largest = max(node.get("CPU", 0.0) for node in nodes)
    if cpus_per_worker > largest + 1e-6:
        raise UserError(f"{worker}.cpus_per_worker {cpus_per_worker:g} fits no node: the largest has {largest:g} CPUs")
    gpus = _total(nodes, "GPU")
    if workers * gpus_per_worker > gpus + 1e-6:
        raise UserError(
            f"{section}.workers {workers} x gpus_per_worker {gpus_per_worker:g} = {workers * gpus_per_worker:g} GPUs, but the cluster "
            f"has {gpus:g}: set {worker}.gpus_per_worker={gpus / workers:g}"
        )


def _advice(left: float, workers: int, need: float, section: str, worker: str) -> str:
    share = int(left / workers * 20) / 20  # twentieths: 0.5, 0.35, ...
    if share >= 0.1:
        return f"set {worker}.cpus_per_worker={share:g}"
    if left >= 1:
        return f"set {section}.workers={int(left)} and {worker}.cpus_per_worker=1"
    return f"a cluster of at least {need:g} CPUs is needed (on one machine: mapsto ... --cpus {int(-(-need // 1))})"


def _total(nodes: list[Mapping[str, float]], name: str) -> float:
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
            0,
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
