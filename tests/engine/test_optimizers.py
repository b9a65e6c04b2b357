"""Optimizers against torch's and timm's own, stepped by hand; layer decay against timm's parameter groups."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from timm.optim import create_optimizer_v2, list_optimizers
from timm.optim._param_groups import param_groups_layer_decay

from mapsto.config.load import load
from mapsto.config.optimizing import OptimizerConfig
from mapsto.config.training import TrainConfig
from mapsto.core.errors import UserError
from mapsto.engine.checkpoints import from_bytes, to_bytes
from mapsto.engine.fit import fit
from mapsto.engine.layers import layer_scales, undecayed
from mapsto.engine.optimizers import optimizer
from mapsto.engine.world import World
from mapsto.models.normalize import Normalized
from mapsto.models.views import Views

from .runs import BATCH, ROWS, STEPS, run, same
from .toy import Regression, items, rows

Made = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
REFERENCES: dict[str, tuple[dict[str, Any], Made]] = {
    "sgd": ({"momentum": 0.8, "nesterov": False}, lambda g: torch.optim.SGD(g, 0.01, 0.8)),
    "adam": ({"betas": [0.8, 0.99]}, lambda g: torch.optim.Adam(g, 0.01, (0.8, 0.99))),
    "adamw": ({"options": {"eps": 1e-4}}, lambda g: torch.optim.AdamW(g, 0.01, eps=1e-4)),
    "adagrad": ({}, lambda g: torch.optim.Adagrad(g, 0.01)),
    "rmsprop": (
        {"momentum": 0.5, "options": {"alpha": 0.9}},
        lambda g: torch.optim.RMSprop(g, 0.01, 0.9, momentum=0.5),
    ),
    "lamb": ({}, lambda g: create_optimizer_v2(g, "lamb", lr=0.01)),
    "lion": ({"betas": [0.9, 0.95]}, lambda g: create_optimizer_v2(g, "lion", lr=0.01, betas=(0.9, 0.95))),
    "muon": ({}, lambda g: create_optimizer_v2(g, "muon", lr=0.01)),
    "lookahead_sgd": ({"momentum": 0.8}, lambda g: create_optimizer_v2(g, "lookahead_sgd", lr=0.01, momentum=0.8)),
    "nadamw": ({}, lambda g: create_optimizer_v2(g, "nadamw", lr=0.01)),
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_a_run_is_the_librarys_optimizer_by_hand(kind: str) -> None:
    settings, made = REFERENCES[kind]
    model, _ = run({"epochs": 2, "optimizer": {"kind": kind, "lr": 0.01, "weight_decay": 0.05, **settings}})
    reference = Regression().build({})
    matrices = [p for p in reference.parameters() if p.ndim > 1]
    others = [p for p in reference.parameters() if p.ndim < 2]
    by_hand = made([{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}])
    for _, batch in items(rows(ROWS), None, batch=BATCH, epochs=2):
        by_hand.zero_grad()
        answer = reference(torch.from_numpy(batch["x"]))[:, 0]
        ((answer - torch.from_numpy(batch["y"])) ** 2).mean().backward()
        by_hand.step()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        np.testing.assert_allclose(mine.detach(), theirs.detach(), rtol=1e-4, atol=1e-6)


def test_an_unknown_optimizer_is_refused_in_the_recipe_with_the_nearest() -> None:
    text = "name: a\nroot: /tmp/a\ndata: {train: {source: /tmp/i}}\ntask: {kind: classify}\ntrain: {optimizer: {kind: admw}}\n"
    with pytest.raises(
        UserError, match=r"recipe:5: train.optimizer.kind: 'admw' is no optimizer.*did you mean 'adamw'"
    ):
        load(text)
    with pytest.raises(ValidationError, match="second derivatives"):
        OptimizerConfig(kind="adahessian")


@pytest.mark.parametrize(("kind", "options"), [("sgd", {"beta": 1}), ("lamb", {"nonsense": 1}), ("adam", {"lr": 3})])
def test_arguments_that_it_does_not_take_are_refused(kind: str, options: dict[str, Any]) -> None:
    config = OptimizerConfig(kind=kind, options=options)
    with pytest.raises(UserError, match=f"train.optimizer: '{kind}' cannot be made with these settings"):
        optimizer(torch.nn.Linear(2, 2).named_parameters(), config)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_layer_decay_is_timms(name: str) -> None:
    net = timm.create_model(name, num_classes=3)
    model = Normalized(Views(net), (0.5,) * 3, (0.2,) * 3)
    names = [n for n, _ in model.named_parameters()]
    config = OptimizerConfig(kind="adamw", lr=0.1, weight_decay=0.3, layer_decay=0.65)
    made = optimizer(
        model.named_parameters(), config, scales=layer_scales(model, names, 0.65), undecayed=undecayed(model)
    )
    mine = {id(p): (g["lr"], g["weight_decay"]) for g in made.param_groups for p in g["params"]}
    listed = getattr(net, "no_weight_decay", set)()
    theirs = param_groups_layer_decay(net, 0.3, listed, layer_decay=0.65)
    expected = {id(p): (0.1 * g["lr_scale"], g["weight_decay"]) for g in theirs for p in g["params"]}
    assert mine.keys() == expected.keys()
    assert len({lr for lr, _ in mine.values()}) > 2
    for key, value in expected.items():
        assert mine[key] == pytest.approx(value)


def test_layer_decay_elsewhere_is_by_the_depth_of_the_weights() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Conv2d(4, 5, 3),
        torch.nn.Flatten(),
        torch.nn.Linear(5, 2),
    )
    expected = {"0": 0.25, "1": 0.25, "2": 0.5, "4": 1.0}
    scales = layer_scales(model, [n for n, _ in model.named_parameters()], 0.5)
    assert scales == {n: expected[n[0]] for n, _ in model.named_parameters()}
    _, history = run({"epochs": 1, "optimizer": {"lr": 0.01, "layer_decay": 0.5}})
    assert history[0]["lr"] == 0.01


def test_an_optimizer_that_draws_draws_the_same_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's kron probes its preconditioner with noise of torch's own generator; dropout draws another for each rank."""
    drawn: list[float] = []
    step = torch.optim.SGD.step

    def drawing(self: torch.optim.SGD, closure: Any = None) -> Any:
        drawn.append(float(torch.rand(1)))
        return step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", drawing)
    for rank in (0, 1):
        task = Regression(dropout=0.5)
        fit(
            task,
            task.build({}),
            TrainConfig(epochs=1),
            items(rows(ROWS), None, batch=BATCH, epochs=1),
            World(rank),
            STEPS,
        )
    assert drawn[:STEPS] == drawn[STEPS:]
    assert len(set(drawn)) == STEPS


