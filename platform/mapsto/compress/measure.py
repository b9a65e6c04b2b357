"""Latency of several variants of a model, side by side on the machine at hand."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..core.sample import Arrays

WARMUP = 3
BUDGET_S = 120.0


class Runtime(Protocol):
    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays: ...


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call, and rows per second at the median call."""

    latency_p50_ms: float
    latency_p95_ms: float
    throughput: float
    calls: int


def latencies(
    runtimes: Mapping[str, Runtime], inputs: Mapping[str, np.ndarray], repeats: int, budget_s: float = BUDGET_S
) -> dict[str, Timing]:
    """Time `repeats` calls of each runtime on the same inputs.

    The variants take turns, in an order that rotates: what else the machine does falls on all alike. Very slow models
    stop at `budget_s` seconds over all variants, after at least 5 calls each; `calls` says how many there were.
    """
    names = list(runtimes)
    for runtime in runtimes.values():
        for _ in range(WARMUP):
            runtime.run(inputs)
    taken: dict[str, list[float]] = {name: [] for name in names}
    begun = time.perf_counter()
    for turn in range(repeats):
        if turn >= 5 and time.perf_counter() - begun > budget_s:
            break
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            runtimes[name].run(inputs)
            taken[name].append(1e3 * (time.perf_counter() - start))
    rows = len(next(iter(inputs.values())))
    return {name: _timing(values, rows) for name, values in taken.items()}


def _timing(milliseconds: list[float], rows: int) -> Timing:
    p50, p95 = (float(value) for value in np.percentile(milliseconds, [50, 95]))
    return Timing(p50, p95, 1e3 * rows / p50, len(milliseconds))
