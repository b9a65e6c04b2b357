"""Pretrained weights: found by a model's plain name, and fetched for training alone. Nothing is fetched here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch

from mapsto.config.training import TrainConfig
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.registry import task_class
from mapsto.core.sample import DatasetInfo
from mapsto.core.storage import Storage
from mapsto.models.backbones import classifier, weights_exist
from mapsto.models.fetched import fetched
from mapsto.stages.train_worker import initialise

INFO = DatasetInfo("memory://", "0", ("a", "b"), {"train": 8}, ("image", "label", "boxes", "box_labels", "mask"))


@pytest.mark.parametrize("name", ["resnet50", "vgg19", "resnet18.a1_in1k"])
def test_a_plain_name_has_weights_and_so_has_a_tag(name: str) -> None:
    weights_exist(name, True)


def test_an_unknown_tag_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no pretrained weights for 'resnet18\.best'; it has .*resnet18\.a1_in1k"):
        weights_exist("resnet18.best", True)
    weights_exist("resnet18.best", False)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("classify", {"model": {"name": "resnet10t"}}),
        ("embed", {"model": {"name": "resnet10t"}}),
        ("detect", {"model": {"name": "ssd", "backbone": "resnet10t"}}),
        ("detect", {"model": {"name": "fasterrcnn", "backbone": "resnet10t"}}),
        ("segment", {"model": {"name": "deeplabv3plus", "backbone": "resnet10t"}, "classes": ["a", "b"]}),
    ],
)
def test_weights_are_fetched_for_training_and_not_where_a_trained_model_is_opened(
    kind: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    made = timm.create_model

    def create(name: str, pretrained: bool = False, **more: Any) -> Any:
        asked.append(pretrained)
        return made(name, **more)

    monkeypatch.setattr(timm, "create_model", create)
    settings = settings | {"model": settings["model"] | {"pretrained": True}}
    cls = task_class(kind)
    task = cls(cls.Config.model_validate({"kind": kind, "image_size": 64} | settings), {"train": INFO})
    task.build({})
    assert asked and not any(asked)
    asked.clear()
    task.build({"data.train": object()})  # type: ignore[dict-item]
    assert any(asked)


def test_what_timms_weights_matched_is_told(tmp_path: Path) -> None:
    saved = timm.create_model("resnet18")
    torch.save(saved.state_dict(), tmp_path / "resnet18.pth")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "resnet18.pth")}}
    model = torch.nn.ModuleDict(
        {"net": classifier("resnet18", 7, image_size=32, pretrained=True, small_input=True, options=overlay)}
    )
    report = fetched(model)
    assert report
    assert report.source.startswith("timm's resnet18.")
    assert set(report.missing) == {
        "net.conv1.weight",
        "net.fc.weight",
        "net.fc.bias",
    }  # a small stem, and other classes
    have = saved.state_dict()
    assert {name.removeprefix("net.") for name in report.matched} == have.keys() - {
        "conv1.weight",
        "fc.weight",
        "fc.bias",
    }
    found = model.state_dict()
    assert all(torch.equal(found[name], have[name.removeprefix("net.")]) for name in report.matched)
    setup = SimpleNamespace(config=TrainConfig(), parents={}, artifact=Artifact(str(tmp_path / "a"), Storage()))
    initialise(model, setup)  # type: ignore[arg-type]
    told = setup.artifact.read_json("init.json")
    assert told["lines"][0] == f"init: {len(report.matched)} tensors of {report.source} matched"
    assert fetched(classifier("resnet18", 7, image_size=32)) is None
