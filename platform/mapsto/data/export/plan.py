"""What every format is handed, and what it owes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .target import Target


@dataclass(frozen=True)
class Plan:
    """One export: where to, and what the data set has."""

    target: Target
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    left_out: Counter[str]
    """What could not be written, or will not be read back → how often."""

    def label(self, row: Mapping[str, Any]) -> str | None:
        """The class name of a row; None without one."""
        number = row.get("label")
        return self.classes[number] if number is not None and number >= 0 else None

    def named(self, row: Mapping[str, Any], column: str = "box_labels") -> list[str]:
        """The class names of a row's boxes, or of its `labels`."""
        return [self.classes[number] for number in row.get(column) or ()]


class Format(Protocol):
    """A layout that rows are written in."""

    keeps: frozenset[str]
    """Columns that it holds."""

    def add(self, split: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write the rows of one row group."""
        ...

    def close(self, split: str) -> None:
        """After a split's last row group."""
        ...

    def finish(self) -> None:
        """After the last split."""
        ...
