"""The loader beside what decoding alone allows, and beside its peers: photographs → random-resized-crop to 224 pixels,
flip, uint8 batches of 64, in two CPUs. `make bench NAME=loader`

Environment: IMAGES, a folder of photographs (default: drawn ones); COUNT (6,000), SECONDS (60) per measurement,
REPETITIONS (3), ONLY (comma-separated contestants). Each contestant runs in a process of its own with nothing else
running; all begin with a warm-up pass and read what is warm in the page cache. `loader.md` keeps what was tried.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mapsto.config.load import load
from mapsto.core.artifact import Artifact
from mapsto.core.storage import Storage

from ._common import Figure, publish, ratio

COUNT = int(os.environ.get("COUNT", "6000"))
SECONDS = float(os.environ.get("SECONDS", "60"))
REPETITIONS = int(os.environ.get("REPETITIONS", "3"))
SIZE, BATCH, WORKERS = 224, 64, 2
RECIPE = """
name: bench-loader
root: {root}
data: {{train: {{source: "{source}"}}}}
task: {{kind: classify, image_size: 224, augment: {{scale: [0.08, 1.0]}}}}
train: {{epochs: 200, batch_size: 64, workers: 1, cpus_per_worker: 1.0}}
"""


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps({**CONTESTANTS, **PREPARATION}[sys.argv[1]](Path(sys.argv[2]))))
        return
    only = os.environ.get("ONLY", ",".join(CONTESTANTS)).split(",")
    with tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp") as name, _s3(Path(name)) as environment:
        folder = Path(name)
        _photographs(folder)
        for which in ("local", "s3"):
            _child(f"ingest-{which}", folder, environment)
        seen: dict[str, list[dict[str, float]]] = {each: [] for each in only}
        for repetition in range(REPETITIONS):
            for each in only:
                seen[each].append(_child(each, folder, environment))
                shown = ", ".join(f"{k} {v:.4g}" for k, v in seen[each][-1].items())
                print(f"  {repetition + 1}/{REPETITIONS}  {each}: {shown}", flush=True)
        publish("loader", _figures(seen))


def _figures(seen: dict[str, list[dict[str, float]]]) -> list[Figure]:
    def rates(name: str) -> list[float]:
        return [found["images_per_s"] for found in seen[name]]

    def middle(name: str, key: str) -> float:
        return statistics.median(found[key] for found in seen[name])

    figures = []
    for which in ("local", "s3"):
        mine = f"mapsto-{which}"
        if mine in seen and "limit" in seen:
            where = "shards on the local disk" if which == "local" else "shards in the S3 server"
            figures.append(
                Figure(f"images/s over the limit, {where}", ratio(rates(mine), rates("limit")), "x", 0.8, "higher",
                       "two bare processes that only decode and resize, reading from memory")
            )  # fmt: skip
    peers = {
        "torch": ("torch DataLoader", 1.0, "two workers, torchvision decode_image and v2 transforms, local files"),
        "ray": ("plain Ray Data", 2.0, "read_parquet().map_batches().iter_torch_batches(), v2 transforms, local files"),
    }
    for name, (label, target, how) in peers.items():
        if name in seen and "mapsto-local" in seen:
            figures.append(
                Figure(f"images/s over {label}", ratio(rates("mapsto-local"), rates(name)), "x", target, "higher", how)
            )
    if "mapsto-local" in seen:
        figures += [
            Figure("images/s", middle("mapsto-local", "images_per_s"), "1/s", None, "higher", "for information"),
            Figure("from an epoch's last batch to the next one's first", middle("mapsto-local", "gap_batches"), "batches", 3.0, "lower", "the median time of a batch"),
            Figure("CPU time of the trainer's process", 100 * middle("mapsto-local", "trainer_cpu"), "%", 5.0, "lower", "of one core, while it takes every batch"),
            Figure("first batch, cluster warm", middle("mapsto-local", "first_batch_s"), "s", 5.0, "lower", "from the call to the batch"),
        ]  # fmt: skip
    return figures


def _photographs(folder: Path) -> None:
    """`COUNT` files in `images/<class>/`, the given photographs again and again (hard links)."""
    given = os.environ.get("IMAGES")
    if given:
        files = sorted(p for p in Path(given).expanduser().rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
        if not files:
            raise SystemExit(f"IMAGES={given}: no JPEG in it")
    else:
        from mapsto.data.scenes import write

        write(folder / "drawn", 200, 1, (375, 500), splits={"train": 1.0}, spoiled=0, processes=os.cpu_count() or 1)
        files = sorted((folder / "drawn").rglob("*.jpg"))
    for number, file in zip(range(COUNT), itertools.cycle(files), strict=False):
        target = folder / "s3" / "images" / f"class{number % 4}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        if number < len(files):
            shutil.copyfile(file, target)
        else:
            source = number % len(files)
            os.link(folder / "s3" / "images" / f"class{source % 4}" / f"{source:06d}.jpg", target)


class _s3:
    """rclone's S3 server over `folder/s3`, with keys; enters with the environment of its clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> dict[str, str]:
        for bucket in ("images", "artifacts"):
            (self.folder / "s3" / bucket).mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        key, secret = secrets.token_hex(8), secrets.token_hex(16)
        command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--addr", f"127.0.0.1:{port}"]
        command += ["--vfs-cache-mode", "off", "--dir-cache-time", "24h", str(self.folder / "s3")]
        self.process = subprocess.Popen(
            command, env={**os.environ, "RCLONE_AUTH_KEY": f'"{key},{secret}"'}, stderr=subprocess.DEVNULL
        )
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
        }  # fmt: skip

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


