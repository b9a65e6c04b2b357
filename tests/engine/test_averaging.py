"""Stochastic weight averaging against torch.optim.swa_utils."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.optim.swa_utils import AveragedModel, update_bn

from mapsto.config.training import SwaConfig, TrainConfig
from mapsto.engine.checkpoints import from_bytes, to_bytes
from mapsto.engine.fit import fit
from mapsto.engine.swa import Swa
from mapsto.engine.world import World
from mapsto.stages.train import rewound

from .runs import BATCH, ROWS, STEPS, VAL, run, same
from .toy import Regression, items, rows

SWA: dict[str, Any] = {"epochs": 4, "optimizer": {"lr": 0.02}, "swa": {"start": 0.5}}


def test_swa_is_torchs_with_statistics_of_the_last_epoch() -> None:
    task, snapshots = Regression(norm=True), []
    plain = {**SWA, "swa": None}
    run(plain, task, on_epoch=lambda epoch: snapshots.append(to_bytes(epoch.state()["model"])))
    reference = task.build({})
    averaged = AveragedModel(reference)
    for snapshot in snapshots[2:]:
        reference.load_state_dict(from_bytes(snapshot))
        averaged.update_parameters(reference)
    last = [torch.from_numpy(batch["x"]) for _, batch in items(rows(ROWS), None, batch=BATCH, epochs=4, start=3)]
    update_bn([x for x in last if len(x) > 1], averaged)
    model, history = run(SWA, task)
    expected = averaged.module.state_dict()
    for name, value in model.state_dict().items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    val = rows(VAL, 1)
    with torch.no_grad():
        answer = averaged.eval()(torch.from_numpy(val["x"]))[:, 0].numpy()
    assert history[-1]["val/mse"] == pytest.approx(float(((answer - val["y"]) ** 2).mean()), rel=1e-5)


def test_swa_leaves_the_training_itself_as_it_is() -> None:
    _, with_swa = run(SWA, Regression(norm=True))
    _, without = run({**SWA, "swa": None}, Regression(norm=True))
    assert [r["train/loss"] for r in with_swa] == [r["train/loss"] for r in without]
    assert [r["val/mse"] for r in with_swa[:2]] == [r["val/mse"] for r in without[:2]]
    assert with_swa[3]["val/mse"] != without[3]["val/mse"]


def test_swas_own_learning_rate_begins_with_it() -> None:
    _, history = run({**SWA, "swa": {"start": 0.5, "lr": 0.7}, "schedule": {"kind": "step", "every": 1, "gamma": 0.5}})
    assert [r["lr"] for r in history] == pytest.approx([0.02, 0.01, 0.014, 0.014])


def test_only_the_last_rows_are_remembered() -> None:
    swa = Swa(torch.nn.Linear(1, 1), SwaConfig(rows=10))
    for number in range(9):
        swa.keep({"row_id": np.full(4, number), "valid": np.ones(4, bool)})
    assert [int(batch["row_id"][0]) for batch in swa.recent] == [6, 7, 8]


class Branches(Regression):
    """A frozen norm, one that the forward reaches, and one that it does not."""

    def build(self, parents: Any) -> torch.nn.Module:
        norms = {name: torch.nn.BatchNorm1d(6) for name in ("frozen", "reached", "unused")}
        return torch.nn.ModuleDict({**norms, "head": torch.nn.Linear(6, 1)})

    def forward(self, model: Any, batch: Any) -> dict[str, torch.Tensor]:
        return {"y": model["head"](model["reached"](model["frozen"](self.inputs(batch)["input"])))[:, 0]}


def test_a_norm_that_is_frozen_or_not_reached_keeps_its_statistics() -> None:
    model, _ = run({**SWA, "init": {"freeze": ["^frozen"]}}, Branches())
    for name in ("frozen", "unused"):
        assert (model[name].running_mean == 0).all(), name
    last = np.concatenate([b["x"] for _, b in items(rows(ROWS), None, batch=BATCH, epochs=4, start=3)])
    batches = np.split(last, [7, 14, 21])
    passed = [x / np.sqrt(1 + 1e-5) for x in batches]
    np.testing.assert_allclose(
        model["reached"].running_mean, np.mean([x.mean(0) for x in passed], 0), rtol=1e-4, atol=1e-5
    )
    assert model["reached"].momentum == 0.1


def test_swa_resumes_to_the_same_bits() -> None:
    states: list[bytes] = []
    task = Regression(dropout=0.3, norm=True)
    whole, _ = run(SWA, task, on_epoch=lambda epoch: states.append(to_bytes(epoch.state())))
    again, _ = run(SWA, task, resume=from_bytes(states[2]))
    same(whole, again)


class Two(World):
    """Of two ranks, whose other one has two batches to measure on."""

    def gather_objects(self, value: Any) -> list[Any]:
        return [value, 2]

    def broadcast_object(self, value: Any) -> Any:
        return value

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.mul_(2)

    def broadcast(self, tensors: Any) -> None:
        pass


@pytest.mark.parametrize(("norm", "taken"), [(torch.nn.SyncBatchNorm, [2, 3]), (torch.nn.BatchNorm1d, [0, 1, 2, 3])])
def test_ranks_measure_a_norm_that_is_all_ranks_on_as_many_batches(norm: Any, taken: list[int]) -> None:
    """A synchronised norm's forward pass waits for every rank: one more of them on one rank would wait for ever."""
    task, seen = Regression(), []
    model = torch.nn.Sequential(norm(6), torch.nn.Linear(6, 1))
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(int(kwargs["input"][0, 0])), with_kwargs=True)
    swa = Swa(model, SwaConfig())
    for number in range(4):
        swa.keep(rows(3) | {"x": np.full((3, 6), number, np.float32)})
    swa.measure(task, model, Two(0, 2), nullcontext, [])
    assert seen == taken
    assert float(model[0].running_mean[0]) == pytest.approx(np.mean(taken))


