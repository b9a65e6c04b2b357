"""A run's items as the loop takes them, with the time it waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..core.item import Item
from ..core.sample import Batch

if TYPE_CHECKING:
    import torch

    from .batches import Stager


class Ended(RuntimeError):
    """There is no next item."""


class Timed:
    """An iterator that adds up the seconds spent waiting for the next item, and lets one look at it. `stager`: what brings
    training batches to a GPU while it computes (`batches.stager`); of the waiting meanwhile only what left it idle counts."""

    def __init__(self, items: Iterable[tuple[Item, Batch]], stager: Stager | None = None) -> None:
        self.items: Iterator[tuple[Item, Batch]] = iter(items)
        self.stager = stager
        self.waited = 0.0
        """Seconds, since they were last taken."""
        self.ahead: tuple[Item, Batch] | None = None
        self.taken: Item | None = None
        """The last item that `next` gave."""
        self._beside: list[tuple[float, torch.cuda.Event, torch.cuda.Event]] = []
        """Waits that the device had something to compute in: the host's seconds, and a mark before and after."""

    def peek(self) -> tuple[Item, Batch]:
        if self.ahead is None:
            start = time.perf_counter()
            try:
                self.ahead = next(self.items)
            except StopIteration:
                raise Ended("the data ended before the run did: the loader and the engine disagree") from None
            finally:
                self.waited += time.perf_counter() - start
        return self.ahead

    def next(self) -> tuple[Item, Batch]:
        found, self.ahead = self.peek(), None
        self.taken = found[0]
        return found

    def staged(self, batch: Batch) -> Batch:
        """On its way to the device, where batches are staged."""
        return self.stager.staged(batch) if self.stager else batch

    def stage_next(self, item: Item) -> None:
        """Once the device has `item` to compute: begin to bring it the next one of the epoch, where batches are staged and none
        but `item` was taken last."""
        if not self.stager or item is not self.taken or item.ends_epoch or self.ahead:
            return
        before, waited = self.stager.mark(), self.waited
        found, batch = self.peek()
        self._beside.append((self.waited - waited, before, self.stager.mark()))
        self.waited = waited
        self.ahead = found, self.stager.staged(batch)

    def take_waited(self) -> float:
        """Seconds waited since this was last asked, at a time when the device has been waited for since the last `stage_next`."""
        idle = sum(min(wait, before.elapsed_time(after) / 1000) for wait, before, after in self._beside)
        waited, self.waited = self.waited + idle, 0.0
        self._beside.clear()
        return waited

    def close(self) -> None:
        """End the source where it can be told to: what is left of it is not wanted."""
        close = getattr(self.items, "close", None)
        if close is not None:
            close()
