"""What Ray Train is given, without a cluster: how many workers, under which name, and when it gives up."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from mapsto.core.errors import UserError
from mapsto.stages.train import distributed
from mapsto.stages.train_elastic import Leaving, Trainer, Unset
from mapsto.stages.train_watch import Watch
from mapsto.stages.tune_trial import trial

from . import fakes

CONFIG: dict[str, Any] = {"epochs": 1, "batch_size": fakes.BATCH, "workers": 2}


@pytest.mark.parametrize(
    ("nodes", "most", "cpus", "count"),
    [([4], 9, 1, 3), ([4], 2, 1, 2), ([4, 3], 2, 3, 2), ([2, 2], 9, 0.6, 4), ([3, 0.9], 9, 0.9, 2), ([1], 2, 1, 0)],
)
def test_workers_that_come_leave_the_data_its_cpu(nodes: list[float], most: int, cpus: float, count: int) -> None:
    policy = Leaving(ScalingConfig(num_workers=(1, most), resources_per_worker={"CPU": cpus}))
    policy.nodes = lambda: [{"CPU": n} for n in nodes]  # type: ignore[method-assign]
    reserved = {str(k): {"CPU": float(n)} for k, n in enumerate(nodes)}
    assert policy._count_possible_workers(reserved) == count


def test_no_actor_is_started_for_data_sets_that_there_are_none_of() -> None:
    trainer = Trainer(lambda: None, scaling_config=ScalingConfig(num_workers=2))
    kinds = [type(each) for each in trainer._create_default_callbacks()]
    assert kinds.count(Unset) == 1 and DatasetsCallback not in kinds
    (ours,) = [each for each in trainer._create_default_callbacks() if type(each) is Unset]
    assert ours.before_init_train_context([object(), object()]) == {"dataset_shard_provider": [None, None]}


def test_ray_is_given_the_policy_that_leaves_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr(
        DataParallelTrainer, "_initialize_and_run_controller", lambda self, **options: given.append(options["scaling_policy"])
    )  # fmt: skip
    monkeypatch.setattr(DataParallelTrainer, "_create_default_callbacks", lambda self: [])
    for workers in ((1, 2), 2):
        trainer = Trainer(lambda: None, scaling_config=ScalingConfig(num_workers=workers))
        with suppress(AttributeError):  # of the result, which is None
            trainer.fit()
    assert [isinstance(policy, Leaving) for policy in given] == [True, False]


def given(folder: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]) -> Any:
    """What a training hands Ray's trainer."""
    made: list[dict[str, Any]] = []
    trainer = lambda function, **options: made.append(options) or SimpleNamespace(fit=lambda: None)  # noqa: E731
    monkeypatch.setattr("mapsto.stages.train_elastic.Trainer", trainer)
    distributed(fakes.setup(folder, fakes.source, config), lambda record: None, print, look=False)
    return made[0]["run_config"]


def test_a_training_made_anew_at_its_address_does_not_resume_rays_own_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray resumes what it finds under a name, a finished run too, and trains nothing."""
    first, second = (given(tmp_path, monkeypatch, CONFIG) for _ in range(2))
    assert first.storage_path == second.storage_path
    assert first.name != second.name


@pytest.mark.parametrize("config", [CONFIG, {**CONFIG, "most_workers": 3}])
def test_ray_does_not_try_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]) -> None:
    """Ray's own default, -1, starts a controller that fails again and again."""
    failures = given(tmp_path, monkeypatch, config).failure_config
    assert failures.controller_failure_limit >= 0
    assert failures.max_failures == 2


def test_a_trial_does_not_wait_for_what_other_trials_data_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*needed: Any) -> None:
        raise UserError("train needs 3 CPUs, and only 1 of the cluster's 4 are free")

    monkeypatch.setattr("mapsto.runtime.resources.require_cpus", wait)
    with pytest.raises(UserError, match="only 1 of"):
        distributed(fakes.setup(tmp_path, fakes.source, CONFIG), lambda record: None, print)
    given(tmp_path, monkeypatch, CONFIG)


def test_a_trial_looks_for_no_room_and_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Pipeline:
        def __init__(self, recipe: Any, say: Any) -> None:
            seen.append(recipe.train)

        def planned(self, stage: str, options: dict[str, Any]) -> Any:
            return SimpleNamespace(complete=lambda: False, uri="u")

        def produce(self, stage: str, options: dict[str, Any]) -> None:
            seen.append(options)
            raise UserError("far enough")

    recipe = {
        "name": "a", "root": str(tmp_path), "data": {"train": {"source": "/tmp/i"}},
        "task": {"kind": "classify", "image_size": 16, "model": {"name": "airbench"}},
        "train": {"workers": 2, "most_workers": 3, "batch_size": 8},
    }  # fmt: skip
    sweep = {
        "recipe": recipe,
        "epochs": 1,
        "workers": 2,
        "goals": {"top1": "max"},
        "primary": ("top1", "max"),
        "sweep": "",
        "pauses": [],
    }
    monkeypatch.setattr("mapsto.stages.pipeline.Pipeline", Pipeline)
    monkeypatch.setattr("ray.get", lambda reference: sweep)
    monkeypatch.setattr("ray.tune.report", lambda told: None)
    trial({"trial": {"overrides": {}}}, [None])
    train, options = seen
    assert train.range == (2, 2)
    assert options["in_sweep"]


def test_a_worker_that_ran_out_of_memory_is_told_with_the_knob(tmp_path: Path) -> None:
    watch = Watch(str(tmp_path / "lines"))
    watch.after_exception(None, {1: OutOfMemoryError("Task was killed due to the node running low on memory.")})
    watch.after_exception(None, {0: ConnectionError("gone")})
    memory, other = (json.loads(line)["lost"] for line in (tmp_path / "lines").read_text().splitlines())
    assert memory.startswith("worker 1 lost (OutOfMemoryError: ")
    assert memory.endswith("; a smaller train.batch_size or more train.accumulate needs less memory)")
    assert "memory" not in other
