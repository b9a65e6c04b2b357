"""Ray Data from a plan to training workers and evaluating actors: one row is one microbatch, in the plan's order.

One execution spans all epochs that are left, and their evaluations, so that no epoch begins with a stall. Each task
makes a few consecutive microbatches, each a block of its own: with `preserve_order` and `equal=False` Ray's splitter
then hands blocks out in turn, and every worker checks that it gets its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.item import Item
from ..core.sample import Batch, Split
from .execution import clear_errors, data_context
from .feed import NUMBER, Feed

if TYPE_CHECKING:
    import ray.data

log = logging.getLogger("mapsto.loader")
TASK_ROWS = 1024
"""Images that one task makes, about: enough that Ray's cost per task (some 5 ms) does not count."""
MOST_PER_TASK = 8

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
    default through Ray Train's broadcast. `worker_cpus`, `worker_gpus`: what one worker of the group holds, data tasks
    may not count on, and Ray Data does not know of (Ray Train tells it by itself what its workers hold). Arrays may be
    read-only views of shared memory. Raises UserError when a row cannot be read, RuntimeError when microbatches arrive
    out of order.
    """
    import ray

    plan = feed.plan
    assert plan is not None, "feed.follow(run) first"
    assert start % world == 0, (start, world)
    count = len(plan) - start
    if count <= 0:
        return
    mine: Any = None
    if rank == 0:
        mine = _rows(feed, start, count, world * worker_cpus, world * worker_gpus).streaming_split(world, equal=False)
    # Broadcasts are meant for a few bytes: a reference crosses, and rank 0 keeps what it refers to.
    held = ray.put(mine) if rank == 0 else None
    ends: Any = mine if world == 1 else ray.get((share or _train_broadcast)(held))
    with clear_errors():
        expected = start + rank
        for columns in ends[rank].iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=prefetch):
            g, batch = opened(columns)
            if g != expected:
                raise RuntimeError(
                    f"rank {rank} of {world} got microbatch {g} for {expected}: Ray Data lost the plan's order"
                )
            expected += world
            yield plan.item(g), batch
        if expected < start + count:
            raise RuntimeError(
                f"rank {rank} of {world}: the data ended before microbatch {expected} of {start + count}"
            )


def evaluation_rows(feed: Feed, split: Split, batch_size: int) -> ray.data.Dataset:
    """A split in order as rows of one microbatch each: `rows.map_batches(Actor, batch_size=1)`, with `opened(columns)`
    in the actor. All hold `batch_size` rows, the last one padded (`valid`)."""
    following = feed.over(split, batch_size)
    assert following.plan is not None
    return _rows(following, 0, len(following.plan), 0, 0)


def opened(columns: dict[str, np.ndarray]) -> tuple[int, Batch]:
    """One row of Ray Data's, in numpy format → (microbatch number, batch)."""
    return int(columns[NUMBER][0]), {name: value[0] for name, value in columns.items() if name != NUMBER}


def _rows(feed: Feed, start: int, count: int, cpus: float, gpus: float) -> ray.data.Dataset:
    import ray.data
    from ray.data import DataContext

    context = data_context(cpus, gpus)
    assert feed.plan is not None
    rows = max(len(draws) for draws in feed.plan.draws(start).values())
    per_task = int(np.clip(TASK_ROWS // rows, 1, MOST_PER_TASK))
    tasks = min(count, max(-(-count // per_task), 8))
    with DataContext.current(context):
        numbers = ray.data.range(count, override_num_blocks=tasks)
        return numbers.map_batches(_From(feed, start), batch_size=None, num_cpus=1, zero_copy_batch=True)


class _From:
    """The feed, counted from `start`."""

    def __init__(self, feed: Feed, start: int) -> None:
        self.feed, self.start = feed, start

    def __call__(self, numbers: Any) -> Iterator[dict[str, np.ndarray]]:
        made = numbers["id"] + self.start
        if tries := _tries():
            log.warning(
                "microbatches %d to %d again, try %d: the worker or the node that made them was lost",
                made[0], made[-1], tries + 1,
            )  # fmt: skip
        return self.feed({"id": made})


def _tries() -> int:
    """How often Ray ran this task before."""
    from ray._private import worker

    here: Any = worker.global_worker  # its core worker is there once Ray runs
    return here.core_worker.get_current_task_attempt_number()


def _train_broadcast(value: Any) -> Any:
    from ray.train.collective import broadcast_from_rank_zero

    return broadcast_from_rank_zero(value)
