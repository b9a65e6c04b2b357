"""What the benchmarks share: a table of figures with their targets, and interleaved repetitions."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figure:
    figure: str
    value: float
    unit: str
    target: float | None
    """None: for information."""
    better: Literal["higher", "lower"]
    peer: str
    """What it is compared with, and how that one was set up."""
    machine: str = ""

    @property
    def reached(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


def machine() -> str:
    """Processor, cores and memory."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux, Python {platform.python_version()}"


def interleaved(
    contestants: Mapping[str, Callable[[], float]], repetitions: int, say: Callable[[str], None] = print
) -> dict[str, list[float]]:
    """Each contestant's values of every repetition, one after the other within a repetition."""
    seen: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(repetitions):
        for name, measure in contestants.items():
            seen[name].append(measure())
            say(f"  {repetition + 1}/{repetitions}  {name}: {seen[name][-1]:.4g}")
    return seen


def ratio(over: list[float], under: list[float]) -> float:
    """The median of the ratios within each repetition."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def told(command: list[str], environment: Mapping[str, str], name: str) -> Any:
    """What a process of its own prints last, as JSON; of the caller's environment it has all but what is Ray's or a store's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))} | dict(environment)
    done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stdout[-2000:]}{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def publish(name: str, figures: list[Figure], settings: str = "") -> None:
    """Print the table and write `results/<name>.json`. `settings`: what was measured, how often and how long."""
    here = machine()
    rows = [asdict(f) | {"machine": here} | ({"settings": settings} if settings else {}) for f in figures]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    print(f"\n{name} on {here}\n")
    width = max(len(f.figure) for f in figures)
    for f in figures:
        sign = {"higher": "≥", "lower": "≤"}[f.better]
        wanted = "" if f.target is None else f"{sign} {f.target:g}"
        verdict = {True: "reached", False: "MISSED", None: ""}[f.reached]
        print(f"{f.figure:<{width}}  {f.value:>9.4g} {f.unit:<6} {wanted:<8} {verdict:<8} {f.peer}")
    sys.stdout.flush()
