"""A run's items as the loop takes them, with the time it waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from ..core.item import Item
from ..core.sample import Batch


class Ended(RuntimeError):
    """There is no next item."""


class Timed:
    """An iterator that adds up the seconds spent waiting for the next item, and lets one look at it. `stage`: what begins to
    bring training batches to the device as they are taken (`batches.stager`)."""

    def __init__(self, items: Iterable[tuple[Item, Batch]], stage: Callable[[Batch], Batch] | None = None) -> None:
        self.items: Iterator[tuple[Item, Batch]] = iter(items)
        self.stage = stage
        self.waited = 0.0
        self.ahead: tuple[Item, Batch] | None = None

    def peek(self) -> tuple[Item, Batch]:
        if self.ahead is None:
            self.ahead = self.next()
        return self.ahead

    def next(self) -> tuple[Item, Batch]:
        if self.ahead is not None:
            found, self.ahead = self.ahead, None
            return found
        start = time.perf_counter()
        try:
            item, batch = next(self.items)
        except StopIteration:
            raise Ended("the data ended before the run did: the loader and the engine disagree") from None
        finally:
            self.waited += time.perf_counter() - start
        return item, self.stage(batch) if self.stage and item.split == "train" else batch

    def stage_next(self, item: Item) -> None:
        """Once the device has `item` to compute: begin to bring it the next one of the epoch, where batches are staged."""
        if self.stage and not item.ends_epoch:
            self.peek()

    def close(self) -> None:
        """End the source where it can be told to: what is left of it is not wanted."""
        close = getattr(self.items, "close", None)
        if close is not None:
            close()
