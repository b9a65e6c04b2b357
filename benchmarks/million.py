"""A million tiny images through ingest, clean and index on two cores: time and memory of each stage, and how both grow.
`make bench NAME=million`

Images are drawn (32 pixels: shapes, gradients and noise; one in a hundred is a recompressed copy, one in a thousand has the bytes
of the one before it), and lie in WebDataset tars. Each size runs in a process of its own; a tenth of the images first, so that
growth shows. Memory is that of the driver and of all processes that it started, without mapped files, sampled twice a second.
Environment: COUNT (1,000,000), CPUS (2), TMPDIR (where some 12 kB for each image go).
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import psutil

from mapsto.core.codecs import decode, encode

from ._common import Figure, publish

COUNT = int(os.environ.get("COUNT", "1000000"))
CPUS = int(os.environ.get("CPUS", "2"))
SIDE, CLASSES, TAR_IMAGES, COPY_OF, EQUAL_OF = 32, 10, 10_000, 100, 1000
STAGES = ("ingest", "clean", "index")
RECIPE = """
name: million
root: {folder}/artifacts
data: {{train: {{source: {folder}/images, layout: webdataset}}}}
task: {{kind: classify, image_size: 32, model: {{name: airbench_tiny}}}}
clean: {{rules: {{near_duplicate: {{policy: quarantine}}, leakage: {{policy: quarantine}}}}}}
index: {{features: colour}}
"""


def main() -> None:
    runs = {}
    for count in (COUNT // 10, COUNT):
        print(f"  {count:,} images", flush=True)
        with tempfile.TemporaryDirectory(prefix="mb-", dir=os.environ.get("TMPDIR", "/tmp")) as folder:
            command = [sys.executable, "-m", "benchmarks.million", str(count), folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        runs[count] = json.loads(done.stdout.splitlines()[-1])
        print(f"  {runs[count]}", flush=True)
    publish("million", list(_figures(runs)))


def _figures(runs: dict[int, dict[str, dict[str, float]]]) -> Iterator[Figure]:
    (small, before), (large, after) = runs.items()
    for stage in STAGES:
        seconds, cores = after[stage]["seconds"], f"{CPUS} cores"
        yield Figure(f"{stage}: time for {large:,} images", seconds, "s", None, "lower", cores)
        yield Figure(f"{stage}: processor time for one image", after[stage]["cpu"] / large * 1e6, "µs", None, "lower", "all processes; the unit cost of docs/scale.md")  # fmt: skip
        growth = math.log(seconds / before[stage]["seconds"]) / math.log(large / small)
        yield Figure(
            f"{stage}: growth from {small:,}, as a power of the number", growth, "", 1.15, "lower", "1 is linear"
        )
        yield Figure(f"{stage}: peak memory, all processes", after[stage]["all_mb"], "MB", None, "lower", f"{before[stage]['all_mb']:.0f} MB at {small:,}")  # fmt: skip
        yield Figure(f"{stage}: peak memory, driver", after[stage]["driver_mb"], "MB", None, "lower", f"{before[stage]['driver_mb']:.0f} MB at {small:,}")  # fmt: skip
    total = sum(after[stage]["seconds"] for stage in STAGES)
    yield Figure(f"{large:,} images through all three stages", total, "s", None, "lower", "drawing them is not counted")
    yield Figure(
        "recompressed and equal copies found", after["clean"]["found"], "", 0.95, "higher", "share of those planted"
    )


def run(count: int, folder: Path) -> dict[str, dict[str, float]]:
    """Draw, then carry out the three stages; seconds, processor seconds and MB of each."""
    from mapsto.config.load import load
    from mapsto.runtime import session
    from mapsto.stages.pipeline import produce

    (folder / "images").mkdir()
    starts = list(range(0, count, TAR_IMAGES))
    with ProcessPoolExecutor(CPUS) as pool:
        list(
            pool.map(
                write, [str(folder / "images")] * len(starts), starts, [min(count, s + TAR_IMAGES) for s in starts]
            )
        )
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder))
    out = {}
    with session.connected(num_cpus=CPUS, dashboard=False):
        for stage in STAGES:
            with Watch() as watch:
                artifact = produce(load(str(recipe), []), stage, {"role": "train"}, say=lambda line: None)
            out[stage] = watch.result()
            if stage == "clean":
                quarantined = artifact.meta()["metrics"]["quarantined"]
                out[stage]["found"] = quarantined / max(1, count // COPY_OF + count // EQUAL_OF)
    return out


class Watch:
    """Seconds, processor seconds and the peak memory of this process and of all that it started."""

    def __enter__(self) -> Watch:
        self._done, self._driver, self._all = threading.Event(), 0.0, 0.0
        self._cpu: dict[int, float] = {}
        self._look()
        self._before = dict(self._cpu)
        self._start = time.perf_counter()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._seconds = time.perf_counter() - self._start
        self._done.set()
        self._thread.join()
        self._look()

    def result(self) -> dict[str, float]:
        used = sum(seconds - self._before.get(pid, 0.0) for pid, seconds in self._cpu.items())
        return {"seconds": self._seconds, "cpu": used, "driver_mb": self._driver, "all_mb": self._all}

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            self._look()

    def _look(self) -> None:
        me, total = psutil.Process(), 0.0
        for process in (me, *me.children(recursive=True)):
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                spent = process.cpu_times()
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                continue  # it has just ended: its last half second is not counted
            held = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)
            self._cpu[process.pid] = spent.user + spent.system
            total += held
            if process.pid == me.pid:
                self._driver = max(self._driver, held)
        self._all = max(self._all, total)


def write(folder: str, start: int, stop: int) -> None:
    """Images start..stop-1 as a tar: `000123.jpg`, `000123.cls`. The last of each hundred is a copy of the one before
    it, the fifth of each thousand has its bytes."""
    images = drawn(start, stop)
    with tarfile.open(Path(folder) / f"part-{start // TAR_IMAGES:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as out:
        data = b""
        for k in range(start, stop):
            if k % COPY_OF == COPY_OF - 1:
                data = encode(decode(data), "jpeg", 60)
            elif k % EQUAL_OF != 4:
                data = encode(images[k - start], "jpeg", 90)
            for suffix, content in (("jpg", data), ("cls", str(k % CLASSES).encode())):
                member = tarfile.TarInfo(f"{k:09d}.{suffix}")
                member.size = len(content)
                out.addfile(member, BytesIO(content))


def drawn(start: int, stop: int) -> np.ndarray:
    """N×32×32×3 uint8: a smooth background of its own, an ellipse, a bar and noise, from the number alone."""
    count = stop - start
    rng = np.random.default_rng([2026, start])
    coarse = rng.integers(30, 226, (count, 5, 5, 3), np.uint8)
    images = np.stack([cv2.resize(c, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) for c in coarse]).astype(np.int16)
    y, x = np.mgrid[:SIDE, :SIDE]
    cy, cx, ry, rx, top, left, height, width = rng.integers(4, 28, (8, count, 1, 1))
    ellipse = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 0.25
    bar = (y >= top) & (y < top + height // 3) & (x >= left) & (x < left + width)
    for shape in (ellipse, bar):
        images = np.where(shape[..., None], rng.integers(0, 256, (count, 1, 1, 3)), images)
    return np.clip(images + rng.integers(-9, 10, images.shape), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(run(int(sys.argv[1]), Path(sys.argv[2]))))
    else:
        main()
