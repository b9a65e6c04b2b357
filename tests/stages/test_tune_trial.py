"""A trial of a sweep, without Ray: the state that it hands on, and what its end means for the next run of the sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.engine.checkpoints import Checkpoints, to_bytes
from mapsto.stages.tune_trial import Reports, member_options

GIVEN: dict[str, Any] = {"epochs": 4, "goals": {"top1": "max"}, "sweep": "s", "primary": ("top1", "max")}


def checkpoints(folder: Path) -> Checkpoints:
    saved = Checkpoints(Artifact(str(folder / "member"), Storage()), 3, "max")
    for epoch in (1, 2):
        saved.save(to_bytes({"epoch": epoch}), epoch, epoch, None)
    file = folder / "member/checkpoints/00002-000000002/state.pt"
    file.write_bytes(file.read_bytes()[:-9])
    return saved


def test_a_member_hands_on_no_damaged_state(tmp_path: Path) -> None:
    reports = Reports(GIVEN, {"overrides": {}})
    reports.artifact, reports.reported = checkpoints(tmp_path).artifact, 2
    with pytest.raises(UserError, match=r"the state after epoch 2 is none to hand on: .*00002-000000002: damaged"):
        reports._state(tmp_path)


def test_a_member_goes_on_from_its_newest_sound_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.tune.get_checkpoint", lambda: None)
    at = checkpoints(tmp_path).artifact.uri
    recipe: Any = type("R", (), {"storage": type("S", (), {"open": lambda self: Storage()})()})
    options = member_options("s", {"member": 1, "at": at}, recipe, tmp_path)
    mine = Checkpoints(Artifact(str(tmp_path / "mine"), Storage()), 1, "max")
    mine.take(Path(options["state"]))
    assert mine.newest() == "00001-000000001"
