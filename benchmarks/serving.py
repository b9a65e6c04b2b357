"""What an answer costs on its way: mapsto's endpoint beside plain Ray Serve with the same int8 model, and the same
endpoint behind Serve's Python proxy; how full the batches are with default settings. `make bench NAME=serving`

Each server is started for its measurement and ended after it; the load comes from this machine, 64 clients in closed
loops, so client and server share the cores: the figures are ratios.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import requests

from mapsto.config.load import load
from mapsto.core.codecs import encode
from mapsto.data.scenes import numbered, write
from mapsto.runtime import session
from mapsto.stages.pipeline import produce

from ._common import Figure, publish, ratio

SIZE, CLIENTS, SECONDS, REPETITIONS = 64, 64, 8.0, 3
RECIPE = """
name: bench-serving
root: {folder}/artifacts
data: {{train: {{source: {folder}/images}}}}
task: {{kind: classify, image_size: 64, model: {{name: airbench_tiny}}}}
train: {{epochs: 1, batch_size: 32, workers: 1, cpus_per_worker: 0.5}}
compress: {{max_drop: 100, steps: [{{kind: export}}, {{kind: quantize, calibration: 64}}]}}
serve: {{name: bench, cpus_per_replica: 1}}
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp") as name:
        folder = Path(name)
        write(folder / "images", 240, 1, (96, 96), spoiled=0)
        recipe = folder / "recipe.yaml"
        recipe.write_text(RECIPE.format(folder=folder))
        with session.connected(num_cpus=3):
            model = produce(load(str(recipe), []), "compress", say=lambda line: None)
        body = encode(numbered(9, 0, (96, 96)).image)
        table = {row["name"]: row for row in model.read_json("variants.json")["variants"]}
        names = model.read_json("task.json")["datasets"]["train"]["classes"]
        onnx = folder / "model.onnx"
        onnx.write_bytes(model.read(model.read_json("variant.json")["file"]))
        mine = [sys.executable, "-m", "mapsto", "serve", str(recipe), "--cpus", "2", "--set"]
        servers = {
            "mapsto": (lambda port: [*mine, f"serve.port={port}"], {}, "/v1/models/bench:predict"),
            "mapsto, Python proxy": (
                lambda port: [*mine, f"serve.port={port}"], {"RAY_SERVE_ENABLE_HA_PROXY": "0"}, "/v1/models/bench:predict"
            ),
            "plain Ray Serve": (
                lambda port: [
                    sys.executable, "-m", "benchmarks._plain_serve", str(onnx), ",".join(names), str(SIZE), str(port)
                ], {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}, "/predict",
            ),
        }  # fmt: skip
        rate: dict[str, list[float]] = {name: [] for name in servers}
        lone: dict[str, list[float]] = {name: [] for name in servers}
        filled: list[float] = []
        for repetition in range(REPETITIONS):
            for name, (command, extra, path) in servers.items():
                with _server(command, extra, path, body) as url:
                    _load(url, body, CLIENTS, 2.0)
                    rate[name].append(_load(url, body, CLIENTS, SECONDS)[0])
                    if name == "mapsto":
                        filled.append(requests.get(url.removesuffix(":predict"), timeout=10).json()["mean_batch"])
                    lone[name].append(_load(url, body, 1, SECONDS / 2)[1])
                print(
                    f"  {repetition + 1}/{REPETITIONS}  {name}: {rate[name][-1]:.0f} answers/s, alone {lone[name][-1]:.2f} ms"
                )
    same = "same int8 model, FastAPI and @serve.batch as Serve documents them, one replica each"
    publish("serving", [
        Figure("answers/s, 64 clients, over plain Ray Serve", ratio(rate["mapsto"], rate["plain Ray Serve"]), "x", 2.0, "higher", same),
        Figure("answers/s, 64 clients, fast ingress over Python proxy", ratio(rate["mapsto"], rate["mapsto, Python proxy"]), "x", 1.5, "higher", "the same replica"),
        Figure("one client's median latency over plain Ray Serve", ratio(lone["mapsto"], lone["plain Ray Serve"]), "x", 1.0, "lower", same),
        Figure("answers/s, 64 clients", statistics.median(rate["mapsto"]), "1/s", None, "higher", "for information"),
        Figure("mean batch, 64 clients, of at most 16", statistics.median(filled), "rows", 12.0, "higher", "default settings"),
        Figure("int8 over float latency, batch 1", table["int8"]["latency_p50_ms"] / table["float"]["latency_p50_ms"], "x", 1.0, "lower", "the float model in PyTorch, interleaved"),
    ])  # fmt: skip


@contextmanager
def _server(command, extra: dict[str, str], path: str, body: bytes) -> Generator[str]:
    """A server's process group on a free port; its URL once it answers; ended with all its children."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | extra
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command(port), env=environment, stdout=log, stderr=log, start_new_session=True)
        url = f"http://127.0.0.1:{port}{path}"
        try:
            for _ in range(240):
                try:
                    if requests.post(url, body, headers={"Content-Type": "image/jpeg"}, timeout=10).ok:
                        break
                except requests.ConnectionError:
                    pass
                if process.poll() is not None:
                    break
                time.sleep(0.5)
            if not _answers(url, body):
                log.seek(0)
                raise RuntimeError(
                    f"{command(port)[:4]} does not answer: {log.read()[-2000:].decode(errors='replace')}"
                )
            yield url
        finally:
            process.terminate()
            process.wait(timeout=60)


def _answers(url: str, body: bytes) -> bool:
    try:
        return requests.post(url, body, headers={"Content-Type": "image/jpeg"}, timeout=10).ok
    except requests.RequestException:
        return False


def _load(url: str, body: bytes, clients: int, seconds: float) -> tuple[float, float]:
    """Answers per second and the median latency in ms of clients in closed loops. Raises for an answer that is none."""

    async def run() -> tuple[float, float]:
        taken: list[float] = []
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            end = time.perf_counter() + seconds

            async def client() -> None:
                while (start := time.perf_counter()) < end:
                    async with http.post(url, data=body, headers={"Content-Type": "image/jpeg"}) as answer:
                        await answer.read()
                        answer.raise_for_status()
                    taken.append(time.perf_counter() - start)

            start = time.perf_counter()
            await asyncio.gather(*(client() for _ in range(clients)))
            return len(taken) / (time.perf_counter() - start), 1e3 * statistics.median(taken)

    return asyncio.run(run())


if __name__ == "__main__":
    main()
