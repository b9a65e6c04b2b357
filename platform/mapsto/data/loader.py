"""Ray Data from a plan to training workers and evaluating actors: microbatches in the plan's order.

One execution spans all epochs that are left, and their evaluations, so that no epoch begins with a stall. Each task
makes a few consecutive blocks, each a row with one or several microbatches of one worker: with `preserve_order` and
`equal=False` Ray's splitter hands them out in turn, and every worker checks that it gets its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.item import Item
from ..core.sample import Batch, Split
from .blocks import Deal, closed, opened
from .execution import calls, clear_errors
from .feed import Feed

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

    from .plan import Plan

TASK_ROWS = 1024
"""Images that one task makes, about: enough that Ray's cost per task (some 5 ms) does not count."""
MOST_PER_TASK = 8
MOST_WOKEN = 64

Share = Callable[[Any], Any]
"""Rank 0's value to all ranks: called by every rank, with None on the others."""


def worker_batches(
    feed: Feed,
    rank: int,
    world: int,
    start: int = 0,
    *,
    share: Share | None = None,
    worker_cpus: float = 0.0,
    worker_gpus: float = 0.0,
    prefetch: int = 2,
) -> Iterator[tuple[Item, Batch]]:
    """A rank's microbatches of a run, from number `start` (`run.start_of`) to its end, with numpy arrays.

    Every rank of the group calls it at once: rank 0 begins the execution and shares the others' ends of it, by
    default through Ray Train's broadcast. The data is on its way when the call returns. `worker_cpus`, `worker_gpus`:
    what one worker of the group holds, data tasks may not count on, and Ray Data does not know of (Ray Train tells it
    by itself what its workers hold). Arrays may be read-only views of shared memory. Iterating raises UserError when a
    row cannot be read, RuntimeError when microbatches arrive out of order.
    """
    import ray

    assert feed.plan is not None, "feed.follow(run) first"
    assert start % world == 0, (start, world)
    count = len(feed.plan) - start
    if count <= 0:
        return iter(())
    mine: Any = None
    if rank == 0:
        mine = _rows(feed, start, world, world * worker_cpus, world * worker_gpus).streaming_split(world, equal=False)
        _wake(feed, count)
    # Broadcasts are meant for a few bytes: a reference crosses, and rank 0 keeps what it refers to.
    held = ray.put(mine) if rank == 0 else None
    ends: Any = mine if world == 1 else ray.get((share or train_broadcast)(held))
    rows = _started(ends[rank].iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch))
    return _in_order(feed.plan, rows, rank, world, start, held)


def _in_order(
    plan: Plan, rows: Iterator[pa.Table], rank: int, world: int, start: int, held: Any
) -> Iterator[tuple[Item, Batch]]:
    """`held` is kept until the end."""
    expected = start + rank
    with clear_errors():
        for row in rows:
            for g, batch in opened(row):
                if g != expected:
                    raise RuntimeError(
                        f"rank {rank} of {world} got microbatch {g} for {expected}: Ray Data lost the plan's order"
                    )
                expected += world
                yield plan.item(g), batch
        if expected < len(plan):
            raise RuntimeError(f"rank {rank} of {world}: the data ended before microbatch {expected} of {len(plan)}")


def _started(rows: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows; the first is being fetched from now on, while the caller builds its model."""
    coming, first = iter(rows), Future()

    def fetch() -> None:
        try:
            first.set_result(next(coming, None))
        except Exception as error:  # noqa: BLE001  # raised where the first row is taken
            first.set_exception(error)

    Thread(target=fetch, name="first-batch", daemon=True).start()

    def all_of_them() -> Iterator[pa.Table]:
        if (row := first.result()) is not None:
            yield row
            yield from coming

    return all_of_them()


def _wake(feed: Feed, count: int) -> None:
    """Let the cluster start and import what data tasks need, on its free CPUs, while the execution's own coordinator
    starts: one after the other they take twice as long."""
    import ray

    free = int(ray.available_resources().get("CPU", 0))
    wake = ray.remote(_woken).options(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")
    once = ray.put(feed)
    for _ in range(min(free, count, MOST_WOKEN)):
        wake.remote(once)


def _woken(_: Feed) -> None:
    """The feed is there, and with it all that its tasks import."""


def evaluation_rows(feed: Feed, split: Split, batch_size: int, workers: int = 1) -> ray.data.Dataset:
    """A split in order, for `workers` actors: `rows.map_batches(Actor, batch_size=1, batch_format="pyarrow")`, with
    `opened(row)` in the actor, whose microbatches all hold `batch_size` rows, the last one padded (`valid`)."""
    following = feed.over(split, batch_size)
    assert following.plan is not None
    return _rows(following, 0, 1, 0, 0, workers)


def _rows(feed: Feed, start: int, world: int, cpus: float, gpus: float, actors: int = 1) -> ray.data.Dataset:
    assert feed.plan is not None
    largest, each = feed.plan.largest, bytes_of(feed)
    rows, size = max(largest.values()), sum(count * each.get(name, 0) for name, count in largest.items())
    # A block's rows lie between its first microbatch and its last, the other workers' among them: within a window.
    near = int(feed.plan.window_rows / (world * rows))
    deal = Deal.of(start, len(feed.plan), world, size if all(each.values()) else 0, actors, _store(), near)
    count = len(deal)
    per_task = int(np.clip(min(TASK_ROWS // (rows * deal.together), count // 8), 1, MOST_PER_TASK))
    return calls(_Blocks(feed, deal, per_task), -(-count // per_task), cpus=cpus, gpus=gpus)


def _store() -> float:
    """Bytes of the smallest node's object store."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return min((found["object_store_memory"] for found in nodes if "object_store_memory" in found), default=0.0)


def bytes_of(feed: Feed) -> dict[str, int]:
    """Stream name → bytes of a sample, about, in the split whose samples are largest: a run's blocks hold both splits. 0:
    unknown."""
    spec = None if feed.task.windows is not None else feed.task.preprocess
    found: dict[str, int] = {}
    for streams in feed.streams.values():
        for name, (stream, _) in streams.items():
            known = spec is not None and stream.beside is not None and found.get(name) != 0
            found[name] = max(found.get(name, 0), 3 * spec.size**2 + stream.beside) if known else 0
    return found


@dataclass(frozen=True)
class _Blocks:
    """Task k's blocks, each made as it is asked for."""

    feed: Feed
    deal: Deal
    per_task: int

    def __call__(self, k: int) -> Iterator[pa.Table]:
        for block in self._of(k):
            yield closed((g, self.feed.batch(g)) for g in self.deal.numbers(block))

    def named(self, k: int) -> str:
        made = [g for block in self._of(k) for g in self.deal.numbers(block)]
        return f"microbatches {min(made)} to {max(made)}"

    def _of(self, k: int) -> range:
        return range(k * self.per_task, min((k + 1) * self.per_task, len(self.deal)))


def train_broadcast(value: Any) -> Any:
    """Rank 0's value on every rank of Ray Train's group. Boxed: a bare object reference would arrive as its object."""
    from ray.train.collective import broadcast_from_rank_zero

    return broadcast_from_rank_zero([value])[0]
