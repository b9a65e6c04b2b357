"""Weights from elsewhere: names reconciled, what does not fit told; frozen parts and their thaw."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from mapsto.config.training import TrainConfig
from mapsto.core import heavy
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.engine.checkpoints import from_bytes, to_bytes
from mapsto.models.pyramid import Maps
from mapsto.models.transfer import WRAPPERS, bare, load_weights, transfer

from .runs import run, same, weights
from .toy import Adversaries, Regression


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
        self.register_buffer("scale", torch.ones(3))


def of(model: Wrapped, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: torch.full_like(value, 3) for name, value in model.net.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "module.", "net.", "module.net.", "_orig_mod.module."])
def test_wrappers_are_reconciled(prefix: str) -> None:
    model = Wrapped()
    report = transfer(model, of(model, prefix), "w.pth", strict=True)
    assert not (report.missing or report.unexpected or report.mismatched)
    assert all((value == 3).all() for value in model.net.state_dict().values())
    assert (model.get_buffer("scale") == 1).all()


@given(st.lists(st.sampled_from(WRAPPERS), max_size=4), st.sampled_from(["conv1.weight", "layer1.0.bn1.bias", "w"]))
@settings(max_examples=30, deadline=None)
def test_bare_takes_off_every_wrapper(wrappers: list[str], name: str) -> None:
    assert bare("".join(wrappers) + name) == name


def test_what_does_not_fit_is_told_and_with_strict_refused() -> None:
    model = Wrapped()
    found = of(model, "module.")
    del found["module.1.running_mean"], found["module.1.num_batches_tracked"]
    found |= {"module.2.weight": torch.zeros(5, 4), "module.fc.weight": torch.zeros(1)}
    before = model.net[2].weight.detach().clone()
    report = transfer(model, found, "w.pth")
    assert report.missing == ("net.1.running_mean",)
    assert report.unexpected == ("module.fc.weight",)
    assert report.mismatched == ("net.2.weight: (2, 4), not (5, 4)",)
    assert len(report.matched) == 6
    assert torch.equal(model.net[2].weight, before)
    assert report.lines()[0] == "init: 6 tensors of w.pth matched"
    with pytest.raises(UserError, match=r"train.init.strict: .*missing: net.1.running_mean; .*\(5, 4\)"):
        transfer(Wrapped(), found, "w.pth", strict=True)


def test_weights_of_another_model_altogether_are_refused() -> None:
    with pytest.raises(UserError, match=r"no tensor fits this model; it has a.b, the model net.0.weight"):
        transfer(Wrapped(), {"a.b": torch.zeros(2)}, "w.pth")


def test_a_models_own_names_that_look_like_wrappers_stay() -> None:
    model = nn.ModuleDict({"net": nn.Linear(2, 2), "model": nn.Linear(2, 2)})
    transfer(model, {name: torch.zeros_like(value) for name, value in model.state_dict().items()}, "w", strict=True)
    with pytest.raises(UserError, match="no tensor fits"):
        transfer(model, {"weight": torch.zeros(2, 2)}, "w")


def test_files_of_weights(tmp_path: Path) -> None:
    state = nn.Linear(2, 3).state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    torch.save({"epoch": 3, "state_dict": state, "best": 0.5}, tmp_path / "b.pth")
    torch.save({"model": state}, tmp_path / "c.th", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "a.pt", "b.pth", "c.th"):
        found = load_weights(str(tmp_path / name), Storage())
        assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in state.items()}, name


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("/tmp/mapsto-evil"),)


def test_no_code_is_unpickled(tmp_path: Path) -> None:
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil()))
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    for name in ("evil.pth", "raw.pth", "module.pth"):
        with pytest.raises(UserError, match="nothing else is unpickled here"):
            load_weights(str(tmp_path / name), Storage())
    assert not Path("/tmp/mapsto-evil").exists()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.pth", b""),
        ("a.pth", b"PK\x03\x04cut"),
        ("a.pth", b"hello world"),
        ("a.safetensors", b"no"),
        ("a.bin", bytes(64)),
    ],
)
def test_a_broken_file_is_refused_in_a_line(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=name) as error:
        load_weights(str(tmp_path / name), Storage())
    assert "\n" not in str(error.value)


def test_a_file_without_tensors_and_none_at_all_are_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="no state dict in it"):
        load_weights(str(tmp_path / "a.pth"), Storage())
    with pytest.raises(UserError, match="not found"):
        load_weights(str(tmp_path / "b.pth"), Storage())


FREEZE: dict[str, Any] = {"epochs": 3, "optimizer": {"lr": 0.02}, "init": {"freeze": ["^0\\.", "^1\\."]}}


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lion"])
def test_frozen_layers_stay_with_their_statistics_and_the_rest_learns(kind: str) -> None:
    task = Regression(norm=True)
    config = {**FREEZE, "optimizer": {"kind": kind, "lr": 0.02, "weight_decay": 0.1}, "clip": 1.0}
    before, after = weights(task.build({})), weights(run(config, task)[0])
    for name, value in before.items():
        assert (value == after[name]).all() == name.startswith(("0.", "1.")), name


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_what_thaws_learns_from_then_on_and_resumes_to_the_same_bits(kind: str) -> None:
    task, states = Regression(norm=True), []
    config = {**FREEZE, "optimizer": {"kind": kind, "lr": 0.02}, "init": {"freeze": ["^[01]\\."], "unfreeze_at": 2}}
    whole, _ = run(config, task, on_epoch=lambda epoch: states.append(to_bytes(epoch.state())))
    begin, frozen, thawed = weights(task.build({})), from_bytes(states[1])["model"], weights(whole)
    for name in ("0.weight", "1.running_mean", "1.bias"):
        assert (frozen[name].numpy() == begin[name]).all(), name
        assert (thawed[name] != begin[name]).any(), name
    for state in states[:2]:
        same(whole, run(config, task, resume=from_bytes(state))[0])


def test_layers_thaw_one_after_the_other_and_resume_to_the_same_bits() -> None:
    """Layer 0 thaws after two epochs, the norm 1 after one; 1's bias, which a pattern of its own matches too, after three."""
    task, states = Regression(norm=True), []
    init = {"freeze": ["^0\\.", "^1\\.", "^1.bias"], "unfreeze_at": [2, 1, 3]}
    config = {"epochs": 4, "optimizer": {"lr": 0.02}, "init": init}
    whole, _ = run(config, task, on_epoch=lambda epoch: states.append(to_bytes(epoch.state())))
    kept = [{n: v.numpy() for n, v in from_bytes(state)["model"].items()} for state in states]
    kept = [weights(task.build({})), *kept]

    def moved(name: str) -> list[bool]:
        """In which epochs it changed."""
        return [bool((a[name] != b[name]).any()) for a, b in pairwise(kept)]

    assert moved("4.weight") == [True] * 4
    assert moved("0.weight") == [False, False, True, True]
    assert moved("1.weight") == moved("1.running_mean") == [False, True, True, True]
    assert moved("1.bias") == [False, False, False, True]
    for state in states[:3]:
        same(whole, run(config, task, resume=from_bytes(state))[0])


