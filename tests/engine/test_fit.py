"""The loop in one process: gradients against autograd on the whole batch, resuming, averaging, checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mapsto.config.schema import TrainConfig
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.engine.checkpoints import Checkpoints, from_bytes, to_bytes
from mapsto.engine.ema import Ema
from mapsto.engine.fit import Epoch, fit
from mapsto.engine.optimizers import optimizer
from mapsto.engine.schedules import factor
from mapsto.engine.world import World

from .toy import Adversaries, Regression, items, rows

ROWS, VAL, BATCH = 23, 8, 7
STEPS = 4


def run(
    config: dict[str, Any],
    task: Any = None,
    resume: Any = None,
    start: int = 0,
    on_epoch: Any = None,
    data: Any = None,
) -> Any:
    task = task or Regression()
    model = task.build({})
    settings = TrainConfig(**config)
    source = items(
        data or rows(ROWS),
        rows(VAL, 1),
        batch=BATCH,
        epochs=settings.epochs,
        start=start,
        accumulate=settings.accumulate,
        evaluate_every=settings.evaluate_every,
    )
    history = fit(
        task,
        model,
        settings,
        source,
        World(),
        STEPS,
        resume,
        on_epoch or (lambda epoch: None),
    )
    return model, history


def test_accumulated_sgd_is_plain_sgd_on_whole_batches() -> None:
    """The reference: a hand-written loop with torch's mean loss over each global batch."""
    config = {
        "epochs": 2,
        "accumulate": 3,
        "optimizer": {
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 0.01,
            "decay_norms": True,
        },
    }
    model, _ = run(config)
    reference = Regression().build({})
    sgd = torch.optim.SGD(reference.parameters(), 0.1, 0.9, weight_decay=0.01, nesterov=True)
    for item, batch in items(rows(ROWS), None, batch=BATCH, epochs=2):
        assert item.ends_step
        sgd.zero_grad()
        torch.nn.functional.mse_loss(
            reference(torch.from_numpy(batch["x"]))[:, 0], torch.from_numpy(batch["y"])
        ).backward()
        sgd.step()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_two_phases_are_two_hand_written_optimizers() -> None:
    task = Adversaries()
    model, history = run(
        {
            "epochs": 1,
            "accumulate": 2,
            "optimizer": {"lr": 0.1, "momentum": 0, "weight_decay": 0},
        },
        task,
    )
    reference = task.build({})
    for _, batch in items(rows(ROWS), None, batch=BATCH, epochs=1):
        tensors = {k: torch.from_numpy(v) for k, v in batch.items()}
        for name, loss, lr in (("D", task.d, 0.2), ("G", task.g, 0.1)):
            total, count, _ = loss(reference, tensors, None)
            for p, g in zip(
                reference[name].parameters(),
                torch.autograd.grad(total / count, list(reference[name].parameters())),
                strict=True,
            ):
                p.data -= lr * g
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert {"train/D/loss", "train/G/loss", "val/mse"} <= set(history[0])


def test_what_the_model_froze_stays_and_the_rest_learns() -> None:
    class Frozen(Adversaries):
        def build(self, parents: Any) -> torch.nn.Module:
            model = super().build(parents)
            model.get_parameter("D.0.weight").requires_grad_(False)
            return model

    model, _ = run({"epochs": 1, "optimizer": {"lr": 0.1}}, Frozen())
    before = Frozen().build({})
    for name, stays in (("D.0.weight", True), ("D.0.bias", False), ("D.2.weight", False), ("G.weight", False)):
        assert torch.equal(model.get_parameter(name), before.get_parameter(name)) == stays, name


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": {"lr": 0.05}, "ema": 0.9},
        {"optimizer": {"kind": "adamw", "lr": 0.01}, "schedule": {"kind": "one_cycle"}},
        {
            "optimizer": {"lr": 0.05},
            "schedule": {"kind": "plateau", "patience": 0},
            "clip": 0.5,
        },
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(settings: dict[str, Any]) -> None:
    config, task, states = (
        {"epochs": 4, **settings},
        Regression(dropout=0.3, norm=True),
        [],
    )
    whole, history = run(config, task, on_epoch=lambda epoch: states.append(to_bytes(epoch.state())))
    resumed, again = run(config, task, resume=from_bytes(states[1]), start=2)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert [r["train/loss"] for r in again] == [r["train/loss"] for r in history]
    assert [r["epoch"] for r in again] == [1, 2, 3, 4]