def _child(what: str, folder: Path, environment: dict[str, str]) -> dict[str, float]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))}
    command = [sys.executable, "-m", "benchmarks.loader", what, str(folder)]
    kept["MAPSTO_CACHE"] = str(folder / "cache")
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _recipe(folder: Path, which: str):
    if which == "s3":
        return load(RECIPE.format(root="s3://artifacts", source="s3://images"), [])
    return load(RECIPE.format(root=folder / "artifacts", source=folder / "s3" / "images"), [])


def _ingest(which: str) -> Callable[[Path], dict[str, float]]:
    def run(folder: Path) -> dict[str, float]:
        from mapsto.runtime import session
        from mapsto.stages.pipeline import produce

        start = time.perf_counter()
        with session.connected(num_cpus=WORKERS):
            artifact = produce(_recipe(folder, which), "ingest", {"role": "train"}, say=lambda line: None)
        (folder / f"{which}.uri").write_text(artifact.uri)
        return {"seconds": time.perf_counter() - start}

    return run


def _shards(folder: Path) -> list[str]:
    root = (folder / "local.uri").read_text()
    return sorted(str(p) for p in Path(root).rglob("*.parquet") if "quarantine" not in str(p))


def limit(folder: Path) -> dict[str, float]:
    """Two processes that hold their half of the encoded images and do nothing but decode, crop and resize."""
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        return {"images_per_s": sum(pool.starmap(_bare, [(_shards(folder), part) for part in range(WORKERS)]))}


def _bare(shards: list[str], part: int) -> float:
    import cv2
    import numpy as np
    import pyarrow.parquet as pq

    from mapsto.data.transforms import RandomResizedCrop

    cv2.setNumThreads(1)
    images = [
        value for shard in shards for value in pq.read_table(shard, columns=["image"]).column("image").to_pylist()
    ][part::WORKERS]
    crop, rng, done, start = RandomResizedCrop(SIZE), np.random.default_rng(part), 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < SECONDS:
        for k in rng.integers(0, len(images), BATCH):
            crop.apply({"image": images[k]}, rng)
        done += BATCH
    return done / taken


def mapsto(which: str) -> Callable[[Path], dict[str, float]]:
    """Our own iterator, in a Ray Train worker."""

    def run(folder: Path) -> dict[str, float]:
        from ray.train.v2.api.config import RunConfig, ScalingConfig
        from ray.train.v2.torch.torch_trainer import TorchTrainer

        from mapsto.runtime import session

        with session.connected(num_cpus=WORKERS + 1):
            told = folder / "told.json"
            trainer = TorchTrainer(
                _in_worker,
                train_loop_config={"recipe": _recipe(folder, which), "uri": (folder / f"{which}.uri").read_text(), "told": str(told)},
                scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
                run_config=RunConfig(storage_path=str(folder / "train")),
            )  # fmt: skip
            trainer.fit()
        return json.loads(told.read_text())

    return run


