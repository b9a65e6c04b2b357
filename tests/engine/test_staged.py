"""Batches on their way to a GPU while it computes, with faked streams: what is asked in which order, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from mapsto.engine import batches, fit
from mapsto.engine.batches import Staged, stager, to_device
from mapsto.engine.phases import PhaseTrainer

from .runs import STEPS, run, same
from .toy import Adversaries, Regression

CPU = torch.device("cpu")


class Stream:
    """A stream by name: what it waits for is logged."""

    def __init__(self, name: str, log: list[Any]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append(("wait", self.name, other.name))


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
    assert isinstance(made, partial) and made.func is Staged and made.keywords["device"].index == 1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_next_batch_is_copied_once_the_device_has_this_one_to_compute(
    log: list[Any], monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    share, backward, moved = PhaseTrainer._share, PhaseTrainer._backward, batches._moved

    def staged(batch: Any, move: Any) -> Any:
        log.append("stage")
        return moved(batch, move)

    def launched(self: PhaseTrainer, *args: Any) -> Any:
        found = backward(self, *args)
        log.append("launched")
        return found

    def shared(self: PhaseTrainer, *args: Any) -> Any:
        log.append("synchronised")
        return share(self, *args)

    config = {"epochs": 2, "batch_size": 7, "accumulate": accumulate, "optimizer": {"kind": "sgd", "lr": 0.05}}
    plain, history = run(config, Regression(dropout=0.2))
    monkeypatch.setattr(fit, "stager", lambda device: partial(Staged, device=CPU, stream=torch.cuda.Stream(CPU)))
    monkeypatch.setattr(batches, "_moved", staged)
    monkeypatch.setattr(PhaseTrainer, "_backward", launched)
    monkeypatch.setattr(PhaseTrainer, "_share", shared)
    model, again = run(config | {"evaluate_every": 2}, Regression(dropout=0.2))
    same(model, plain)
    assert again[-1]["val/mse"] == history[-1]["val/mse"]
    seen = [entry for entry in log if isinstance(entry, str)]
    step = [*["launched", "stage"] * accumulate, "synchronised"]
    last = [*["launched", "stage"] * (accumulate - 1), "launched", "synchronised"]
    epoch = ["stage", *step * (STEPS - 1), *last]
    assert seen[: 2 * len(epoch)] == epoch * 2


def test_two_phases_read_one_copy(log: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"epochs": 1, "batch_size": 7, "evaluate_every": 1, "optimizer": {"kind": "sgd", "lr": 0.05}}
    plain, _ = run(config, Adversaries())
    monkeypatch.setattr(fit, "stager", lambda device: partial(Staged, device=CPU, stream=torch.cuda.Stream(CPU)))
    model, _ = run(config, Adversaries())
    same(model, plain)
    assert log.count(("copy", "side")) == 4 * STEPS  # x, y, row_id and valid
    assert log.count(("wait", "main", "side")) == 2 * STEPS + 1  # and once to initialise
