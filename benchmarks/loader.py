"""The loader beside what decoding alone allows, and beside its peers: photographs → random-resized-crop to 224 pixels,
flip, uint8 batches of 64, in two CPUs. `make bench NAME=loader`

Environment: IMAGES, a folder of photographs (default: drawn ones); COUNT (6,000); SECONDS (60) per measurement of ours
and of the limit, PEER_SECONDS (25) of the others; REPETITIONS (3); ONLY (comma-separated contestants); QUICK=1 for a
dry run of a few minutes, whose figures mean nothing. PEERS_PYTHON: a Python with the peers that the lock has not,
    uv venv --python 3.11 peers && VIRTUAL_ENV=peers uv pip install torch torchvision webdataset litdata \
        mosaicml-streaming nvidia-dali-cuda120
(without it they are left out). Each contestant runs in a process of its own with nothing else running; all but the
limit begin with an epoch of warming up, and read what is warm in the page cache. `loader.md` keeps what was tried.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

if quick := os.environ.get("QUICK"):
    for _name, _value in (("COUNT", "600"), ("SECONDS", "5"), ("PEER_SECONDS", "3"), ("REPETITIONS", "1")):
        os.environ.setdefault(_name, _value)

from mapsto.data.kept import Kept

from . import _loader_ours as ours  # reads the settings
from ._common import Figure, publish, ratio, told
from ._loader_data import ingest, photographs
from ._s3 import served

COUNT = int(os.environ.get("COUNT", "6000"))
REPETITIONS = int(os.environ.get("REPETITIONS", "3"))
PEER_SECONDS = os.environ.get("PEER_SECONDS", "25")
SETS = ("local", "packed", "s3")

OURS: dict[str, Callable[[Path], dict[str, float]]] = {
    **{f"limit-{which}": ours.limit(which) for which in ("memory", "local", "s3")},
    "mapsto-local": ours.mapsto("local"),
    "mapsto-kept": ours.mapsto("local", Kept(400, 90)),
    "mapsto-two": ours.mapsto("local", trainers=2),
    "mapsto-s3": ours.mapsto("s3"),
    "mapsto-packed": ours.mapsto("packed"),
    "cache": ours.cache,
    "memory": ours.memory,
    "ray": ours.plain_ray,
    **{f"ingest-{which}": partial(ingest, which=which, cpus=ours.WORKERS) for which in SETS},
}
PEERS = {
    "torch": ("torch DataLoader", "two workers, torchvision decode_image and v2 transforms, local files"),
    "ray": ("plain Ray Data", "read_parquet().map_batches().iter_torch_batches(), v2 transforms, local files"),
    "webdataset": ("WebDataset", "local tar shards, WebLoader with two workers, v2 transforms"),
    "litdata": ("LitData", "local optimized chunks, StreamingDataLoader with two workers, v2 transforms"),
    "mosaicml": ("MosaicML Streaming", "local MDS shards, DataLoader with two workers, v2 transforms"),
    "dali": ("DALI on the CPU", "two threads, image_random_crop, local files"),
}
ELSEWHERE = ("webdataset", "litdata", "mosaicml", "dali")
"""Run by PEERS_PYTHON."""
CONTESTANTS = (
    "limit-memory", "limit-local", "mapsto-local", "mapsto-two", *PEERS, "limit-s3", "mapsto-s3", "mapsto-packed", "mapsto-kept", "cache", "memory",
)  # fmt: skip


def main() -> None:
    if len(sys.argv) > 1:
        print("\n" + json.dumps(OURS[sys.argv[1]](Path(sys.argv[2]))))
        return
    only = [each for each in os.environ.get("ONLY", ",".join(CONTESTANTS)).split(",") if each]
    if "PEERS_PYTHON" not in os.environ:
        print(f"left out, for want of PEERS_PYTHON: {', '.join(each for each in only if each in ELSEWHERE)}")
        only = [each for each in only if each not in ELSEWHERE]
    with (
        tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp") as name,
        served(Path(name) / "s3", ("images", "artifacts")) as environment,
    ):
        folder = Path(name)
        photographs(folder, COUNT)
        for which in SETS:
            _child(f"ingest-{which}", folder, environment)
        for each in ("webdataset", "litdata", "mosaicml"):
            if each in only:
                _child(f"prepare-{each}", folder, environment)
        seen: dict[str, list[dict[str, float]]] = {each: [] for each in only}
        for repetition in range(REPETITIONS):
            for each in only:
                seen[each].append(_child(each, folder, environment))
                shown = ", ".join(f"{k} {v:.4g}" for k, v in seen[each][-1].items())
                print(f"  {repetition + 1}/{REPETITIONS}  {each}: {shown}", flush=True)
        publish("loader-quick" if quick else "loader", _figures(seen), _settings())


def _child(what: str, folder: Path, environment: dict[str, str]) -> dict[str, float]:
    """A contestant in a process of its own: the last line that it prints, as JSON."""
    kept = dict(environment)
    name = what.removeprefix("prepare-")
    if name in PEERS and name != "ray":
        python = os.environ["PEERS_PYTHON"] if name in ELSEWHERE else sys.executable
        command = [python, str(Path(__file__).with_name("_loader_peers.py")), what, str(folder)]
        kept |= {"SECONDS": PEER_SECONDS}
    else:
        command = [sys.executable, "-m", "benchmarks.loader", what, str(folder)]
        kept |= {"SECONDS": PEER_SECONDS} if name == "ray" else {}
    kept["MAPSTO_CACHE"] = str(folder / ("cache-cold" if what == "cache" else "cache"))
    shutil.rmtree(folder / "cache-cold", ignore_errors=True)
    return told(command, kept, what)


def _settings() -> str:
    images = "photographs of IMAGES" if "IMAGES" in os.environ else "drawn scenes"
    return f"{COUNT} {images}, {REPETITIONS} repetitions, {ours.SECONDS:g} s each, {PEER_SECONDS} s of the peers"


def _figures(seen: dict[str, list[dict[str, float]]]) -> list[Figure]:
    def rates(name: str) -> list[float]:
        return [found["images_per_s"] for found in seen[name]]

    def middle(name: str, key: str) -> float:
        return statistics.median(found[key] for found in seen[name])

    figures = []
    for which, where in (("local", "shards on the local disk"), ("s3", "shards in the S3 server")):
        for limit, target, how in (
            (which, 0.8, "two bare processes that only read the same shards, decode, crop and resize"),
            ("memory", None, "the same, which hold all encoded images in memory and read nothing"),
        ):
            if {f"mapsto-{which}", f"limit-{limit}"} <= seen.keys():
                label = "the limit" if target else "decoding from memory"
                times = ratio(rates(f"mapsto-{which}"), rates(f"limit-{limit}"))
                figures.append(Figure(f"images/s over {label}, {where}", times, "x", target, "higher", how))
    if {"mapsto-two", "limit-local"} <= seen.keys():
        figures.append(
            Figure("images/s of two training workers over the limit", ratio(rates("mapsto-two"), rates("limit-local")), "x", None, "higher",
                   "both workers' batches of 64, shards on the local disk; the tasks of the data have two CPUs, as with one worker")
        )  # fmt: skip
    for name, (label, how) in PEERS.items():
        if {name, "mapsto-local"} <= seen.keys():
            times, target = ratio(rates("mapsto-local"), rates(name)), 2.0 if name == "ray" else 1.0
            figures.append(Figure(f"images/s over {label}", times, "x", target, "higher", how))
    if {"mapsto-packed", "mapsto-local"} <= seen.keys():
        figures.append(
            Figure("packed images/s over unpacked", ratio(rates("mapsto-packed"), rates("mapsto-local")), "x", 1.5, "higher",
                   "longest side 400, quality 90; the same output size")
        )  # fmt: skip
    if "cache" in seen:
        figures.append(
            Figure("second epoch over the first", middle("cache", "second_over_first"), "x", 1.15, "higher",
                   "speed, from the first batch on; shards in the S3 server, node-local cache, empty before the first")
        )  # fmt: skip
    if {"mapsto-kept", "mapsto-local"} <= seen.keys():
        figures.append(
            Figure("images/s with train.cache over without", ratio(rates("mapsto-kept"), rates("mapsto-local")), "x", None, "higher",
                   "packed in the node's cache, longest side 400, quality 90; from the second epoch on")
        )  # fmt: skip
    if "mapsto-local" in seen:
        figures += [
            Figure("images/s", middle("mapsto-local", "images_per_s"), "1/s", None, "higher", "for information"),
            Figure("from an epoch's last batch to the next one's first", middle("mapsto-local", "gap_batches"), "batches", 3.0, "lower", "the mean time of a batch; the median epoch"),
            Figure("the same, of the worst epoch", middle("mapsto-local", "longest_gap_batches"), "batches", None, "lower", f"within epochs the longest wait was {middle('mapsto-local', 'longest_within_batches'):.3g}"),
            Figure("CPU time of the trainer's process", 100 * middle("mapsto-local", "trainer_cpu"), "%", 5.0, "lower", "of one core, while it takes every batch at once"),
            Figure("first batch, cluster warm", middle("mapsto-local", "first_batch_s"), "s", 5.0, "lower", "from the call to the batch"),
        ]  # fmt: skip
    if "memory" in seen:
        store, times = middle("memory", "store_mib"), middle("memory", "streamed_over_store")
        figures += [
            Figure("host memory, growth while streaming", middle("memory", "growth_mib"), "MiB", 0.25 * store, "lower",
                   f"an object store of {store:.0f} MiB, a set of {middle('memory', 'set_over_store'):.2g} times as much as batches of 16, {times:.0f} times streamed; a quarter of it at most"),
            Figure("runs that spilled", sum(found["spilled"] for found in seen["memory"]), "", 0.0, "lower", "the same runs"),
        ]  # fmt: skip
    return figures


if __name__ == "__main__":
    main()
