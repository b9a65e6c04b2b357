"""Train: resumed after a killed driver and a killed worker, errors as one line, and what a finished artifact holds."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from mapsto.config.schema import TrainConfig
from mapsto.core.errors import UserError
from mapsto.stages.train import HOW, alone, distributed, source
from mapsto.stages.train_page import line
from mapsto.stages.train_watch import Watch, follow
from mapsto.stages.train_worker import under_ray
from tests.gloo import two

from . import fakes

CONFIG: dict[str, Any] = {
    "epochs": 4, "batch_size": fakes.BATCH, "optimizer": {"lr": 0.05}, "ema": 0.9, "threads": 1, "cpus_per_worker": 0.5
}  # fmt: skip
PAIR = {**CONFIG, "workers": 2}


def history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(text) for text in (folder / "history.jsonl").read_text().splitlines()]


def taken(folder: Path, rank: int) -> list[tuple[int, str]]:
    """(epoch, rows) of every step that a rank took, in order."""
    lines = [text.split() for text in (folder / "taken" / str(rank)).read_text().splitlines()]
    return [(int(epoch), rows) for _, epoch, rows in lines]


def same_weights(one: Path, other: Path) -> None:
    mine, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert (mine[name] == theirs[name]).all(), name


def test_a_killed_driver_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    alone(fakes.setup(whole, fakes.source, CONFIG), lambda record: None)
    told: list[float] = []
    setup = fakes.setup(cut, fakes.cut_off, CONFIG)
    with pytest.raises(ConnectionError):
        alone(setup, lambda record: told.append(record["epoch"]))
    assert [r["epoch"] for r in history(cut)] == [1, 2]
    alone(setup, lambda record: told.append(record["epoch"]))
    assert told == [1, 2, 3, 4]
    assert [r["train/loss"] for r in history(cut)] == [r["train/loss"] for r in history(whole)]
    same_weights(whole, cut)
    assert len(list((cut / "checkpoints").iterdir())) <= 3  # the two newest and the best
    alone(setup, lambda record: pytest.fail("a finished run trained again"))


def test_tensorboard_reads_the_history(tmp_path: Path) -> None:
    alone(fakes.setup(tmp_path, fakes.source, {**CONFIG, "epochs": 2}), lambda record: None)
    (file,) = (tmp_path / "tensorboard").iterdir()
    read = [(e.step, v.tag, v.tensor.float_val[0]) for e in EventFileLoader(str(file)).Load() for v in e.summary.value]
    expected = [(r["step"], "val/top1", r["val/top1"]) for r in history(tmp_path)]
    assert [each for each in read if each[1] == "val/top1"] == [pytest.approx(each) for each in expected]


def test_the_line_of_an_epoch() -> None:
    record = {
        "epoch": 3.0,
        "train/loss": 1.2345,
        "val/top1": 0.8125,
        "val/f1": 0.7,
        "images_per_s": 1234.0,
        "data_wait": 0.04,
    }
    assert line(record, 10, "top1") == "epoch 3/10  loss 1.234  top1 0.8125  1,234 img/s  data wait 4 %"


def test_how_a_run_is_run_is_no_part_of_its_address() -> None:
    assert set(HOW) < set(TrainConfig.model_fields)


@pytest.mark.parametrize(("counted", "cpus"), [(False, 0.5), (True, 0.0)])
def test_what_ray_train_counts_is_not_counted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: bool, cpus: float
) -> None:
    asked: dict[str, Any] = {}
    feed = SimpleNamespace(streams={"train": None}, follow=lambda run: None)
    run = SimpleNamespace(start_of=lambda *_: 0, steps_per_epoch=1)
    monkeypatch.setattr("mapsto.data.feed.Feed.of", lambda *_: feed)
    monkeypatch.setattr("mapsto.data.plan.Run.of", lambda *_: run)
    monkeypatch.setattr("mapsto.data.loader.worker_batches", lambda *_, **options: asked.update(options) or iter(()))
    setup = replace(fakes.setup(tmp_path, source, PAIR), counted=counted)
    source(setup, SimpleNamespace(rank=0, size=2), lambda value: value, 0, 0)  # type: ignore[arg-type]
    assert asked["worker_cpus"] == cpus


@pytest.fixture
def by_value(cluster: str) -> Any:
    """The workers cannot import the tests: send the fakes themselves."""
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(fakes)
    yield
    ray.cloudpickle.unregister_pickle_by_value(fakes)


def test_a_killed_worker_is_survived_with_no_row_lost_or_repeated(tmp_path: Path, by_value: None) -> None:
    disturbed, whole = tmp_path / "disturbed", tmp_path / "whole"

    def kill() -> None:
        held = disturbed / "held"
        while not held.exists() or not held.read_text():
            time.sleep(0.1)
        os.kill(int(held.read_text()), signal.SIGKILL)
        two("tests.stages.pair", str(whole), json.dumps(PAIR))  # while Ray finds out and starts again

    beside = threading.Thread(target=kill, daemon=True)
    beside.start()
    said: list[str] = []
    told: list[float] = []
    distributed(fakes.setup(disturbed, fakes.slow, PAIR), lambda record: told.append(record["epoch"]), said.append)
    beside.join()
    assert len(said) == 1
    assert said[0].startswith("train: worker")
    assert [r["epoch"] for r in history(disturbed)] == [1, 2, 3, 4]
    assert set(told) - {2} == {1, 3, 4}  # what a worker reports just before it is killed may not be heard
    same_weights(disturbed, whole)
    for rank in range(2):
        steps = taken(disturbed, rank)
        again = next(i for i in range(8, len(steps)) if i > 8 and steps[i] == steps[8])  # epoch 2 begins anew
        assert steps[:8] + steps[again:] == taken(whole, rank)
    assert not (disturbed / "ray").exists()


def test_sigterm_lets_the_workers_save_before_they_leave(tmp_path: Path, by_value: None) -> None:
    disturbed, whole = tmp_path / "disturbed", tmp_path / "whole"

    def term() -> None:
        while not (disturbed / "held").exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        two("tests.stages.pair", str(whole), json.dumps(PAIR))

    beside = threading.Thread(target=term, daemon=True)
    beside.start()
    setup = fakes.setup(disturbed, fakes.patient, PAIR)
    with pytest.raises(
        UserError, match=r"asked to end; saved after step (9|10|11) \(epoch 3\), and the same command"
    ) as told:
        distributed(setup, lambda record: None, print)
    assert told.value.code == 143
    distributed(setup, lambda record: None, print)
    beside.join()
    same_weights(disturbed, whole)
    for rank in range(2):
        assert [rows for _, rows in taken(disturbed, rank)] == [
            rows for _, rows in taken(whole, rank)
        ]  # each step once


def test_as_many_workers_as_there_is_room_for(tmp_path: Path, by_value: None) -> None:
    distributed(
        fakes.setup(tmp_path, fakes.counting, {**CONFIG, "epochs": 1, "most_workers": 2}), lambda record: None, print
    )
    assert (tmp_path / "size").read_text() == "2"
    with pytest.raises(ValueError, match="most_workers 1 is less than workers 2"):
        TrainConfig(workers=2, most_workers=1)


def test_a_workers_user_error_is_the_drivers_at_once(tmp_path: Path, by_value: None) -> None:
    said: list[str] = []
    with pytest.raises(UserError, match=r"^s3://bucket/x: access refused$"):
        distributed(fakes.setup(tmp_path, fakes.refused, PAIR), lambda record: None, said.append)
    assert said == []  # not retried, whatever max_failures


def test_a_bug_in_a_worker_keeps_its_type_and_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of the error, stop by stop: the worker, the wire to the controller, its end, the driver."""
    import ray.cloudpickle
    import ray.train.collective
    import ray.train.torch
    from ray.train.v2.api.exceptions import ControllerError

    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 3))
    monkeypatch.setattr(ray.train.collective, "broadcast_from_rank_zero", lambda value: value)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    with pytest.raises(KeyError) as raised:
        under_ray(fakes.setup(tmp_path, fakes.broken, CONFIG))
    sent = ray.cloudpickle.loads(ray.cloudpickle.dumps(raised.value))
    watch = Watch(str(tmp_path / "lines"))
    with pytest.raises(KeyError) as ended:  # at once, not retried
        watch.after_exception(None, {0: ConnectionError("its neighbour is gone"), 3: sent})

    def fit() -> None:
        raise ray.cloudpickle.loads(ray.cloudpickle.dumps(ControllerError(ended.value)))

    with pytest.raises(KeyError, match="a bug") as told:
        list(follow(fit, tmp_path / "lines"))
    assert told.value.__notes__[0].startswith("in training worker 3:\n")
    assert "in broken" in told.value.__notes__[0]


def test_no_cpu_left_for_data_is_refused_with_the_arithmetic(tmp_path: Path, by_value: None) -> None:
    with pytest.raises(UserError, match=r"train.workers 4 x cpus_per_worker 1 = 4 CPUs"):
        distributed(fakes.setup(tmp_path, fakes.source, {**CONFIG, "workers": 4, "cpus_per_worker": 1}), print, print)