def test_two_averages_are_refused() -> None:
    with pytest.raises(ValidationError, match="keep one"):
        TrainConfig(ema=0.9, swa={"start": 0.5})  # type: ignore[arg-type]


@pytest.mark.parametrize("val", [True, False])
def test_swa_resumed_after_its_last_epoch_is_the_same_model(val: bool) -> None:
    """Killed between the last checkpoint and the model: no batches are left to measure the norms on."""

    def train(resume: Any = None, on_epoch: Any = lambda epoch: None) -> Any:
        task, data = Regression(norm=True), rows(VAL, 1) if val else None
        model = task.build({})
        source = items(rows(ROWS), data, batch=BATCH, epochs=4, start=4 if resume else 0)
        fit(task, model, TrainConfig(**SWA), source, World(), STEPS, resume, on_epoch)
        return model

    states: list[bytes] = []
    whole = train(on_epoch=lambda epoch: states.append(to_bytes(epoch.state())))
    same(whole, train(from_bytes(states[-1])))


@pytest.mark.parametrize(("kept", "first"), [(2048, 0), (8, 1), (2, 2)])
def test_swa_resumed_in_mid_epoch_is_the_same_model(kept: int, first: int) -> None:
    """Batch norm's statistics are of the epoch's last rows, of which some were trained on before."""
    config, task = {**SWA, "deterministic": True, "swa": {"start": 0.5, "rows": kept}}, Regression(norm=True)
    asked: list[int] = []
    saved: list[bytes] = []
    whole, history = run(
        config,
        task,
        notice=lambda: asked.append(1) or len(asked) == 3 * STEPS + 3,
        on_notice=lambda midway: saved.append(to_bytes(midway.state())),
    )
    state = from_bytes(saved[0])
    assert (state["epoch"], state["within"]) == (3, 3)
    plan: Any = SimpleNamespace(least_rows=BATCH, steps_per_epoch=STEPS)
    assert rewound(plan, TrainConfig(**config), 3, 3) == first
    assert rewound(plan, TrainConfig(**config), 1, 3) == 3  # before SWA begins
    again, resumed = run(config, task, resume=state, first=first)
    same(whole, again)
    assert resumed[-1]["val/mse"] == history[-1]["val/mse"]
