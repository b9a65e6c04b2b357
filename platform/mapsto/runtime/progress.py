"""What the person who waits sees: lines, and bars on a terminal only."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_quiet = False
_bars = 0
"""Now on the terminal."""
EVERY_S = 15.0  # between the plain lines of a long loop in a log


def configure(*, quiet: bool) -> None:
    """Silence `say` and `bar` for this process (`--quiet`)."""
    global _quiet
    _quiet = quiet


def say(line: str) -> None:
    """One line on standard output, at once; above a bar where there is one."""
    if _quiet:
        return
    if _bars:
        from tqdm import tqdm

        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    else:
        print(line, flush=True)


def bar(items: Iterable[T], what: str, total: int | None = None, *, lines: bool = True) -> Generator[T]:
    """The same items; shows a bar on a terminal, and in a log a line every 15 seconds and at the end of a long loop.

    `lines=False`: nothing in a log, for a loop that says each of its items anyway.
    """
    if sys.stderr.isatty() and not _quiet:
        yield from _shown(items, what, total)
    elif lines and not _quiet:
        yield from _lines(items, what, total)
    else:
        yield from items


def _shown(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    global _bars
    from tqdm import tqdm

    _bars += 1
    try:
        yield from tqdm(items, desc=what, total=total, leave=False, mininterval=0.5)
    finally:
        _bars -= 1


def _lines(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    of = f" of {total}" if total else ""
    said = start = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - said >= EVERY_S:
            say(f"{what}: {done}{of}, {done / (now - start):.1f}/s")
            said = now
    if said != start:
        say(f"{what}: {done}{of}, done in {time.monotonic() - start:.0f} s")
