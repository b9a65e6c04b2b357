"""The choice among a model's variants: the best at the target among those that cost too little to notice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..core.errors import UserError

SMALLER_IS_BETTER = {"latency_p50_ms": True, "size_mb": True, "throughput": False}


@dataclass(frozen=True)
class Row:
    """One variant's line in the table."""

    name: str
    score: float
    """The task's primary metric on `val`."""
    latency_p50_ms: float
    size_mb: float
    throughput: float
    """Rows per second."""


@dataclass(frozen=True)
class Choice:
    name: str
    reason: str


def choose(rows: Sequence[Row], *, primary: str, mode: Literal["max", "min"], max_drop: float, target: str) -> Choice:
    """Pick a variant; the first row is the float model, to which the others are compared.

    `max_drop`: in points (hundredths of the primary metric). A score that is not finite never qualifies. When no other
    variant is both within `max_drop` and better at the target, the float model stays.
    """
    if target not in SMALLER_IS_BETTER:
        raise UserError(f"compress.target.metric: '{target}' is unknown; known: {', '.join(SMALLER_IS_BETTER)}")
    base, sign = rows[0], 1.0 if SMALLER_IS_BETTER[target] else -1.0
    within = [row for row in rows[1:] if drop(base.score, row.score, mode) <= max_drop + 1e-9]
    if not within:
        worst = ", ".join(f"{row.name} loses {drop(base.score, row.score, mode):.2f}" for row in rows[1:])
        losses = f" ({worst})" if worst else ""
        return Choice(
            base.name,
            f"no variant stays within {max_drop:g} points of {base.name}'s {primary}{losses}: {base.name} is kept",
        )
    best = min([base, *within], key=lambda row: sign * getattr(row, target))
    value, was = getattr(best, target), getattr(base, target)
    if best is base:
        return Choice(
            base.name,
            f"{base.name} has the best {target} ({was:.4g}); none of {', '.join(r.name for r in within)} betters it",
        )
    lost = drop(base.score, best.score, mode)
    change = f"loses {lost:.2f} points" if lost > 0 else f"gains {-lost:.2f} points" if lost < 0 else "loses nothing"
    return Choice(
        best.name,
        f"{best.name} has the best {target} ({value:.4g}, {base.name} {was:.4g}) and {change} of {primary} (max_drop {max_drop:g})",
    )


def drop(base: float, score: float, mode: Literal["max", "min"]) -> float:
    """Points (hundredths) that `score` is worse than `base`; infinite when it is not a number."""
    if not (math.isfinite(score) and math.isfinite(base)):
        return math.inf
    return 100.0 * (base - score if mode == "max" else score - base)
