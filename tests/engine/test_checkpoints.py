"""Checkpoints of an artifact: which are kept, which count, and what becomes of damaged ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.engine.checkpoints import Checkpoints, to_bytes


def test_checkpoints_keep_the_newest_and_the_best_and_count_when_done(tmp_path: Path) -> None:
    artifact = Artifact(str(tmp_path / "a"), Storage())
    checkpoints = Checkpoints(artifact, keep=2, mode="max")
    assert checkpoints.newest() is None
    kept = []
    for epoch, score in enumerate([0.5, 0.9, 0.3, float("nan"), 0.6, None], 1):
        state = {"epoch": epoch, "w": torch.full((2,), float(epoch))}
        checkpoints.save(to_bytes(state), epoch, 10 * epoch, score)
        kept.append([done["epoch"] for _, done in checkpoints.complete()])
    assert kept == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [2, 5], [2, 5, 6]]
    (tmp_path / "a/checkpoints/00007-000000070").mkdir()
    (tmp_path / "a/checkpoints/00007-000000070/state.pt").write_bytes(b"cut off")
    assert checkpoints.newest() == "00006-000000060"
    assert checkpoints.load("00006-000000060")["w"].tolist() == [6, 6]


def test_checkpoints_without_a_score_are_kept_by_age(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Artifact(str(tmp_path), Storage()), keep=2, mode="min")
    for epoch in range(1, 5):
        checkpoints.save(to_bytes({}), epoch, epoch, None)
    assert [done["epoch"] for _, done in checkpoints.complete()] == [3, 4]


def test_a_damaged_checkpoint_is_passed_over_and_what_was_left_half_written_goes(tmp_path: Path) -> None:
    artifact = Artifact(str(tmp_path / "a"), Storage())
    checkpoints = Checkpoints(artifact, keep=3, mode="max")
    names = [checkpoints.save(to_bytes({"epoch": epoch}), epoch, epoch, None) for epoch in (1, 2, 3)]
    assert checkpoints.sound() == (names[2], [])
    file = tmp_path / "a/checkpoints" / names[2] / "state.pt"
    whole = file.read_bytes()
    for bad in (whole[:-9], whole[:20] + b"?" + whole[21:]):
        file.write_bytes(bad)
        name, (line,) = checkpoints.sound()
        assert name == names[1] and line.endswith("an older one is taken") and names[2] in line
    half = tmp_path / "a/checkpoints/00002-000000003"
    half.mkdir()
    (half / "state.pt").write_bytes(b"cut off")
    checkpoints.save(whole, 4, 4, None)
    assert not half.exists() and [done["epoch"] for _, done in checkpoints.complete()] == [2, 3, 4]


@pytest.mark.parametrize("damage", ["empty", "cut", "gone"])
def test_a_mark_or_a_state_that_is_damaged_is_passed_over_and_removed_later(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(Artifact(str(tmp_path), Storage()), keep=3, mode="max")
    names = [checkpoints.save(to_bytes({"epoch": epoch}), epoch, epoch, None) for epoch in (1, 2)]
    folder = tmp_path / "checkpoints" / names[1]
    if damage == "gone":
        (folder / "state.pt").unlink()
    else:
        (folder / "done.json").write_text("" if damage == "empty" else '{"epoch": 2, "st')
        assert checkpoints.newest() == names[0]
    name, (line,) = checkpoints.sound()
    why = "its state.pt is missing" if damage == "gone" else "its done.json cannot be read"
    assert name == names[0] and line == f"{folder}: damaged ({why}); an older one is taken"
    checkpoints.save(to_bytes({}), 3, 3, None)
    assert folder.exists() == (damage == "gone")
    assert checkpoints.newest() == "00003-000000003"


def test_a_state_that_was_damaged_on_its_way_is_not_taken(tmp_path: Path) -> None:
    donor = Checkpoints(Artifact(str(tmp_path / "donor"), Storage()), 1, "max")
    mine = Checkpoints(Artifact(str(tmp_path / "mine"), Storage()), 1, "max")
    folder = tmp_path / "handed"
    folder.mkdir()
    donor.give(donor.save(to_bytes({"epoch": 1}), 1, 4, 0.5), folder)
    data = (folder / "state.pt").read_bytes()
    (folder / "state.pt").write_bytes(data[:30] + b"?" + data[31:])
    with pytest.raises(UserError, match=r"after step 4, was damaged on its way .*; run the same command again"):
        mine.take(folder)
    assert mine.newest() is None