def test_freezing_what_is_not_there_or_everything_is_refused() -> None:
    for init, message in (
        ({"freeze": ["layer9"]}, "'layer9' matches no trained parameter, such as 0.weight or 4.bias"),
        ({"freeze": ["."]}, "nothing is left to train"),
    ):
        with pytest.raises(UserError, match=message):
            run({**FREEZE, "init": init})
    with pytest.raises(UserError, match="phase 'D' has nothing left to train"):
        run({**FREEZE, "init": {"freeze": ["^D"]}}, Adversaries())


@pytest.mark.parametrize(
    "config",
    [
        {"epochs": 0},
        {"init": {"unfreeze_at": 2}},
        {"epochs": 3, "init": {"freeze": ["a"], "unfreeze_at": 3}},
        {"epochs": 3, "init": {"freeze": ["a", "b"], "unfreeze_at": [1, 3]}},
        {"epochs": 3, "init": {"freeze": ["a", "b"], "unfreeze_at": [1]}},
        {"epochs": 3, "init": {"freeze": ["a"], "unfreeze_at": 0}},
        {"init": {"freeze": ["("]}},
    ],
)
def test_init_that_makes_no_sense_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainConfig(**config)


def test_no_epochs_keep_the_weights() -> None:
    model, history = run({"epochs": 0, "init": {}})
    assert history == [] and not model.training
    for name, value in weights(Regression().build({})).items():
        np.testing.assert_array_equal(weights(model)[name], value)


class Detector(nn.Module):
    """Holds another network whole, as its backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Wrapped().net
        self.head = nn.Linear(2, 2)


def test_a_classifiers_weights_fit_a_backbone_of_its_kind() -> None:
    model = nn.ModuleDict({"net": nn.ModuleDict({"maps": Detector()})})
    report = transfer(model, of(Wrapped(), "net."), "w.safetensors")
    assert len(report.matched) == len(Wrapped().net.state_dict()) and not report.unexpected
    assert report.missing == ("net.maps.head.weight", "net.maps.head.bias")
    assert all((value == 3).all() for value in model.state_dict().values() if value.dim() == 4)


@pytest.mark.parametrize("name", ["convnext_atto", "resnet18", "densenet121"])  # timm flattens the first and the last
def test_timms_own_names_of_a_classifier_fit_its_feature_maps(name: str) -> None:
    classifier = heavy.timm().create_model(name, num_classes=3)
    model = nn.ModuleDict({"maps": Maps(name, (8, 16, 32))})
    report = transfer(model, classifier.state_dict(), "w.safetensors")
    assert not report.missing and not report.mismatched
    assert all(line.startswith(("head.", "fc.", "classifier.", "features.norm5.")) for line in report.unexpected)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps = model["maps"].eval()(image)
        whole = classifier.eval().forward_features(image)
    if name != "densenet121":  # whose last norm is no part of its maps
        torch.testing.assert_close(maps[-1], whole)
