"""Batches on their way to a GPU while it computes, with faked streams: what is asked in which order, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from mapsto.engine import batches, fit, items, phases
from mapsto.engine.batches import Staged, Stager, stager, to_device
from mapsto.engine.checkpoints import from_bytes, to_bytes
from mapsto.engine.items import Timed
from mapsto.engine.phases import PhaseTrainer

from .runs import STEPS, run, same
from .toy import Adversaries, Regression

CPU = torch.device("cpu")
SGD: dict[str, Any] = {"epochs": 1, "batch_size": 7, "evaluate_every": 1, "optimizer": {"kind": "sgd", "lr": 0.05}}


class Stream:
    """A stream by name: what it waits for is logged."""

    def __init__(self, name: str, log: list[Any]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append(("wait", self.name, other.name))


class Clock:
    """The host's time and when the device will have done what it was asked, in seconds."""

    now = done = 0.0

    def perf_counter(self) -> float:
        return self.now

    time = perf_counter


clock = Clock()


class Event:
    """A timing event of the device that `clock` is of; times in milliseconds, as torch's."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: Stream) -> None:
        assert stream.name == "main"
        self.at = max(clock.now, clock.done)

    def elapsed_time(self, end: Event) -> float:
        assert end.at <= clock.now, "torch raises for an event that is not reached yet"
        return 1000 * (end.at - self.at)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What torch is asked, where torch.cuda and the methods of tensors that need it are faked."""
    log: list[Any] = []
    current = [Stream("main", log)]
    plain = torch.Tensor.to

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        log.append(("pin", current[-1].name))
        return tensor.clone()

    def to(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if options.get("non_blocking"):
            log.append(("copy", current[-1].name))
        return plain(tensor, *args, **options)

    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", log))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(clock, "now", 0.0)
    monkeypatch.setattr(clock, "done", 0.0)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: log.append(("used", stream.name)))
    return log


def test_a_staged_batch_is_pinned_and_copied_on_the_side_and_waited_for_where_it_is_used(log: list[Any]) -> None:
    batch = {"x": np.arange(6.0).reshape(2, 3)[:, ::2], "text": np.array(["a", "b"]), "valid": np.ones(2, bool)}
    staged = Staged(batch, CPU, torch.cuda.Stream(CPU))
    assert log == [("pin", "side"), ("copy", "side")] * 2
    log.clear()
    moved = to_device(staged, CPU)
    assert log == [("wait", "main", "side"), *[("used", "main")] * 2]
    torch.testing.assert_close(moved["x"], torch.tensor([[0.0, 2.0], [3.0, 5.0]], dtype=torch.float64))
    assert moved["text"] is batch["text"] and moved["valid"].tolist() == [True, True]
    assert dict(staged) == batch  # who needs the host's arrays has them
    log.clear()
    to_device(batch, CPU)
    assert log == []


def test_only_a_gpu_has_batches_staged(log: list[Any]) -> None:
    assert stager(CPU) is None
    made = stager(torch.device("cuda", 1))
    assert made is not None and made.device.index == 1