def test_lookahead_resumes_to_the_same_bits() -> None:
    states: list[bytes] = []
    config = {"epochs": 3, "optimizer": {"kind": "lookahead_adamw", "lr": 0.01}}
    whole, _ = run(config, on_epoch=lambda epoch: states.append(to_bytes(epoch.state())))
    same(whole, run(config, resume=from_bytes(states[0]))[0])
    with pytest.raises(ValidationError, match="needs second derivatives"):
        OptimizerConfig(kind="lookahead_adahessian")
    with pytest.raises(ValidationError, match=r"'lookahead_admw' is no optimizer.*did you mean 'adamw'"):
        OptimizerConfig(kind="lookahead_admw")


@pytest.mark.parametrize("kind", sorted({*map(str, list_optimizers())} - {"adahessian"}))
def test_every_optimizer_of_timm_trains_and_resumes_to_the_same_bits(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of kron, too: its noise is torch's, seeded by step, and when it balances its preconditioners is drawn from a state of its own."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # minutes of code generation
    states: list[bytes] = []
    config = {"epochs": 3, "optimizer": {"kind": kind, "lr": 0.001}, "schedule": {"kind": "cosine", "warmup": 0.2}}
    try:
        whole, _ = run(config, on_epoch=lambda epoch: states.append(to_bytes(epoch.state())))
    except UserError as error:
        if not re.search("apex|bitsandbytes", str(error), re.IGNORECASE):  # packages that are not here
            raise
        return
    model, _ = run(config, resume=from_bytes(states[0]), on_epoch=lambda epoch: states.append(to_bytes(epoch.state())))
    same(whole, model)
    first, second = (from_bytes(states[k])["optimizers"]["train"]["optimizer"].get("rng_state") for k in (2, 4))
    assert first == second  # drawn from in every step, and heeded in one of a hundred
    assert (first is None) == (not kind.startswith("kron"))