def _in_worker(config: dict) -> None:
    from mapsto.core.registry import task_class
    from mapsto.data.dataset import Dataset
    from mapsto.data.feed import Feed
    from mapsto.data.loader import worker_batches
    from mapsto.data.plan import Run

    recipe = config["recipe"]
    dataset = Dataset.open(Artifact(config["uri"], Storage()))
    task = task_class(recipe.task.kind)(recipe.task, {"train": dataset.info()})
    feed = Feed.of(task, {"train": dataset}, ("train",))
    run = Run.of(feed.streams["train"], None, recipe.train, 1)
    called = time.perf_counter()
    batches = worker_batches(feed.follow(run), 0, 1, share=lambda value: value, worker_cpus=1)
    first = start = cpu = last = None
    images = 0
    between, gaps = [], []
    for item, batch in batches:
        now = time.perf_counter()
        if first is None:
            first = now - called
        if start is None:
            if item.epoch == 1:  # the first epoch warms everything up
                start, cpu = now, time.process_time()
        else:
            images += int(batch["valid"].sum())
            (gaps if last[0] != item.epoch else between).append(now - last[1])
            if now - start >= SECONDS:
                break
        last = (item.epoch, now)
    taken = time.perf_counter() - start
    found = {
        "images_per_s": images / taken,
        "first_batch_s": first,
        "trainer_cpu": (time.process_time() - cpu) / taken,
        "gap_batches": statistics.median(gaps) / statistics.mean(between) if gaps else 0.0,
    }
    Path(config["told"]).write_text(json.dumps(found))


def torch_loader(folder: Path) -> dict[str, float]:
    """torch's DataLoader as torchvision's references have it: files from disk, decode_image, v2 transforms on uint8."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Files(Dataset):
        def __init__(self) -> None:
            from torchvision.transforms import v2

            self.files = sorted(str(p) for p in (folder / "s3" / "images").rglob("*.jpg"))
            self.transform = v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()])

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int):
            from torchvision.io import ImageReadMode, decode_image

            return self.transform(decode_image(self.files[index], ImageReadMode.RGB)), 0

    loader = DataLoader(
        Files(), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True,
        worker_init_fn=lambda _: torch.set_num_threads(1),
    )  # fmt: skip
    return {"images_per_s": _rate(lambda: (len(x) for x, _ in loader))}


def plain_ray(folder: Path) -> dict[str, float]:
    """Ray Data as its documentation has it: parquet → decode and transform in map_batches → iter_torch_batches."""
    import numpy as np
    import ray
    import torch

    from mapsto.runtime import session

    def augment(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        from torchvision.io import ImageReadMode, decode_image
        from torchvision.transforms import v2

        transform = v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()])
        images = [
            transform(decode_image(torch.frombuffer(bytearray(b), dtype=torch.uint8), ImageReadMode.RGB)).numpy()
            for b in batch["image"]
        ]
        return {"image": np.stack(images)}

    with session.connected(num_cpus=WORKERS):
        rows = ray.data.read_parquet(_shards(folder), columns=["image"], shuffle="files").map_batches(
            augment, batch_size=BATCH
        )
        batches: Callable[[], Iterator[int]] = lambda: (  # noqa: E731
            len(b["image"]) for b in rows.iter_torch_batches(batch_size=BATCH, local_shuffle_buffer_size=4 * BATCH)
        )
        return {"images_per_s": _rate(batches)}


def _rate(epoch: Callable[[], Iterator[int]]) -> float:
    """Images per second after one epoch of warming up, over whole passes and the beginning of the last."""
    for _ in epoch():
        pass
    images, start = 0, time.perf_counter()
    while True:
        for count in epoch():
            images += count
            if (taken := time.perf_counter() - start) >= SECONDS:
                return images / taken


CONTESTANTS: dict[str, Callable[[Path], dict[str, float]]] = {
    "limit": limit,
    "mapsto-local": mapsto("local"),
    "mapsto-s3": mapsto("s3"),
    "torch": torch_loader,
    "ray": plain_ray,
}
PREPARATION = {"ingest-local": _ingest("local"), "ingest-s3": _ingest("s3")}


if __name__ == "__main__":
    main()
