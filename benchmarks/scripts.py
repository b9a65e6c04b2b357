"""Training through mapsto beside timm's training script and torchvision's reference for classification: the same model, photographs,
batch and augmentation, two workers on two cores, by the clock. `make bench NAME=scripts`

Once where data is the limit (a tiny net at 64 pixels, photographs of full size), once where computing is (ResNet-18 at 112).
Environment: IMAGES, a folder of photographs (default: drawn ones), COUNT (1,280) of them an epoch, EPOCHS (6), of which the first two
are left out, REPETITIONS (3). `_bare_scripts.py` has the peers, written after the two scripts from their own libraries' parts.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from mapsto.config.load import load
from mapsto.runtime import session
from mapsto.stages.pipeline import Pipeline

from ._common import Figure, interleaved, publish, ratio
from ._loader_data import photographs

COUNT, EPOCHS, REPETITIONS = (
    int(os.environ.get(name, default)) for name, default in (("COUNT", "1280"), ("EPOCHS", "6"), ("REPETITIONS", "3"))
)
WARM, WORKERS, BATCH = 2, 2, 64
SETTINGS = {"data": ("test_resnet.r160_in1k", 64), "computing": ("resnet18", 112)}
"""What is the limit → (model, pixels)."""
RECIPE = """
name: bench-scripts
root: {folder}/artifacts
data: {{train: {{source: "{folder}/s3/images", splits: {{}}}}}}
task: {{kind: classify, image_size: {size}, model: {{name: {model}, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}, augment: {{scale: [0.35, 1.0]}}}}
train:
  {{epochs: {epochs}, batch_size: {batch}, workers: 2, cpus_per_worker: 0.4, precision: bf16, drop_last: true, seed: {seed},
   evaluate_every: 100, checkpoint_every: 100, optimizer: {{kind: sgd, lr: 0.01, momentum: 0.9, weight_decay: 5.0e-4}}}}
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp") as name:
        folder = Path(name)
        photographs(folder, COUNT)
        with session.connected(dashboard=False):
            seeds = itertools.count(1)
            _ours(folder, "data", seeds, epochs=1)  # the data set, and a warm cluster
            seen = interleaved(
                {
                    f"{who}, {limit}": partial(_ours, folder, limit, seeds) if who == "mapsto" else partial(_peer, folder, limit, who)
                    for limit in SETTINGS for who in ("timm", "torchvision", "mapsto")
                },
                REPETITIONS,
            )  # fmt: skip
    figures = []
    for limit, (model, size) in SETTINGS.items():
        for who, script in (("timm", "timm's train.py"), ("torchvision", "torchvision's references/classification")):
            figures.append(
                Figure(
                    f"images/s over {who}'s script where {limit} is the limit", ratio(seen[f"mapsto, {limit}"], seen[f"{who}, {limit}"]),
                    "x", 1.1 if limit == "data" else 0.98, "higher",
                    f"after {script}: {model}, {size} pixels, {BATCH} photographs a step, bf16, SGD, gloo, two processes with a loader's worker each",
                )
            )  # fmt: skip
        figures.append(Figure(f"images/s, mapsto, {limit}", statistics.median(seen[f"mapsto, {limit}"]), "1/s", None, "higher", "for information"))  # fmt: skip
    publish("scripts", figures)


def _peer(folder: Path, limit: str, kind: str) -> float:
    model, size = SETTINGS[limit]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rest = (str(each) for each in (WORKERS, port, folder / "s3" / "images", model, size, BATCH, EPOCHS))
    more = tuple(rest)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks._bare_scripts", kind, str(rank), *more],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORKERS)
    ]
    out = [process.communicate()[0] for process in ranks]
    if any(process.returncode for process in ranks):
        raise SystemExit(f"{kind}: failed")
    return statistics.median(json.loads(out[0].splitlines()[-1])[WARM:])


def _ours(folder: Path, limit: str, seeds: itertools.count[int], epochs: int = EPOCHS) -> float:
    model, size = SETTINGS[limit]
    text = RECIPE.format(folder=folder, model=model, size=size, batch=BATCH, epochs=epochs, seed=next(seeds))
    records: list[dict[str, float]] = []
    Pipeline(load(text, []), lambda line: None).produce("train", {"on_epoch": records.append})
    ends = [record["time"] for record in records[WARM - 1 :]]
    rows = COUNT // BATCH * BATCH
    return statistics.median(rows / (b - a) for a, b in itertools.pairwise(ends)) if len(ends) > 1 else 0.0


if __name__ == "__main__":
    main()
