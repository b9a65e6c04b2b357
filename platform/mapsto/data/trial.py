"""Opening images in a process of its own: a file that crashes its decoder ends that process, and is told by it.

`python -m mapsto.data.trial MAX_PIXELS` says with a byte that it has started, reads images from its standard input, each after its length,
and answers each with a byte.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from contextlib import suppress
from types import TracebackType

from ..core import codecs
from ..core.errors import UserError
from .dicom import is_dicom, to_png

LENGTH = struct.Struct("<q")
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)
"""No decoder raises them; the system does where memory is short, or a person."""


class Trial:
    """Within, a process that opens what it is given; a new one where that crashed."""

    def __init__(self, max_pixels: int) -> None:
        self.command = [sys.executable, "-m", "mapsto.data.trial", str(max_pixels)]
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Trial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def survived(self, data: bytes) -> None:
        """Raises UserError for an image whose decoder crashes. What it makes of any other is not told, nor what it would have made of one
        at which the process was killed from outside."""
        if self.process is None:
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
            assert self.process.stdout is not None
            if not self.process.stdout.read(1) and -(code := self.process.wait()) not in FROM_OUTSIDE:
                raise RuntimeError(f"{' '.join(self.command)}: did not start ({_told(code)})")
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(LENGTH.pack(len(data)) + data)
            self.process.stdin.flush()
        if not self.process.stdout.read(1):
            code = self.process.wait()
            self._end()
            if -code not in FROM_OUTSIDE:
                raise UserError(f"its decoder crashed ({_told(code)})")

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            with suppress(BrokenPipeError):
                self.process.communicate()
            self.process = None


def _told(code: int) -> str:
    return {each.value: each.name for each in signal.Signals}.get(-code, f"exit code {code}")


def main(max_pixels: int) -> None:
    source, answer = sys.stdin.buffer, sys.stdout.buffer
    answer.write(b".")
    answer.flush()
    while head := source.read(LENGTH.size):
        data = source.read(*LENGTH.unpack(head))
        with suppress(Exception):  # whoever opens it next meets it, too: a refusal, or no memory
            codecs.decode(to_png(data, max_pixels) if is_dicom(data) else data, max_pixels)
        answer.write(b".")
        answer.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
