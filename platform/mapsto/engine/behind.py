"""Writing behind training's back: one write at a time, and none forgotten."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ..core.errors import UserError


class Behind:
    """Runs writes in a thread, in order. A second one waits for the first: what is held in memory stays bounded.

    A write that fails for a reason outside (a full disk, a store that stays away) does not end the run: it is told.
    Anything else that it raises is raised by the next call.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "mapsto-behind")
        self._running: tuple[str, Future[None]] | None = None
        self._told: list[str] = []

    def start(self, what: str, write: Callable[[], None]) -> None:
        """Begin a write, once the one before has ended; `what` names it where it fails."""
        self.wait()
        self._running = what, self._thread.submit(write)

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._running is None:
            return
        (what, future), self._running = self._running, None
        try:
            future.result()
        except UserError as error:
            self._told.append(f"{what} was not written: {error}")

    def told(self) -> list[str]:
        """What failed since this was last asked, a line each."""
        if self._running is not None and self._running[1].done():
            self.wait()
        lines, self._told = self._told, []
        return lines
