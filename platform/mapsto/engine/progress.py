"""An epoch's sums so far: what a record is made of, and what a checkpoint in mid-epoch holds."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from .phases import Sums


def forget_held() -> None:
    """Let `held` tell of what comes: an actor that trains one trial after the other would tell the largest one's each time."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # where the system does not let it, the peak stays the process's
        Path("/proc/self/clear_refs").write_text("5")


def held() -> float:
    """The most bytes that were held since `forget_held`: of the GPU by torch's allocator, else of the process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0  # KiB, on Linux


class Tally:
    """A phase's sums over its steps."""

    def __init__(self) -> None:
        self.count, self.rows, self.sums = 0.0, 0, dict[str, float]()

    def add(self, step: Sums) -> None:
        self.count += step.count
        self.rows += step.rows
        for name, value in step.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: value / max(self.count, 1.0) for name, value in self.sums.items()}


class Progress:
    """`phases`: names of the run's phases."""

    def __init__(self, phases: Sequence[str]) -> None:
        self.tallies = {name: Tally() for name in phases}
        self.steps = 0
        self.seconds = self.waited = 0.0

    def record(self) -> dict[str, float]:
        """`train/*` (with a phase's name where there are several), `images_per_s`, `data_wait`, `step_seconds`, `seconds`,
        `memory_mb` (the most that rank 0 held in this run so far: of the GPU, or of the process)."""
        found: dict[str, float] = {}
        for phase, tally in self.tallies.items():
            prefix = "train/" if len(self.tallies) == 1 else f"train/{phase}/"
            found |= {prefix + name: value for name, value in tally.means().items()}
        rows = max((tally.rows for tally in self.tallies.values()), default=0)
        return found | {
            "images_per_s": rows / self.seconds,
            "data_wait": min(1.0, self.waited / self.seconds),
            "step_seconds": self.seconds / max(self.steps, 1),
            "seconds": self.seconds,
            "memory_mb": held() / 1e6,
        }

    def state(self) -> dict[str, Any]:
        tallies = {name: {"count": t.count, "rows": t.rows, "sums": t.sums} for name, t in self.tallies.items()}
        return {"steps": self.steps, "seconds": self.seconds, "waited": self.waited, "tallies": tallies}

    def load(self, state: Mapping[str, Any]) -> None:
        self.steps, self.seconds, self.waited = state["steps"], state["seconds"], state["waited"]
        for name, saved in state["tallies"].items():
            tally = self.tallies[name]
            tally.count, tally.rows, tally.sums = saved["count"], saved["rows"], dict(saved["sums"])
