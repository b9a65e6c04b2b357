"""How well an epoch is shuffled: the loader's order (row groups permuted, rows permuted within a window of 256 MiB) beside
a full shuffle of the same rows. `make bench NAME=shuffle`

Rows are as ImageNet's (1,281,167 of 110 kB, 8 MiB to a row group), stored sorted by class: the worst case. Ingest mixes
whole objects before it stores them, so there only archives that are sorted by class inside come near it. Environment: ROWS, EPOCHS (4), BATCH (256), WINDOWS (MiB, comma-separated). No file is read.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

import numpy as np

from mapsto.data.order import StreamPlan, order

from ._common import Figure, publish

ROWS = int(os.environ.get("ROWS", "1281167"))
EPOCHS = int(os.environ.get("EPOCHS", "4"))
BATCH = int(os.environ.get("BATCH", "256"))
WINDOWS = [int(size) for size in os.environ.get("WINDOWS", "64,256,1024").split(",")]
ROW_BYTES, GROUP_ROWS, CLASSES = 110_000, 76, 1000
DEFAULT = 256


@dataclass(frozen=True)
class Shuffle:
    """What an order of n rows keeps of the stored one; in brackets, what a full shuffle gives."""

    correlation: float
    """Of a row's place in the epoch with its stored place: 1 in stored order [0 ± 1/√n]."""
    displacement: float
    """Mean way from the stored place, as a share of n: 0 in stored order [1/3]."""
    neighbours: float
    """Correlation of a row's stored place with the next row's: 1 in stored order [0 ± 1/√n]."""
    spread: float
    """Standard deviation of the stored places in a batch, over that of all places [nearly 1]."""
    classes: float
    """Different classes in a batch, stored in order of class."""


def measure(rows: np.ndarray, batch: int = BATCH, classes: int = CLASSES) -> Shuffle:
    """The measures of an epoch's order: a permutation of 0..n-1, the stored places."""
    n = len(rows)
    batches = rows[: n // batch * batch].reshape(-1, batch)
    labels = np.sort(batches * classes // n, 1)
    return Shuffle(
        float(np.corrcoef(np.arange(n), rows)[0, 1]),
        float(np.abs(np.arange(n) - rows).mean() / n),
        float(np.corrcoef(rows[:-1], rows[1:])[0, 1]),
        float(np.sqrt(batches.var(1, ddof=1).mean()) / rows.std()),
        float((1 + (np.diff(labels, axis=1) > 0).sum(1)).mean()),
    )


def epochs_of(plan: StreamPlan) -> list[Shuffle]:
    return [measure(order(plan, 0, epoch).rows(0, plan.length)) for epoch in range(EPOCHS)]


def mean(found: list[Shuffle]) -> dict[str, float]:
    """Over epochs; of correlations the mean absolute value, which chance does not cancel."""
    return {name: float(np.mean([abs(asdict(each)[name]) for each in found])) for name in asdict(found[0])}


def main() -> None:
    groups = np.full(-(-ROWS // GROUP_ROWS), GROUP_ROWS)
    groups[-1] -= groups.sum() - ROWS
    full = mean([measure(np.random.default_rng(epoch).permutation(ROWS)) for epoch in range(EPOCHS)])
    figures = []
    for size in WINDOWS:
        plan = StreamPlan("", groups, ROWS * ROW_BYTES, window_bytes=size * 2**20)
        for name, value in mean(epochs_of(plan)).items():
            lower = name in ("correlation", "neighbours")
            target = {"correlation": 0.01, "spread": 0.95}.get(name)
            figures.append(
                Figure(
                    f"{name}, window of {size} MiB",
                    value,
                    "",
                    target if size == DEFAULT else None,
                    "lower" if lower else "higher",
                    f"full shuffle {full[name]:.4g}",
                )
            )
    publish("shuffle", figures)


if __name__ == "__main__":
    main()
