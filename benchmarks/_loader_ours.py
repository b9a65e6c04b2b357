"""What the loader's benchmark runs beside the lock's own packages: the limit, mapsto's loader, plain Ray Data."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mapsto.core.artifact import Artifact
from mapsto.core.storage import Storage
from mapsto.data.kept import Kept

from ._loader_data import recipe, shards
from ._loader_peers import BATCH, SECONDS, SIZE, WORKERS, pixels, rate, transforms

LEAST_STORE = 80 * 2**20
"""Ray starts with no smaller object store than 75 MiB."""


def limit(which: str) -> Callable[[Path], dict[str, float]]:
    """Two processes that do nothing but decode, crop and resize: each its half of the images, from `memory`, or of a data set's
    row groups, which it reads from their store again and again."""

    def run(folder: Path) -> dict[str, float]:
        bare = partial(_from_memory, shards(folder)) if which == "memory" else partial(_from_store, folder, which)
        with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
            return {"images_per_s": sum(pool.map(bare, range(WORKERS)))}

    return run


def _from_memory(files: list[str], part: int) -> float:
    import numpy as np
    import pyarrow.parquet as pq

    images = [value for file in files for value in pq.read_table(file, columns=["image"]).column("image").to_pylist()][
        part::WORKERS
    ]
    rng = np.random.default_rng(part)
    return _bare((images[k] for k in iter(lambda: rng.integers(0, len(images)), None)), part)


def _from_store(folder: Path, which: str, part: int) -> float:
    """Row groups in random order."""
    import numpy as np
    import pyarrow.parquet as pq

    from mapsto.data.dataset import Dataset

    index = Dataset.open(Artifact((folder / f"{which}.uri").read_text(), Storage())).split("train")
    rng, mine = np.random.default_rng(part), np.arange(part, len(index.groups), WORKERS)
    if not len(mine):
        raise SystemExit(f"{which}: fewer row groups than {WORKERS} processes; raise COUNT")

    def images() -> Iterator[bytes]:
        while True:
            for number in rng.permutation(mine):
                file, group = index.group(int(number))
                filesystem, path = index.storage.arrow(file.uri)
                with pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True) as parquet:
                    yield from parquet.read_row_group(group, columns=["image"]).column("image").to_pylist()

    return _bare(images(), part)


def _bare(images: Iterator[bytes], part: int) -> float:
    """Images/s, over at least SECONDS from the first one on."""
    import cv2
    import numpy as np

    from mapsto.data.transforms import RandomResizedCrop

    cv2.setNumThreads(1)
    crop, rng = RandomResizedCrop(SIZE), np.random.default_rng(part)
    next(images)
    start = time.perf_counter()
    for done, image in enumerate(images, 1):
        crop.apply({"image": image}, rng)
        if done % BATCH == 0 and (taken := time.perf_counter() - start) >= SECONDS:
            return done / taken
    raise AssertionError("the images never end")


def batches_of(
    uri: str,
    folder: Path,
    which: str,
    worker_cpus: float = 1.0,
    batch_size: int = BATCH,
    kept: Kept | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[Any, Any]]:
    """The loader's own iterator over a data set, for a training worker that holds one CPU, or such as Ray Data knows of.
    `batch_size`: of each worker. `kept`: what the node's cache holds of the images."""
    from mapsto.core.registry import task_class
    from mapsto.data.dataset import Dataset
    from mapsto.data.feed import Feed
    from mapsto.data.loader import worker_batches
    from mapsto.data.plan import Run

    said = recipe(folder, which)
    dataset = Dataset.open(Artifact(uri, Storage()))
    task = task_class(said.task.kind)(said.task, {"train": dataset.info()})
    feed = Feed.of(task, {"train": dataset}, ("train",), kept)
    train = said.train.model_copy(update={"batch_size": batch_size * world})
    run = Run.of(feed.streams["train"], None, train, world)
    return worker_batches(feed.follow(run), rank, world, worker_cpus=worker_cpus)


def mapsto(which: str, kept: Kept | None = None, trainers: int = 1) -> Callable[[Path], dict[str, float]]:
    """Our own iterator, in Ray Train workers, on a warm cluster: its processes have made an epoch for this one. The workers'
    own first epoch does not count. Their speeds are added up; of the other figures the worst worker's counts."""

    def run(folder: Path) -> dict[str, float]:
        from ray.train.v2.api.config import RunConfig, ScalingConfig
        from ray.train.v2.torch.torch_trainer import TorchTrainer

        from mapsto.runtime import session

        for file in folder.glob("told-*.json"):
            file.unlink()
        with session.connected(num_cpus=WORKERS + trainers, dashboard=False):  # as `mapsto train` does
            _warm(folder)
            TorchTrainer(
                _in_worker,
                train_loop_config={
                    "folder": str(folder),
                    "which": which,
                    "uri": (folder / f"{which}.uri").read_text(),
                    "kept": kept,
                },
                scaling_config=ScalingConfig(num_workers=trainers, resources_per_worker={"CPU": 1}),
                run_config=RunConfig(storage_path=str(folder / "train")),
            ).fit()
        found = [json.loads(file.read_text()) for file in folder.glob("told-*.json")]
        return {name: (sum if name == "images_per_s" else max)(each[name] for each in found) for name in found[0]}

    return run


