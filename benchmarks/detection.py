"""Training a detector through mapsto beside torchvision's reference loop: the same Faster R-CNN, images, batch and optimizer,
two workers. `make bench NAME=detection`

Environment: COUNT (300) drawn photographs of SIZE (256) pixels, BATCH (16), EPOCHS (5), of which the first is left out,
REPETITIONS (3). The reference reads files from the local disk, as its documentation has it; mapsto reads what it ingested
from there. Both count by the clock, from the end of one epoch to the end of the next, in fp32.
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
from pathlib import Path

from mapsto.config.load import load
from mapsto.data.scenes import write
from mapsto.runtime import session
from mapsto.stages.pipeline import Pipeline

from ._bare_detection import ANCHOR, BACKBONE, CHANNELS, HIDDEN, PROPOSALS
from ._common import Figure, interleaved, publish, ratio

COUNT, SIZE = int(os.environ.get("COUNT", "300")), int(os.environ.get("SIZE", "256"))
BATCH, EPOCHS = int(os.environ.get("BATCH", "16")), int(os.environ.get("EPOCHS", "5"))
REPETITIONS, WORKERS = int(os.environ.get("REPETITIONS", "3")), 2
RECIPE = f"""
name: bench-detection
root: {{root}}
data: {{{{train: {{{{source: "{{source}}/manifest.jsonl", layout: manifest, splits: {{{{val: 0}}}}}}}}}}}}
task:
  kind: detect
  image_size: {SIZE}
  model: {{{{name: fasterrcnn, backbone: {BACKBONE}, channels: {CHANNELS}, anchor: {ANCHOR}, proposals: {PROPOSALS}, hidden: {HIDDEN}}}}}
  augment: {{{{crop: none, flip: 0.5, brightness: 0, contrast: 0, saturation: 0}}}}
train:
  {{{{epochs: {{epochs}}, batch_size: {BATCH}, workers: {WORKERS}, cpus_per_worker: 0.4, drop_last: true, seed: {{seed}}, channels_last: false,
   checkpoint_every: 100, optimizer: {{{{kind: sgd, lr: 0.02, momentum: 0.9, weight_decay: 1.0e-4}}}}}}}}
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp") as name:
        folder = Path(name)
        write(folder / "scenes", COUNT, 1, (SIZE, SIZE), splits={"train": 1.0}, spoiled=0, masks=True, processes=2)
        with session.connected(dashboard=False):
            seeds = itertools.count(1)
            _ours(folder, 0, 1)
            seen = interleaved(
                {
                    "torchvision's reference loop": lambda: _reference(folder / "scenes"),
                    "mapsto": lambda: _ours(folder, next(seeds), EPOCHS),
                },
                REPETITIONS,
            )
    reference, ours = seen.values()
    how = f"Faster R-CNN, {BACKBONE}, {SIZE} pixels, {BATCH} images a step, fp32, SGD, gloo, 2 workers of one thread"
    publish(
        "detection",
        [
            Figure("images/s over torchvision's reference loop", ratio(ours, reference), "x", 1.0, "higher", how),
            Figure(
                "images/s, torchvision's reference loop", statistics.median(reference), "1/s", None, "higher",
                "a DataLoader worker for each trainer",
            ),
        ],
    )  # fmt: skip


def _reference(folder: Path) -> float:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = [str(each) for each in (WORKERS, port, folder, SIZE, BATCH, EPOCHS)]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks._bare_detection", str(rank), *settings],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORKERS)
    ]
    out = [process.communicate()[0] for process in ranks]
    if any(process.returncode for process in ranks):
        raise SystemExit("the reference loop failed")
    return statistics.median(json.loads(out[0])[1:])


def _ours(folder: Path, seed: int, epochs: int) -> float:
    recipe = load(RECIPE.format(root=folder / "root", source=folder / "scenes", epochs=epochs, seed=seed))
    ends: list[float] = []
    Pipeline(recipe, lambda line: None).produce("train", {"on_epoch": lambda record: ends.append(record["time"])})
    images = COUNT // BATCH * BATCH
    return statistics.median([images / (b - a) for a, b in itertools.pairwise(ends)] or [0.0])


if __name__ == "__main__":
    main()