def test_a_run_that_takes_anothers_state_goes_on_with_its_own_settings(tmp_path: Path) -> None:
    """A population's member: the donor's weights and momentum, its own learning rate, momentum and weight decay."""
    states: list[bytes] = []
    first = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "decay_norms": True}
    own = {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.3, "decay_norms": True}
    run({"epochs": 2, "optimizer": first}, on_epoch=lambda epoch: states.append(to_bytes(epoch.state())))

    donor = Checkpoints(Artifact(str(tmp_path / "donor"), Storage()), 1, "max")
    mine = Checkpoints(Artifact(str(tmp_path / "mine"), Storage()), 1, "max")
    name, folder = donor.save(states[0], 1, STEPS, 0.5), tmp_path / "handed"
    folder.mkdir()
    donor.give(name, folder)
    mine.take(folder)
    assert mine.newest() == name
    assert mine.done(name) == donor.done(name)
    model, history = run({"epochs": 2, "optimizer": own}, resume=mine.load(name), start=1)
    assert history[-1]["lr"] == 0.02

    reference = Regression().build({})
    sgd = torch.optim.SGD(reference.parameters(), 0.1, 0.9, weight_decay=0.01, nesterov=True)
    for item, batch in items(rows(ROWS), None, batch=BATCH, epochs=2):
        if item.epoch == 1:
            sgd.param_groups[0].update({"lr": 0.02, "momentum": 0.5, "weight_decay": 0.3})
        sgd.zero_grad()
        torch.nn.functional.mse_loss(
            reference(torch.from_numpy(batch["x"]))[:, 0], torch.from_numpy(batch["y"])
        ).backward()
        sgd.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("own", [{"kind": "one_cycle", "peak": 0.5}, {"kind": "cosine", "final": 0.3, "warmup": 0.5}])
def test_a_run_that_takes_anothers_state_goes_on_in_its_own_schedule(own: dict[str, Any]) -> None:
    """A population's member whose schedule was perturbed: from the donor's step on, at its own rate."""
    states: list[bytes] = []
    first = {"epochs": 3, "optimizer": {"lr": 0.1}, "schedule": {**own, "peak" if "peak" in own else "warmup": 0.2}}
    run(first, on_epoch=lambda epoch: states.append(to_bytes(epoch.state())))
    mine = {"epochs": 3, "optimizer": {"lr": 0.02}, "schedule": own}
    _, history = run(mine, resume=from_bytes(states[0]), start=1)
    expected = factor(TrainConfig(**mine).schedule, STEPS, 3 * STEPS)  # ty: ignore[invalid-argument-type]
    assert [r["lr"] for r in history[1:]] == pytest.approx([0.02 * expected(k * STEPS - 1) for k in (2, 3)])


@pytest.mark.parametrize("decays", [(0.0, 0.3), (0.3, 0.0)])
def test_a_state_fits_whatever_the_weight_decay_was(decays: tuple[float, float]) -> None:
    """Norms and biases are not decayed: with a decay of 0 they would be no group of their own."""
    states: list[dict[str, Any]] = []
    first, own = ({"lr": 0.1, "weight_decay": decay} for decay in decays)
    run({"epochs": 2, "optimizer": first}, on_epoch=lambda epoch: states.append(from_bytes(to_bytes(epoch.state()))))
    _, history = run({"epochs": 2, "optimizer": own}, resume=states[0], start=1)
    assert len(history) == 2


def test_the_record_of_an_epoch() -> None:
    epochs: list[Epoch] = []
    model, history = run(
        {"epochs": 2, "evaluate_every": 2, "optimizer": {"lr": 0.05}},
        on_epoch=epochs.append,
    )
    assert "val/mse" not in history[0] and epochs[0].score is None and not epochs[0].last
    model.requires_grad_(False)
    x, y = (torch.from_numpy(rows(VAL, 1)[k]) for k in ("x", "y"))
    assert history[1]["val/mse"] == pytest.approx(float(((model(x)[:, 0] - y) ** 2).mean()), rel=1e-5)
    assert epochs[1].score == history[1]["val/mse"] and epochs[1].last
    assert history[1]["step"] == 8 and history[0]["train/loss"] == pytest.approx(history[0]["train/square"])
    assert history[1]["images_per_s"] > 0 and 0 <= history[1]["data_wait"] <= 1


def test_a_row_that_is_not_finite_is_named() -> None:
    data = rows(ROWS)
    data["x"][11] = np.nan
    with pytest.raises(UserError, match=r"not finite at step \d, .*|lr 0.05, rows .*\b11\b") as error:
        run({"epochs": 1, "optimizer": {"lr": 0.05}}, data=data)
    assert "11" in str(error.value)


def test_bf16_stays_near_fp32() -> None:
    _, exact = run({"epochs": 3, "optimizer": {"lr": 0.05}})
    _, rounded = run({"epochs": 3, "optimizer": {"lr": 0.05}, "precision": "bf16"})
    assert rounded[-1]["train/loss"] == pytest.approx(exact[-1]["train/loss"], rel=0.05)