@pytest.fixture
def order(log: list[Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Batches are staged from now on: when, when a loss is launched, and when the host waits for the device."""
    order: list[str] = []
    share, backward, moved = PhaseTrainer._share, PhaseTrainer._backward, batches._moved

    def staged(batch: Any, move: Any) -> Any:
        order.append("stage")
        return moved(batch, move)

    def launched(self: PhaseTrainer, *args: Any) -> Any:
        found = backward(self, *args)
        order.append("launched")
        return found

    def shared(self: PhaseTrainer, *args: Any) -> Any:
        order.append("synchronised")
        return share(self, *args)

    def plain(batch: Any, device: torch.device) -> Any:
        return batch.tensors() if isinstance(batch, Staged) else moved(batch, lambda tensor: tensor)

    monkeypatch.setattr(fit, "stager", Stager)
    monkeypatch.setattr(batches, "_moved", staged)
    monkeypatch.setattr(phases, "to_device", plain)
    monkeypatch.setattr(PhaseTrainer, "_backward", launched)
    monkeypatch.setattr(PhaseTrainer, "_share", shared)
    return order


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_next_batch_is_copied_once_the_device_has_this_one_to_compute(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, accumulate: int
) -> None:
    config = SGD | {"epochs": 2, "accumulate": accumulate}
    plain, history = run(config, Regression(dropout=0.2))
    order = request.getfixturevalue("order")
    model, again = run(config | {"evaluate_every": 2}, Regression(dropout=0.2))
    same(model, plain)
    assert again[-1]["val/mse"] == history[-1]["val/mse"]
    step = [*["launched", "stage"] * accumulate, "synchronised"]
    last = [*["launched", "stage"] * (accumulate - 1), "launched", "synchronised"]
    epoch = [*step * (STEPS - 1), *last]
    start = order.index("launched")  # before it the first batch is copied to initialise
    assert order[start : start + 2 * len(epoch)] == epoch * 2


@pytest.mark.parametrize("accumulate", [1, 2])
def test_of_two_phases_the_last_computes_while_the_next_batch_is_copied(order: list[str], accumulate: int) -> None:
    run(SGD | {"epochs": 2, "accumulate": accumulate}, Adversaries())
    rest, launched = ["stage"] * (accumulate - 1), ["launched"] * accumulate
    step = [*rest, *launched, "synchronised", *launched, "stage", "synchronised"]
    last = [*rest, *launched, "synchronised", *launched, "synchronised"]
    epoch = ["stage", *step * (STEPS - 1), *last]
    start = order.index("launched") - accumulate
    assert order[start : start + len(epoch)] == epoch


def test_two_phases_read_one_copy(log: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = run(SGD, Adversaries())
    monkeypatch.setattr(fit, "stager", Stager)
    model, _ = run(SGD, Adversaries())
    same(model, plain)
    assert log.count(("copy", "side")) == 4 * STEPS  # x, y, row_id and valid
    assert log.count(("wait", "main", "side")) == 2 * STEPS


def test_rows_that_are_only_remembered_are_not_copied(log: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = SGD | {"epochs": 2, "swa": {"start": 0.5}}
    states: list[Any] = []
    plain, _ = run(
        config,
        Regression(norm=True),
        notice=lambda: True,
        on_notice=lambda midway: states.append(from_bytes(to_bytes(midway.state()))),
    )
    monkeypatch.setattr(fit, "stager", Stager)
    (state,) = (each for each in states if (each["epoch"], each["within"]) == (1, 2))
    model, _ = run(config, Regression(norm=True), resume=state, first=0)
    same(model, plain)
    assert log.count(("copy", "side")) == 4  # the last step's x, y, row_id and valid


@pytest.mark.parametrize(("load", "compute"), [(10.0, 9.0), (9.0, 10.0), (10.0, 2.0)])
@pytest.mark.parametrize("task", [Regression(), Adversaries()])
def test_of_the_wait_for_a_batch_only_what_left_the_device_idle_counts(
    log: list[Any], monkeypatch: pytest.MonkeyPatch, task: Any, load: float, compute: float
) -> None:
    share, backward, many = PhaseTrainer._share, PhaseTrainer._backward, len(task.phases(None))

    def launched(self: PhaseTrainer, *args: Any) -> Any:
        clock.done = max(clock.now, clock.done) + compute
        return backward(self, *args)

    def shared(self: PhaseTrainer, *args: Any) -> Any:
        clock.now = max(clock.now, clock.done)
        return share(self, *args)

    def loaded(source: Any) -> Iterator[Any]:
        for each in source:
            clock.now += load
            yield each

    monkeypatch.setattr(PhaseTrainer, "_backward", launched)
    monkeypatch.setattr(PhaseTrainer, "_share", shared)
    monkeypatch.setattr(fit, "stager", Stager)
    monkeypatch.setattr(fit, "Timed", lambda source, stager: Timed(loaded(source), stager))
    monkeypatch.setattr(fit, "time", clock)
    monkeypatch.setattr(items, "time", clock)
    _, history = run(SGD | {"epochs": 2}, task)
    seconds = load + STEPS * (many - 1) * compute + (STEPS - 1) * max(load, compute) + compute
    idle = load + (STEPS - 1) * max(0.0, load - compute)
    for record in history:
        assert record["seconds"] == pytest.approx(seconds)
        assert record["data_wait"] == pytest.approx(idle / seconds)