def _warm(folder: Path) -> None:
    """An epoch of the local data set, for this process."""
    for item, _ in batches_of((folder / "local.uri").read_text(), folder, "local"):
        if item.epoch == 1:
            break


def _in_worker(config: dict[str, Any]) -> None:
    import ray.train

    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    folder = Path(config["folder"])
    called = time.perf_counter()
    first = start = cpu = last = None
    images = 0
    between: list[float] = []
    gaps: list[float] = []
    batches = batches_of(config["uri"], folder, config["which"], 0.0, kept=config["kept"], rank=rank, world=world)
    for item, batch in batches:
        now = time.perf_counter()
        if first is None:
            first = now - called
        if start is None:
            if item.epoch == 1:
                start, cpu = now, time.process_time()
        else:
            images += int(batch["valid"].sum())
            (gaps if last[0] != item.epoch else between).append(now - last[1])
            if now - start >= SECONDS and gaps:
                break
        last = (item.epoch, now)
    taken = time.perf_counter() - start
    found = {
        "images_per_s": images / taken,
        "first_batch_s": first,
        "trainer_cpu": (time.process_time() - cpu) / taken,
        # From the batch before an epoch's end to the one after it, in batches' own time: most lie in a block that is there.
        "gap_batches": statistics.median(gaps) / statistics.mean(between),
        "longest_gap_batches": max(gaps) / statistics.mean(between),
        "longest_within_batches": max(between) / statistics.mean(between),
    }
    (folder / f"told-{rank}.json").write_text(json.dumps(found))
    for _ in batches:  # blocks are dealt in turn: a worker that took no more would hold the others up
        if len(list(folder.glob("told-*.json"))) == world:
            break


def cache(folder: Path) -> dict[str, float]:
    """The second epoch over the first one, from its first batch on, of the data set in the S3 server, the node's cache empty
    at first. The cluster is warm: its processes have made an epoch of the local data set."""
    from mapsto.runtime import session

    with session.connected(num_cpus=WORKERS + 1, dashboard=False):  # as `mapsto train` does
        _warm(folder)
        ends: list[float] = []
        for item, _ in batches_of((folder / "s3.uri").read_text(), folder, "s3"):
            if item.ends_epoch or not ends:
                ends.append(time.perf_counter())
            if len(ends) == 3:
                break
    return {"second_over_first": (ends[1] - ends[0]) / (ends[2] - ends[1])}


def memory(folder: Path) -> dict[str, float]:
    """The host's memory in use while a set streams that is ten times as large, as batches, as the object store may be: of
    16 images, for a batch of 64 would be a ninth of such a store."""
    from mapsto.data.dataset import Dataset

    uri = (folder / "local.uri").read_text()
    rows = Dataset.open(Artifact(uri, Storage())).split("train").rows
    store = max(LEAST_STORE, rows * SIZE * SIZE * 3 // 10)
    os.environ["RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES"] = str(store)  # read when Ray is imported

    import psutil
    import ray
    from ray._private.internal_api import memory_summary

    from mapsto.runtime import session

    used: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            state = psutil.virtual_memory()
            used.append((state.total - state.available) / 2**20)

    with session.connected(num_cpus=WORKERS + 1) as there:
        watcher = threading.Thread(target=watch)
        streamed = 0
        for item, batch in batches_of(uri, folder, "local", batch_size=16):
            if item.epoch == 1 and not watcher.is_alive():  # all is read and imported by now
                watcher.start()
            streamed += batch["image"].nbytes
            if item.epoch == 3:
                break
        over.set()
        watcher.join()
        spilled = "Spilled" in memory_summary(there.address, stats_only=True)
        held = min(node["Resources"]["object_store_memory"] for node in ray.nodes())
    fifth = max(1, len(used) // 5)
    return {
        "growth_mib": statistics.median(used[-fifth:]) - statistics.median(used[:fifth]),
        "spilled": float(spilled),
        "set_over_store": rows * SIZE * SIZE * 3 / held,
        "streamed_over_store": streamed / held,
        "store_mib": held / 2**20,
    }


def plain_ray(folder: Path) -> dict[str, float]:
    """Ray Data as its documentation has it: parquet → decode and transform in map_batches → iter_torch_batches."""
    import numpy as np
    import ray

    from mapsto.runtime import session

    def augment(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        transform = transforms()
        return {"image": np.stack([transform(pixels(data)).numpy() for data in batch["image"]])}

    with session.connected(num_cpus=WORKERS, dashboard=False):
        rows = ray.data.read_parquet(shards(folder), columns=["image"], shuffle="files").map_batches(
            augment, batch_size=BATCH
        )
        return rate(lambda: (len(b["image"]) for b in rows.iter_torch_batches(batch_size=BATCH)))