def test_ema_is_the_closed_form_and_gives_back_the_weights() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    values, ema = [1.0, 2.0, 4.0], Ema(model, 0.2)
    average = float(model.weight.detach())
    for step, value in enumerate(values, 1):
        model.weight.data.fill_(value)
        ema.update(model)
        decay = min(0.2, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
    with ema.applied(model):
        assert float(model.weight.detach()) == pytest.approx(average)
    assert float(model.weight.detach()) == 4.0


def test_norms_and_biases_are_not_decayed() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    groups = optimizer(model.named_parameters(), TrainConfig().optimizer).param_groups
    assert [(g["weight_decay"], len(g["params"])) for g in groups] == [
        (5e-4, 1),
        (0.0, 3),
    ]


def test_groups_by_name_have_their_own_settings() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    settings = {"lr": 0.1, "weight_decay": 0.01, "groups": [{"match": r"^1\.bias$", "lr": 64, "weight_decay": 0.5}]}
    made = optimizer(model.named_parameters(), TrainConfig(optimizer=settings).optimizer)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in made.param_groups for p in group["params"]}
    named = {name: found[id(p)] for name, p in model.named_parameters()}
    assert named == {"0.weight": (0.1, 0.01), "0.bias": (0.1, 0.0), "1.weight": (0.1, 0.0), "1.bias": (6.4, 0.5)}
    wrong = {"lr": 0.1, "groups": [{"match": "head"}]}
    with pytest.raises(UserError, match="'head' matches no trained parameter, such as"):
        run({"epochs": 1, "optimizer": wrong})


def test_data_that_breaks_off_before_the_last_evaluation_is_no_run_without_one() -> None:
    def broken() -> Any:
        for item, batch in items(rows(ROWS), rows(VAL, 1), batch=BATCH, epochs=1):
            if item.split == "val":
                raise RuntimeError("the plan's order was lost")
            yield item, batch

    task = Regression()
    with pytest.raises(RuntimeError, match="order was lost"):
        fit(task, task.build({}), TrainConfig(epochs=1), broken(), World(), STEPS)


def test_averages_are_kept_of_a_model_with_buffers_that_are_not_saved() -> None:
    class Anchored(Regression):
        def build(self, parents: Any) -> torch.nn.Module:
            model = super().build(parents)
            model.register_buffer("anchors", torch.ones(3), persistent=False)  # as detectors have them
            return model

    model, _ = run({"epochs": 2, "ema": 0.9}, Anchored())
    plain, _ = run({"epochs": 2, "ema": 0.9})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


class Blows(Regression):
    """A gradient that is not finite in one step, of a finite loss."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def loss(self, model: torch.nn.Module, batch: Any, context: Any) -> Any:
        total, count, logs = super().loss(model, batch, context)
        if context.step == self.at:
            weight = model[0].weight
            total = total + torch.sqrt((weight - weight.detach()).abs()).sum()  # 0, whose derivative is infinite
        return total, count, logs


def test_a_gradient_that_is_not_finite_is_told_with_the_step_and_rows_that_it_came_of() -> None:
    taken = [batch["row_id"].tolist() for item, batch in items(rows(ROWS), None, batch=BATCH, epochs=1)]
    shown = ", ".join(map(str, taken[1]))
    with pytest.raises(
        UserError, match=rf"the gradient of phase 'train' is not finite at step 1 \(epoch 1\), .*{shown}"
    ):
        run({"epochs": 2}, Blows(1))
    epochs: list[Epoch] = []
    with pytest.raises(
        UserError, match=r"the gradient of phase 'train' is not finite at step 3 \(epoch 1\), lr .*rows"
    ):
        run({"epochs": 2}, Blows(STEPS - 1), on_epoch=epochs.append)
    assert not epochs  # nothing of it is saved


@pytest.mark.parametrize("hooks", [{"notice": lambda: True}, {"asked": lambda: True}])
def test_weights_that_are_not_finite_are_not_saved_within_an_epoch(hooks: dict[str, Any]) -> None:
    taken = [batch["row_id"].tolist() for item, batch in items(rows(ROWS), None, batch=BATCH, epochs=1)]
    task, saved = Blows(1), []
    source = items(rows(ROWS), rows(VAL, 1), batch=BATCH, epochs=1)
    shown = ", ".join(map(str, taken[1]))
    with pytest.raises(UserError, match=rf"is not finite at step 1 \(epoch 1\), lr 0.1, rows {shown}; lower"):
        fit(task, task.build({}), TrainConfig(epochs=1), source, World(), STEPS, on_notice=saved.append, **hooks)
    assert [midway.step for midway in saved] == [1]


def test_plateau_without_rows_to_measure_is_refused() -> None:
    task = Regression()
    source = items(rows(ROWS), None, batch=BATCH, epochs=2)
    config = TrainConfig(epochs=2, schedule={"kind": "plateau"})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"train.schedule: the data has no rows in `val`, .*set data.<role>.splits.val"):
        fit(task, task.build({}), config, source, World(), STEPS)


def test_an_epoch_whose_loss_counted_nothing_ends_the_run_where_the_task_says_so():
    class Idle(Regression):
        told = "no batch held a pair; set task.sampling"

        def phases(self, model):
            (phase,) = super().phases(model)

            def loss(model, batch, context):
                total, count, logs = phase.loss(model, batch, context)
                return total * 0, count * 0, logs

            return (replace(phase, loss=loss, uncounted=self.told),)

    with pytest.raises(UserError, match=r"train: epoch 1 taught nothing: no batch held a pair; set task\.sampling"):
        run({"epochs": 2}, Idle())
    quiet = Idle()
    quiet.told = ""
    assert len(run({"epochs": 2}, quiet)[1]) == 2
