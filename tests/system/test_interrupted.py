"""What a user's machine does to a run: Ctrl-C, a killed command, a full disk. The same command again goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from mapsto.core.codecs import encode
from mapsto.data.scenes import numbered, write
from mapsto.runtime.leftovers import belonging

pytestmark = pytest.mark.system

RECIPE = """\
name: solids
root: {folder}/artifacts
data: {{train: {{source: "{folder}/images"}}}}
task: {{kind: classify, image_size: 64, model: {{name: airbench_tiny}}}}
train: {{epochs: 6, batch_size: 16, workers: 1, cpus_per_worker: 0.5, optimizer: {{kind: adamw, lr: 2.0e-3}}}}
evaluate: {{cpus_per_worker: 0.5}}
compress: {{max_drop: 50, steps: [{{kind: export}}]}}
serve: {{name: solids, cpus_per_replica: 0.5, port: {port}}}
"""

TUNE = """\
tune:
  search: grid
  workers: 1
  epochs: 2
  concurrent: 1
  space: {train.optimizer.lr: {kind: choice, values: [1.0e-3, 2.0e-3, 4.0e-3]}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write(tmp_path / "images", 240, 3, (64, 64))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = tmp_path / "solids.yaml"
    file.write_text(RECIPE.format(folder=tmp_path, port=port))
    return file


def _cmdline(process: psutil.Process) -> list[str]:
    """Ray starts short-lived processes all the time: one that has ended since it was listed has no words."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


class Command:
    """`mapsto VERB RECIPE`, with a private cluster; what it says is in `text()`."""

    def __init__(self, verb: str, recipe: Path, *more: str) -> None:
        self.log = recipe.with_name(f"{verb}-{time.monotonic_ns()}.log")
        # A test's environment may have SIGINT ignored, which children inherit; a user's shell does not.
        program = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from mapsto.cli import main; sys.exit(main())"
        )
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))}
        with self.log.open("wb") as out:
            self.process = psutil.Popen(
                [sys.executable, "-c", program, verb, str(recipe), "--cpus", "2", *more],
                stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True, cwd=recipe.parent,
            )  # fmt: skip

    def text(self) -> str:
        return self.log.read_text()

    def until(self, pattern: str, seconds: float = 180) -> str:
        """What the pattern's group matched, once it is there."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.text(), re.MULTILINE)) is None:
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()
            time.sleep(0.05)
        return found.group(found.re.groups)

    def send(self, kind: signal.Signals) -> int:
        """The exit code; no process and no folder of the command's cluster is left."""
        started = self.process.children(recursive=True)
        words = [word for each in started for word in _cmdline(each)]
        (folder,) = {found.group() for word in words if (found := re.match(r"/tmp/mapsto-\w+", word))}
        assert len(started) > 3
        if kind == signal.SIGINT:
            os.killpg(self.process.pid, kind)  # as a terminal does
        else:
            self.process.send_signal(kind)
        code = self.process.wait(timeout=90)
        _, alive = psutil.wait_procs(started, timeout=30)
        assert not alive, [_cmdline(each) for each in alive]
        assert not belonging(folder) and not Path(folder).exists()
        return code

    def end(self) -> int:
        return self.process.wait(timeout=300)


def test_a_training_stopped_by_ctrl_c_then_killed_goes_on_and_an_endpoint_ends_with_its_command(recipe: Path) -> None:
    first = Command("train", recipe)
    first.until(r"^epoch 1/6")
    assert first.send(signal.SIGINT) == 130
    assert first.text().endswith("interrupted\n")

    second = Command("train", recipe)
    second.until(r"^epoch 3/6")
    assert second.send(signal.SIGKILL) == -signal.SIGKILL
    assert re.search(r"^ingest train: reused", second.text(), re.MULTILINE)
    assert not re.search(r"^epoch 1/6", second.text(), re.MULTILINE)

    third = Command("run", recipe)
    url = third.until(r"^serve: solids answers at (http\S+)")
    assert re.search(r"^train: resuming", third.text(), re.MULTILINE), third.text()
    assert not re.search(r"^epoch [12]/6", third.text(), re.MULTILINE)
    assert re.search(r"^epoch 6/6", third.text(), re.MULTILINE)
    (history,) = (recipe.parent / "artifacts" / "solids" / "train").glob("*/history.jsonl")
    assert [json.loads(line)["epoch"] for line in history.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    third.until(r"^(serving until Ctrl-C)")
    answer = requests.post(url, encode(numbered(5, 0, (64, 64)).image), timeout=30)
    assert answer.json()["predictions"][0]["label"]
    assert third.send(signal.SIGINT) == 130
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=5)


def test_a_sweep_stopped_by_ctrl_c_then_killed_keeps_its_finished_trials(recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + TUNE)
    first = Command("run", recipe)
    first.until(r"^trial 2  (epoch 1)/2")
    assert first.send(signal.SIGINT) == 130
    assert first.text().endswith("interrupted\n") and "tune: done" not in first.text()
    second = Command("run", recipe)
    second.until(r"^trial 3  (epoch 1)/2")
    assert second.send(signal.SIGKILL) == -signal.SIGKILL
    assert re.search(r"^tune: 1 trials finished before, 1 to resume$", second.text(), re.MULTILINE), second.text()
    third = Command("run", recipe)
    third.until(r"^train: making")
    assert third.send(signal.SIGINT) == 130  # also after a sweep
    assert re.search(r"^tune: 2 trials finished before, 1 to resume$", third.text(), re.MULTILINE), third.text()
    assert not re.search(r"^trial [12]  epoch", third.text(), re.MULTILINE)
    (folder,) = (recipe.parent / "artifacts" / "solids" / "tune").glob("*/trials")
    trials = [json.loads(file.read_text()) for file in sorted(folder.iterdir())]
    assert [t["overrides"]["train.optimizer.lr"] for t in trials] == [1e-3, 2e-3, 4e-3]
    assert all(t["finished"] and t["epochs"] == 2 for t in trials)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    root = [] if os.geteuid() == 0 else ["sudo"]
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run([*root, "mount", "-t", "tmpfs", "-o", "size=1m,mode=777", "none", str(folder)], check=True)
    yield folder
    subprocess.run([*root, "umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_nothing_is_lost(recipe: Path, disk: Path) -> None:
    root = [] if os.geteuid() == 0 else ["sudo"]
    recipe.write_text(recipe.read_text().replace(f"root: {recipe.parent}/artifacts", f"root: {disk}/artifacts"))
    full = Command("ingest", recipe)
    assert full.end() == 2, full.text()
    assert re.search(rf"^{disk}/artifacts/solids/ingest/\S+: no space left on the device", full.text().splitlines()[-1])
    assert "Traceback" not in full.text() and not list(disk.rglob("artifact.json"))
    subprocess.run([*root, "mount", "-o", "remount,size=64m", str(disk)], check=True)
    again = Command("ingest", recipe)
    assert again.end() == 0, again.text()
    assert re.search(r"^ingest train: done .*images 240", again.text(), re.MULTILINE), again.text()

    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - 200_000))
    full = Command("train", recipe)
    assert full.end() == 2, full.text()
    assert re.search(r"no space left on the device", full.text().splitlines()[-1]), full.text()
    assert "Traceback" not in full.text()
    ballast.unlink()
    again = Command("train", recipe)
    assert again.end() == 0, again.text()
    (model,) = (disk / "artifacts" / "solids" / "train").iterdir()
    assert (model / "artifact.json").exists()
    assert [json.loads(line)["epoch"] for line in (model / "history.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
