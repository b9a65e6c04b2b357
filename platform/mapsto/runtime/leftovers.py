"""Whose a process is, and its end: Ray's daemons and Serve's proxy outlive, by a minute or for ever, a driver that is killed.

`python leftovers.py FOLDER` is the guard of a private cluster: it waits until its parent has ended and, if
the cluster's folder is still there then, ends what is left of the cluster and removes the folder.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import psutil

Kind = Literal["train", "trial", "state"]
"""What a temporary folder is for."""

GRACE_S = 5.0
LOOK_S = 10.0
"""How often the guard notes which processes are the cluster's."""
EARLY_S, EARLY_LOOK_S = 60.0, 0.5
"""While the cluster starts, it has new ones all the time."""
SETTLED_S = 1.0
"""Age at which a process has its own command, not that of the process it was forked from: it is looked at once more then."""


def belonging(folder: str) -> list[psutil.Process]:
    """The processes that have a cluster's own folder in their command or in the environment they were started with, and all
    that they have started; but not this one. Some write their title over both, so neither alone tells."""
    every = {process.pid: process for process in psutil.process_iter()}
    above: dict[int, int] = {}
    for pid, process in every.items():
        with suppress(psutil.NoSuchProcess):
            above[pid] = process.ppid()
    named = {pid for pid in every if folder.encode() in _words(pid)} - {os.getpid()}
    return [process for pid, process in every.items() if pid != os.getpid() and named.intersection(_line(pid, above))]


def _line(pid: int, above: Mapping[int, int]) -> list[int]:
    """A process and those that it descends from."""
    line = [pid]
    while (pid := above.get(pid, 0)) and pid not in line:
        line.append(pid)
    return line


def _words(pid: int) -> bytes:
    """As they lie in memory: where a title was written over the first of them, psutil sees none."""
    with suppress(OSError):  # gone, or another user's
        return Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def end(processes: Sequence[psutil.Process], first: signal.Signals = signal.SIGTERM, patience_s: float = 10.0) -> None:
    """Ask them to end, and kill those that have not after `patience_s`."""
    for sign, patience in ((first, patience_s), (signal.SIGKILL, GRACE_S)):
        for each in processes:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(sign)
        _, processes = psutil.wait_procs(processes, timeout=patience)


def owned(kind: Kind, where: str | None = None) -> str:
    """How the names of this process's temporary folders in `where` (None: the system's) begin: with whose ids are meant, and
    its own. Those there of processes that have gone, such as a sweep's stopped trials, are removed; what looks otherwise, or is
    of another machine or container, which may live, is left."""
    ours = re.compile(rf"mapsto-(?:{'|'.join(get_args(Kind))})-{_place()}-([0-9]{{1,9}})-[a-z0-9_]{{8}}")
    for old in Path(where or tempfile.gettempdir()).glob("mapsto-*"):
        found = ours.fullmatch(old.name)
        if found and not psutil.pid_exists(int(found[1])):
            shutil.rmtree(old, ignore_errors=True)  # another user's stays
    return f"mapsto-{kind}-{_place()}-{os.getpid()}-"


@cache
def _place() -> str:
    """Where a process id means the same process: on one machine since it was started, in one container; 12 hex digits."""
    try:
        told = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        told = platform.node()
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def guard(folder: str) -> subprocess.Popen[bytes]:
    """Start the guard; its standard input is what tells it of this process's end."""
    return subprocess.Popen(
        [sys.executable, __file__, folder],
        stdin=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},  # not another cluster's
        start_new_session=True,  # Ctrl-C in a terminal is not for it
    )


def main(folder: str) -> None:
    # Ray's agents write their title over command and environment: they are known as the raylet's children alone, and it may be
    # gone first.
    known: dict[int, psutil.Process] = {}
    since: dict[int, float] = {}
    settled: set[int] = set()
    early = time.monotonic() + EARLY_S
    while not select.select([sys.stdin], [], [], EARLY_LOOK_S if (now := time.monotonic()) < early else LOOK_S)[0]:
        since = {pid: since.get(pid, now) for pid in psutil.pids()}
        if not settled.issuperset(since):
            known = {pid: each for pid, each in known.items() if each.is_running()}
            known |= {each.pid: each for each in belonging(folder)}
        settled = {pid for pid, first in since.items() if now - first >= SETTLED_S}
    if not os.path.exists(folder):
        return
    known |= {each.pid: each for each in belonging(folder)}
    end([each for each in known.values() if each.is_running()])
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
