"""A trial of a sweep, without Ray: the state that it hands on, and what its end means for the next run of the sweep."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, ActorUnavailableError

from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.engine.checkpoints import Checkpoints, to_bytes
from mapsto.stages.tune import Tune, places_are_freed
from mapsto.stages.tune_trial import Reports, member_options
from mapsto.stages.tune_trials import Trials

GIVEN: dict[str, Any] = {"epochs": 4, "goals": {"top1": "max"}, "sweep": "s", "pauses": [], "primary": ("top1", "max")}


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


@pytest.mark.parametrize("outside", [True, False])
def test_a_trial_that_failed_for_a_reason_outside_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outside: bool
) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", told.append)
    Reports(GIVEN, {"overrides": {"a": 1}}).fail(UserError("s3://b: no answer", outside=outside))
    said: list[str] = []
    trials = Trials(Artifact(str(tmp_path), Storage()), {"top1": "max"}, said.append, 4)
    mine = trials.of({"trial": {"overrides": {"a": 1}}})
    trials.hear(mine, told[0])
    trials.end(mine)
    again = Trials(trials.artifact, trials.goals, said.append, 4)
    assert [(t.finished, t.state) for t in again.load()] == [(not outside, "interrupted" if outside else "failed")]
    assert said == [f"trial 1  {'was cut off' if outside else 'failed'}: s3://b: no answer"]
    assert again.of({"trial": {"overrides": {"a": 1}}}).number == (1 if outside else 2)


def died(reason: str) -> Exception:
    return ActorDiedError(cause=ActorDiedErrorContext(error_message=reason, actor_id=b"\1" * 16))


@pytest.mark.parametrize(
    ("error", "outside"),
    [
        (died("The actor died because its node has died. Node Id: 1f"), True),
        (ActorUnavailableError("keepalive watchdog timeout", b"\1" * 16), True),
        (died("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"), False),
        (None, False),
    ],
)
def test_a_trial_whose_machine_was_lost_again_is_run_by_the_next_command(
    tmp_path: Path, error: Exception | None, outside: bool
) -> None:
    trials = Trials(Artifact(str(tmp_path), Storage()), {"top1": "max"}, lambda line: None, 4)
    saved = cloudpickle.loads(cloudpickle.dumps(error))  # as Ray Tune hands it on
    trial = SimpleNamespace(trial_id="1", config={"trial": {"overrides": {"a": 1}}}, get_pickled_error=lambda: saved)
    trials.callback().on_trial_error(1, [], trial)
    (mine,) = Trials(trials.artifact, trials.goals, print, 4).load()
    assert mine.state == ("interrupted" if outside else "failed")
    assert mine.failed.startswith("it ended with an error: ")


def test_a_trial_that_was_cut_off_and_is_drawn_again_in_the_same_sweep_is_finished(tmp_path: Path) -> None:
    trials = Trials(Artifact(str(tmp_path), Storage()), {"top1": "max"}, lambda line: None, 4)
    for result in ({"failed": "s3://b: no answer", "outside": True}, {"top1": 0.5, "epoch": 4, "uri": "u"}):
        mine = trials.of({"trial": {"overrides": {"a": 1}}})
        trials.hear(mine, result)
        trials.end(mine)
    assert [(t.number, t.state, t.finished) for t in trials.all()] == [(1, "complete", True)]
    assert not trials.cut


def test_what_lies_outside_is_told_apart_on_every_way(tmp_path: Path) -> None:
    away = Storage(endpoint_url="http://127.0.0.1:9", key="k", secret="s", retries=0)
    with pytest.raises(UserError, match="cannot be reached") as raised:
        away.read("s3://bucket/x")
    assert pickle.loads(pickle.dumps(raised.value)).outside
    with pytest.raises(UserError, match="not found") as raised:
        Storage().read(f"{tmp_path}/x")
    assert not raised.value.outside


def test_a_sweep_with_a_trial_that_was_cut_off_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swept(job: Any, trials: Trials, primary: Any) -> None:
        for number in (1, 2):
            mine = trials.of({"trial": {"overrides": {"a": number}}})
            result = {"top1": 0.5, "epoch": 4, "uri": "u"}
            trials.hear(mine, result if number == 1 else {"failed": "s3://b: no answer", "outside": True})
            trials.end(mine)

    monkeypatch.setattr("mapsto.stages.tune.objectives", lambda job: ({"top1": "max"}, ("top1", "max")))
    monkeypatch.setattr("mapsto.stages.tune.sweep", swept)
    tune = SimpleNamespace(scheduler=SimpleNamespace(kind="none"), epochs=4)
    job: Any = SimpleNamespace(
        recipe=SimpleNamespace(tune=tune), artifact=Artifact(str(tmp_path), Storage()), say=lambda line: None
    )
    with pytest.raises(UserError, match=r"tune: 1 of 2 trials were cut off, .*: s3://b: no answer; the same command"):
        Tune()._run(job)


def test_trials_of_several_workers_need_the_dashboard() -> None:
    places_are_freed(1, None)
    places_are_freed(2, "http://127.0.0.1:8265")
    with pytest.raises(UserError, match=r"tune.workers 2: this cluster's dashboard is off, .* or set tune.workers=1"):
        places_are_freed(2, None)
