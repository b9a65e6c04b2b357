"""How Ray Data's blocks are dealt to the workers: every row, whatever their numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mapsto.data import loader


class Blocks:
    """A data set of microbatches, split as Ray does: in turn, or `equal`, which drops what would make one share larger."""

    def __init__(self, count: int) -> None:
        self.count = count

    def streaming_split(self, n: int, *, equal: bool) -> list[Any]:
        kept = self.count - self.count % n if equal else self.count
        shares = [list(range(rank, kept, n)) for rank in range(n)]
        return [SimpleNamespace(iter_batches=lambda share=share, **options: iter(share)) for share in shares]


@pytest.mark.parametrize(("count", "world"), [(7, 2), (8, 3), (6, 2)])
def test_unequal_shares_lose_no_row(monkeypatch: pytest.MonkeyPatch, count: int, world: int) -> None:
    """Ray Train's own split has `equal=True`, and lost up to world - 1 rows, of an evaluation too."""
    monkeypatch.setattr(loader, "_rows", lambda *given: Blocks(count))
    monkeypatch.setattr(loader, "_wake", lambda *given: None)
    monkeypatch.setattr(loader, "opened", lambda row: [(row, {})])
    monkeypatch.setattr("ray.put", lambda value: value)
    monkeypatch.setattr("ray.get", lambda value: value)
    items = [f"item {g}" for g in range(count)]
    plan = type("Plan", (), {"item": lambda self, g: items[g], "__len__": lambda self: count})()
    feed: Any = SimpleNamespace(plan=plan)
    held: list[Any] = []

    def share(value: Any) -> Any:
        held.append(value) if value is not None else None
        return held[0]

    found = [item for rank in range(world) for item, _ in loader.worker_batches(feed, rank, world, share=share)]
    assert sorted(found) == sorted(items)
