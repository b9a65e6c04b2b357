"""A file that crashes its decoder is refused with that reason, once the process that opened its chunk was lost."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mapsto.core.codecs import encode
from mapsto.core.errors import UserError
from mapsto.data import shards
from mapsto.data.trial import Trial
from tests.stages.test_ingest import here, run  # noqa: F401  the fixture

CRASHES = """
import os, signal
from mapsto.core import codecs
from mapsto.data import trial
decode = codecs.decode
def crashing(data, most):
    if b"CRASH" in data:
        os.abort()
    if b"EXIT" in data:
        os._exit(3)
    if b"KILL" in data:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"MEMORY" in data:
        raise MemoryError
    return decode(data, most)
codecs.decode = crashing
trial.main(10**8)
"""
"""A decoder that words crash; at others it is killed, or has no memory."""


def picture() -> bytes:
    return encode(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8), "png")


@pytest.fixture
def crashing(monkeypatch):
    def begin(self, max_pixels):
        self.command, self.process = [sys.executable, "-c", CRASHES], None

    monkeypatch.setattr(Trial, "__init__", begin)


def test_each_crash_is_told_and_what_comes_after_it_is_opened(crashing):
    with Trial(10**8) as trial:
        for _ in range(2):
            trial.survived(picture())
            trial.survived(b"no image")  # refused by whoever opens it
            with pytest.raises(UserError, match=r"^its decoder crashed \(SIGABRT\)$"):
                trial.survived(picture() + b"CRASH")
        process = trial.process
        trial.survived(picture())
        assert trial.process is not process and trial.process.poll() is None
    assert trial.process is None


@pytest.mark.parametrize("word", [b"KILL", b"MEMORY"])
def test_short_memory_is_no_crash(crashing, word):
    with Trial(10**8) as trial:
        trial.survived(picture() + word)
        with pytest.raises(UserError, match=r"^its decoder crashed \(exit code 3\)$"):
            trial.survived(picture() + b"EXIT")


def test_a_process_that_does_not_start_refuses_no_image(crashing):
    with Trial(10**8) as trial:
        trial.command = [sys.executable, "-c", "import nothing_of_this_name"]
        with pytest.raises(RuntimeError, match=r"did not start \(exit code 1\)"):
            trial.survived(picture())


def test_the_program_itself_opens_images():
    with Trial(100) as trial:
        for data in (picture(), b"", b"\xff\xd8\xff", picture()[:60]):
            trial.survived(data)
        assert trial.process is not None and trial.process.poll() is None


def test_a_chunk_whose_process_was_lost_twice_is_opened_with_care(here, crashing, tmp_path, monkeypatch):  # noqa: F811
    folder = tmp_path / "images"
    folder.mkdir()
    for name, data in {
        "a.png": picture(),
        "b.png": picture() + b"CRASH",
        "c.png": b"no image",
        "d.png": picture() + b"x",
    }.items():
        (folder / name).write_bytes(data)
    monkeypatch.setattr(shards, "tries", lambda: shards.CAREFUL)
    dataset, done, _ = run(folder, tmp_path / "out", splits={})
    assert (done.metrics["images"], done.metrics["quarantined"]) == (2, 2)
    (file,) = Path(dataset.artifact.path("quarantine")).iterdir()
    reasons = {Path(entry["source"]).name: entry["reason"] for entry in map(json.loads, file.read_text().splitlines())}
    assert reasons["b.png"] == "its decoder crashed (SIGABRT)" and "not an image" in reasons["c.png"]
    monkeypatch.setattr(shards, "tries", lambda: 0)
    assert run(folder, tmp_path / "out2", splits={})[1].metrics["images"] == 3  # nothing is opened twice
