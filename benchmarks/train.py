"""Training through mapsto beside a bare PyTorch loop: the same model, batch and optimizer, two workers. `make bench NAME=train`

Environment: IMAGES, a folder of photographs for the run on real data (default: drawn ones), MODEL (resnet18), SIZE (112),
BATCH (64), BLOCKS (8) epochs of STEPS (10) steps each, of which the first two are left out, REPETITIONS (3). With
DEVICE=cuda, for which mapsto has had no machine yet, a worker a GPU, compiled: MODEL resnet50, SIZE 224, BATCH 256, STEPS 100.

The bare loop (`_bare_ddp.py`) has its batches in memory. mapsto trains in Ray Train's workers, once on the same batches from
memory, once on photographs that Ray Data reads from an S3 server on this machine, decodes, crops and mirrors.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mapsto.config.load import load
from mapsto.core.artifact import Artifact
from mapsto.core.item import Item
from mapsto.core.sample import DatasetInfo
from mapsto.core.storage import Storage
from mapsto.engine.precision import emulated
from mapsto.runtime import session
from mapsto.stages.pipeline import Pipeline
from mapsto.stages.train import distributed
from mapsto.stages.train_worker import Setup
from mapsto.tasks.classify import Classify

from ._bare_ddp import CLASSES, arrays
from ._common import Figure, interleaved, publish, ratio
from ._s3 import served

DEVICE = os.environ.get("DEVICE", "cpu")
CUDA = DEVICE == "cuda"
MODEL = os.environ.get("MODEL", "resnet50" if CUDA else "resnet18")
SIZE, BATCH = (
    int(os.environ.get("SIZE", "224" if CUDA else "112")),
    int(os.environ.get("BATCH", "256" if CUDA else "64")),
)
STEPS, BLOCKS = int(os.environ.get("STEPS", "100" if CUDA else "10")), int(os.environ.get("BLOCKS", "8"))
REPETITIONS = int(os.environ.get("REPETITIONS", "3"))
WARM, WORKERS = 2, torch.cuda.device_count() if CUDA else 2
RECIPE = """
name: bench-train
root: {root}
data: {{train: {{source: "{source}", splits: {{val: 0.001}}}}}}
task: {{kind: classify, image_size: {size}, model: {{name: {model}, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}}}
train:
  {{epochs: {epochs}, batch_size: {batch}, workers: {workers}, cpus_per_worker: 0.4, gpus_per_worker: {gpus}, compile: {compiled},
   precision: bf16, drop_last: true, seed: {seed}, evaluate_every: 100, checkpoint_every: 100, optimizer: {{kind: sgd, lr: 0.01, momentum: 0.9, weight_decay: 5.0e-4}}}}
"""


def main() -> None:
    if CUDA and not WORKERS:
        raise SystemExit("DEVICE=cuda: no GPU here")
    if not CUDA and emulated("bf16", torch.device("cpu")):
        raise SystemExit("this CPU only imitates bf16: mapsto would train in fp32, and the bare loop would not")
    with (
        tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp") as name,
        served(Path(name) / "s3", ("images", "mapsto")) as environment,
    ):
        folder = Path(name)
        os.environ |= environment
        _photographs(folder / "s3" / "images")
        with session.connected(dashboard=False):
            seeds = itertools.count(1)
            _s3(0)
            waits: list[float] = []
            seen = interleaved(
                {
                    "bare loop, from memory": _bare,
                    "mapsto, from memory": lambda: _memory(folder / "memory" / str(next(seeds))),
                    "mapsto, from S3": lambda: _s3(next(seeds), waits),
                },
                REPETITIONS,
            )
    bare, memory, real = seen.values()
    workers = f"compiled, NCCL, {WORKERS} GPUs" if CUDA else "gloo, 2 workers of one thread"
    how = f"{MODEL}, {SIZE} pixels, {BATCH} images a step, bf16, channels-last, SGD, {workers}"
    publish(
        "train",
        [
            Figure("images/s from memory over a bare loop", ratio(memory, bare), "x", 0.97, "higher", how),
            Figure(
                "images/s from S3 over a bare loop fed from memory", ratio(real, bare), "x", 0.95, "higher",
                "the same; photographs of some 500 x 375, random-resized-crop, flip; decoding has "
                + ("the cores to itself" if CUDA else "a part of the two cores"),
            ),
            Figure("share of the time waiting for data, from S3", statistics.median(waits), "", 0.03, "lower", "as the run reports it"),
            Figure("images/s, bare loop", statistics.median(bare), "1/s", None, "higher", "for information"),
        ],
    )  # fmt: skip


def _bare() -> float:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = tuple(str(each) for each in (WORKERS, port, MODEL, SIZE, BATCH, STEPS * BLOCKS, STEPS))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks._bare_ddp", DEVICE, str(rank), *more], stdout=subprocess.PIPE, text=True
        )
        for rank in range(WORKERS)
    ]
    out = [process.communicate()[0] for process in ranks]
    if any(process.returncode for process in ranks):
        raise SystemExit("the bare loop failed")
    return statistics.median(json.loads(out[0])[WARM:])


def _memory(folder: Path) -> float:
    recipe = load(_recipe("file:///", "/nowhere", 0), [])
    info = DatasetInfo("memory://", "0", tuple(map(str, range(CLASSES))), {"train": 1}, ("image", "label"))
    setup = Setup(Classify(recipe.task, {"train": info}), recipe.train, Artifact(str(folder), Storage()), {}, {}, _source)  # type: ignore[arg-type]  # fmt: skip
    records: list[dict[str, float]] = []
    distributed(setup, records.append, print)
    return _rate(records)


def _source(setup: Setup, world: Any, share: Any, start: int, first: int) -> Any:
    """Batches from memory, as the bare loop has them."""
    data = arrays(world.rank, SIZE, BATCH // world.size)

    def items() -> Iterator[tuple[Item, dict[str, Any]]]:
        for epoch in range(start, setup.config.epochs):
            for step in range(STEPS):
                last = step + 1 == STEPS
                yield Item("train", epoch, epoch * STEPS + step, world.rank, True, last), data[step % len(data)]

    return items(), STEPS


def _s3(seed: int, waits: list[float] | None = None) -> float:
    """`waits`: takes the shares of the time that were waited for data; None: one epoch, for what is done once."""
    recipe = load(_recipe("s3://mapsto", "s3://images", seed), ["train.epochs=1"] if waits is None else [])
    records: list[dict[str, float]] = []
    Pipeline(recipe, lambda line: None).produce("train", {"on_epoch": records.append})
    if waits is None:
        return 0.0
    waits += [record["data_wait"] for record in records[WARM:]]
    return _rate(records)


def _rate(records: list[dict[str, float]]) -> float:
    """By the clock, from the end of one epoch to the end of the next: reports and all that lies between count, too."""
    ends = [record["time"] for record in records[WARM - 1 :]]
    return statistics.median(BATCH * STEPS / (b - a) for a, b in itertools.pairwise(ends))


def _recipe(root: str, source: str, seed: int) -> str:
    return RECIPE.format(
        root=root, source=source, size=SIZE, model=MODEL, epochs=BLOCKS, batch=BATCH, seed=seed, workers=WORKERS,
        gpus=int(CUDA), compiled=str(CUDA).lower(),
    )  # fmt: skip


def _photographs(folder: Path) -> None:
    """One epoch of files in `<class>/`: the given photographs again and again."""
    given = os.environ.get("IMAGES")
    if given:
        files = sorted(p for p in Path(given).expanduser().rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    else:
        from mapsto.data.scenes import write

        drawn = folder.parent.with_name("drawn")
        write(drawn, 200, 1, (375, 500), splits={"train": 1.0}, spoiled=0, processes=os.cpu_count() or 1)
        files = sorted(drawn.rglob("*.jpg"))
    if not files:
        raise SystemExit(f"IMAGES={given}: no JPEG in it")
    for number, file in zip(range(BATCH * STEPS + 10), itertools.cycle(files), strict=False):
        target = folder / f"class{number % CLASSES}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


if __name__ == "__main__":
    main()
