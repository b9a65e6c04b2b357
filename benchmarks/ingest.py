"""Ingest beside two bare processes that do the same work on the same photographs: list, read from the S3 server, decode to
verify, hash, mean and deviation, Parquet shards back to the server. `make bench NAME=ingest`

Environment: IMAGES, a folder of photographs (default: drawn ones); COUNT (6,000); SECONDS (60) per measurement, at least: whole
ingests, one after the other, each to a place of its own; REPETITIONS (3). Each contestant runs in a process of its own, with
nothing else running, and ingests once before it is measured.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from ._common import Figure, interleaved, publish, ratio, told
from ._loader_data import photographs
from ._s3 import served

COUNT = int(os.environ.get("COUNT", "6000"))
SECONDS = float(os.environ.get("SECONDS", "60"))
REPETITIONS = int(os.environ.get("REPETITIONS", "3"))
PROCESSES, READERS, SHARD = 2, 8, 500
"""Of the bare loop: processes, threads of each that read ahead, images of a shard."""
RECIPE = """
name: bench-ingest
root: s3://artifacts/{run}
data: {{train: {{source: "s3://images", splits: {{}}}}}}
task: {{kind: classify}}
"""


def main() -> None:
    if len(sys.argv) > 1:
        print("\n" + json.dumps({"mapsto": ours, "bare": bare}[sys.argv[1]]()))
        return
    with (
        tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp") as name,
        served(Path(name) / "s3", ("images", "artifacts")) as environment,
    ):
        photographs(Path(name), COUNT)

        contestants = {
            which: partial(told, [sys.executable, "-m", "benchmarks.ingest", which], environment, which)
            for which in ("bare", "mapsto")
        }
        seen = interleaved(contestants, REPETITIONS)
    publish(
        "ingest",
        [
            Figure("ingest, images/s over bare", ratio(seen["mapsto"], seen["bare"]), "x", 0.85, "higher",
                   f"two bare processes, {READERS} reading threads each: list, read, decode, sha256, moments, Parquet; {COUNT} photographs, S3"),
            Figure("ingest, images/s", statistics.median(seen["mapsto"]), "1/s", None, "higher", "for information"),
        ],
    )  # fmt: skip


def _rate(ingest: Callable[[int], None]) -> float:
    """Images per second of whole ingests for at least SECONDS, after a first one."""
    ingest(0)
    runs, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < SECONDS:
        runs += 1
        ingest(runs)
    return runs * COUNT / taken


def ours() -> float:
    from mapsto.config.load import load
    from mapsto.runtime import session
    from mapsto.stages.pipeline import produce

    def ingest(run: int) -> None:
        made = produce(
            load(RECIPE.format(run=f"mapsto-{os.getpid()}-{run}"), []),
            "ingest",
            {"role": "train"},
            say=lambda line: None,
        )
        assert made.meta()["metrics"]["images"] == COUNT

    with session.connected(num_cpus=PROCESSES, dashboard=False):
        return _rate(ingest)


def bare() -> float:
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:

        def ingest(run: int) -> None:
            parts = [(part, f"artifacts/bare-{os.getpid()}-{run}") for part in range(PROCESSES)]
            assert sum(pool.starmap(_bare, parts)) == COUNT

        return _rate(ingest)


def _bare(part: int, target: str) -> int:
    """A process' share of the images, from the listing to its shards."""
    import cv2
    import pyarrow.fs as fs

    from mapsto.core import codecs

    cv2.setNumThreads(1)
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    store = fs.S3FileSystem(endpoint_override=endpoint, scheme="http")
    found = store.get_file_info(fs.FileSelector("images", recursive=True))
    paths = sorted(info.path for info in found if info.type == fs.FileType.File)[part::PROCESSES]

    def read(path: str) -> bytes:
        with store.open_input_stream(path) as file:
            return file.readall()

    with ThreadPoolExecutor(READERS) as readers:
        for start in range(0, len(paths), SHARD):
            some = paths[start : start + SHARD]
            rows = [
                _row(path, data, codecs.decode(data)) for path, data in zip(some, readers.map(read, some), strict=True)
            ]
            _write(f"{target}-{part}-{start}.parquet", rows)
    return len(paths)


def _row(path: str, data: bytes, image: Any) -> dict[str, Any]:
    import hashlib

    import cv2

    mean, deviation = cv2.meanStdDev(image)
    height, width = image.shape[:2]
    return {
        "image": data, "label": path.split("/")[-2], "width": width, "height": height, "source": path,
        "sha256": hashlib.sha256(data).hexdigest(), "mean": mean.ravel().tolist(), "deviation": deviation.ravel().tolist(),
    }  # fmt: skip


def _write(path: str, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from s3fs import S3FileSystem

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, compression="NONE", use_dictionary=False, row_group_size=64)
    S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"]).pipe_file(path, sink.getvalue().to_pybytes())


if __name__ == "__main__":
    main()
