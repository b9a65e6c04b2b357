"""What a stage says, in its artifact too: `log.txt`, a line with its UTC time each."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.stage import Job

NAME = "log.txt"
EVERY_S = 5.0
"""Between two writes, at least: an object store knows no appending."""
log = logging.getLogger("mapsto.log")


class Log:
    """The lines of all runs of an artifact, an interrupted one's first. A line is in the artifact `EVERY_S` seconds later, whether
    another one comes or not."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        there = artifact.storage.exists(artifact.path(NAME))
        self.text = artifact.read(NAME).decode(errors="replace") if there else ""
        self.written = float("-inf")
        self.lock = threading.RLock()
        self.later: threading.Timer | None = None

    def __reduce__(self) -> tuple[type[_Nowhere], tuple[()]]:
        """Ray Tune writes down what it is given, and who says something with it. A copy keeps no lines: two would overwrite
        each other's."""
        return _Nowhere, ()

    def add(self, line: str) -> None:
        with self.lock:
            self.text += f"{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ}  {line}\n"
            left = EVERY_S - (time.monotonic() - self.written)
            if left <= 0:
                self.write()
            elif self.later is None:
                self.later = threading.Timer(left, self._late)
                self.later.daemon = True
                self.later.start()

    def _late(self) -> None:
        with self.lock:
            if self.later is not None:  # else somebody has written meanwhile
                self.write()

    def write(self) -> None:
        """A store that is away costs no run: the next write has all lines."""
        with self.lock:
            if self.later is not None:
                self.later.cancel()
                self.later = None
            try:
                self.artifact.write(self.text.encode(), NAME)
            except UserError as error:
                log.warning("%s was not written: %s", NAME, error)
            self.written = time.monotonic()


class _Nowhere:
    def add(self, line: str) -> None: ...


@contextmanager
def logged(job: Job) -> Generator[Job]:
    """The job, whose lines and whose error are kept."""
    kept = Log(job.artifact)
    kept.add(f"{job.artifact.stage}: {'resuming' if job.resume else 'making'} {job.artifact.uri}")

    def say(line: str) -> None:
        job.say(line)
        kept.add(line)

    try:
        yield replace(job, say=say)
    except BaseException as error:
        kept.add(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        raise
    finally:
        kept.write()
