"""What a stage says stays in its artifact."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.stage import Job
from mapsto.core.storage import Storage
from mapsto.stages import log
from mapsto.stages.log import logged
from mapsto.stages.train import Train
from mapsto.stages.tune import Tune


def job(folder: Path, said: list[str], *, resume: bool = False) -> Job:
    return Job(None, {}, {}, Artifact(str(folder / "a/train/1"), Storage()), Storage(), resume, {}, said.append)


def test_lines_and_the_error_are_kept_over_a_resume_with_their_times(tmp_path: Path) -> None:
    said: list[str] = []

    def cut_off(first: Job) -> None:
        first.say("train: worker 1 lost (OSError: )")
        first.say("epoch 1/2")
        raise UserError("train: asked to end")

    with pytest.raises(UserError), logged(job(tmp_path, said)) as first:
        cut_off(first)
    with logged(job(tmp_path, said, resume=True)) as second:
        second.say("epoch 2/2")
    lines = (tmp_path / "a/train/1/log.txt").read_text().splitlines()
    assert all(re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\dZ  ", line) for line in lines)
    uri = tmp_path / "a/train/1"
    assert [line[22:] for line in lines] == [
        f"train: making {uri}", *said[:2], "train: asked to end", f"train: resuming {uri}", "epoch 2/2",
    ]  # fmt: skip


def test_many_lines_are_few_writes_and_a_store_that_is_away_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []

    def away(self: Storage, uri: str, data: bytes, sha256: str | None = None) -> None:
        writes.append(len(data))
        raise UserError(f"{uri}: cannot be reached")

    monkeypatch.setattr(Storage, "write", away)
    with logged(job(tmp_path, [])) as told:
        for number in range(1000):
            told.say(f"epoch {number}")
    assert len(writes) == 2


def test_a_line_is_kept_though_no_other_one_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As before an epoch of an hour, in which the command may be killed."""
    monkeypatch.setattr(log, "EVERY_S", 0.2)
    file = tmp_path / "a/train/1/log.txt"
    with logged(job(tmp_path, [])) as told:
        told.say("2 workers train")
        told.say("a worker was lost")
        assert "lost" not in file.read_text()
        deadline = time.monotonic() + 30
        while "lost" not in file.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert file.read_text().endswith("a worker was lost\n")


@pytest.mark.parametrize("stage", [Train(), Tune()])
def test_training_and_tuning_keep_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Any) -> None:
    monkeypatch.setattr(type(stage), "_run", lambda self, job: job.say("told"))
    stage.run(job(tmp_path, []))
    assert (tmp_path / "a/train/1/log.txt").read_text().endswith("Z  told\n")


def test_a_copy_of_who_says_something_keeps_no_lines(tmp_path: Path) -> None:
    """Ray Tune pickles its callbacks."""
    from ray import cloudpickle

    with logged(job(tmp_path, [])) as told:
        told.say("trial 1  epoch 1/2")
        cloudpickle.loads(cloudpickle.dumps(told.say))("elsewhere")
        told.say("trial 1  epoch 2/2")
    text = (tmp_path / "a/train/1/log.txt").read_text()
    assert "epoch 1/2" in text and "epoch 2/2" in text and "elsewhere" not in text
