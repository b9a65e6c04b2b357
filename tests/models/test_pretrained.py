"""Pretrained weights: found by a model's plain name, and fetched for training alone. Nothing is fetched here."""

from __future__ import annotations

from typing import Any

import pytest
import timm

from mapsto.core.errors import UserError
from mapsto.core.registry import task_class
from mapsto.core.sample import DatasetInfo
from mapsto.models.backbones import weights_exist

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
