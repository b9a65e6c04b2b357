"""What is left of a cluster when the process that started it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from mapsto.runtime.leftovers import belonging, owned

PROGRAM = """\
import subprocess, sys, time
from mapsto.runtime.leftovers import guard
guard(sys.argv[1])
for ask in ("", "trap '' TERM; "):
    subprocess.Popen(["sh", "-c", ask + "while :; do sleep 1; done"], env={"PROXY": sys.argv[1] + "/proxy"}, start_new_session=True)
print("READY", flush=True)
time.sleep(600)
"""


def test_the_guard_ends_what_a_killed_process_leaves(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    driver = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)], stdout=subprocess.PIPE, start_new_session=True
    )
    assert driver.stdout is not None and driver.stdout.readline() == b"READY\n"
    left = [each for each in belonging(str(folder)) if each.pid != driver.pid]
    assert len(left) >= 3  # the guard, and two that nobody waits for, one of which does not want to end
    assert os.getpid() not in {each.pid for each in belonging(str(Path(sys.executable).parent))}
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive and not folder.exists()


def test_the_guard_ends_with_a_process_that_cleans_up_itself(tmp_path: Path) -> None:
    program = "import sys, os\nfrom mapsto.runtime.leftovers import guard\nwatch = guard(sys.argv[1])\nos.rmdir(sys.argv[1])\nwatch.communicate()\nprint(watch.returncode)"
    (tmp_path / "cluster").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "cluster")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "0\n"


def test_temporary_folders_of_processes_that_have_gone_are_removed_and_no_others(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    begin = owned("train", str(tmp_path))
    assert begin.endswith(f"-{os.getpid()}-")
    mine = Path(tempfile.mkdtemp(prefix=begin, dir=tmp_path))
    left = Path(tempfile.mkdtemp(prefix=begin.replace(f"-{os.getpid()}-", f"-{gone.pid}-"), dir=tmp_path))
    place = begin.split("-")[2]
    elsewhere = left.name.replace(place, "0" * len(place))  # a live one's, it may be, of a machine that shares the disk
    foreign = [
        tmp_path / name for name in (elsewhere, "mapsto-photos-20251105-mine", "mapsto-run-20251105123000-abcdefgh")
    ]
    for folder in foreign:
        folder.mkdir()
    owned("trial", str(tmp_path))
    assert mine.exists() and not left.exists()
    assert all(folder.exists() for folder in foreign)


STARTING = """\
import subprocess, sys, time
from mapsto.runtime.leftovers import guard
guard(sys.argv[1])
subprocess.Popen(["sh", "-c", "env -i sleep 600 & wait"], env={"RAYLET": sys.argv[1], "PATH": "/usr/bin:/bin"}, start_new_session=True)
print("READY", flush=True)
time.sleep(600)
"""


def test_what_a_daemon_started_ends_though_the_daemon_is_gone_first(tmp_path: Path) -> None:
    """Within seconds of the start, as where a command is killed while its cluster comes up."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    driver = subprocess.Popen(
        [sys.executable, "-c", STARTING, str(folder)], stdout=subprocess.PIPE, start_new_session=True
    )
    assert driver.stdout is not None and driver.stdout.readline() == b"READY\n"
    time.sleep(3)
    left = [each for each in belonging(str(folder)) if each.pid != driver.pid]  # the guard, too, which ends last
    (agent,) = [each for each in left if each.name() == "sleep"]
    daemon = agent.parent()
    assert daemon is not None
    daemon.kill()
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive and not folder.exists()
