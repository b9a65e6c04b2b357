"""`task.model` of classification: its settings, its pixels' normalisation; distillation by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import save

from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.registry import load_task, save_task
from mapsto.core.sample import DatasetInfo
from mapsto.core.storage import Storage
from mapsto.core.task import Context
from mapsto.models.mixing import Mixing
from mapsto.tasks.classify import Classify, ClassifyConfig
from mapsto.tasks.classify_model import Model, network

INFO = DatasetInfo("memory://", "0", ("cat", "dog", "fox"), {"train": 9}, ("image", "label"))
CONTEXT = Context(0, 0, 10, torch.Generator().manual_seed(0), 0, 1, lambda tensor: tensor)
BATCH = {
    "image": torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    "label": torch.tensor([0, 1, 2, 0, 1]),
    "valid": torch.tensor([True, True, True, True, False]),
}


def classify(info: DatasetInfo = INFO, **config: Any) -> Classify:
    settings = {"kind": "classify", "image_size": 8, "model": {"name": "mlp", "widths": [6]}, **config}
    return Classify(ClassifyConfig(**settings), {"train": info})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "resnet18", "kernel": 5}, "kernel is a setting of cnn, not of 'resnet18'"),
        ({"name": "vgg11", "options": {"pretrained_cfg": "x"}}, "options: 'pretrained_cfg' follows from"),
        ({"name": "mlp", "pooling": "none"}, "pooling is a setting of cnn, not of 'mlp'"),
        ({"name": "lstm", "activation": "tanh"}, "activation is a setting of mlp, cnn"),
        ({"name": "cnn", "widths": [0]}, "at least 1"),
        ({"name": "cnn", "activation": "swish"}, "activation"),
        ({"mean": [0.5, 0.5, 0.5]}, "go together"),
        ({"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0]}, "greater than 0"),
    ],
)
def test_settings_that_the_model_has_not_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Model(**model)


def test_a_models_settings_survive_saving(tmp_path: Path) -> None:
    task = classify(model={"name": "cnn", "widths": [4, 4], "kernel": 5, "pooling": "average", "activation": "tanh"})
    save_task(task, Artifact(str(tmp_path), Storage()))
    back = load_task(Artifact(str(tmp_path), Storage()))
    assert back.config == task.config
    net = back.build({}).net
    assert [type(layer).__name__ for layer in net.layers] == ["Conv2d", "Tanh", "AvgPool2d"] * 2
    assert net.layers[0].kernel_size == (5, 5)


def test_pixels_are_normalised_as_the_recipe_says() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    net = network(Model(name="mlp", mean=mean, std=std), INFO, len(INFO.classes), 8)
    expected = (BATCH["image"].float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    np.testing.assert_allclose(net.normalize(BATCH["image"]), expected.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)


def teacher(folder: Path, **config: Any) -> tuple[Artifact, torch.nn.Module]:
    """A teacher's train artifact."""
    torch.manual_seed(3)
    artifact = Artifact(str(folder / "train" / "abc"), Storage())
    task = classify(**{"model": {"name": "mlp", "widths": [9]}, **config})
    module = task.build({})
    save_task(task, artifact)
    artifact.write(save(module.state_dict()), "model.safetensors")
    artifact.write_json({"kind": "torch", "file": "model.safetensors", "precision": "fp32"}, "variant.json")
    return artifact, module.eval()


def test_distillation_is_hintons_loss(tmp_path: Path) -> None:
    artifact, module = teacher(tmp_path)
    task = classify(distill={"teacher": artifact.uri, "temperature": 3, "alpha": 0.7})
    assert task.config.artifacts() == {"distill.teacher": artifact.uri}
    model = task.build({"task.distill.teacher": artifact})
    total, count, logs = task.phases(model)[0].loss(model, BATCH, CONTEXT)
    with torch.no_grad():
        ours, theirs = model(BATCH["image"])[:4], module(BATCH["image"])[:4]
    p, q = (theirs / 3).softmax(1), (ours / 3).softmax(1)
    soft = 9 * (p * (p.log() - q.log())).sum()
    hard = F.cross_entropy(ours, BATCH["label"][:4], reduction="sum")
    assert float(total.detach()) == pytest.approx(float(0.7 * soft + 0.3 * hard), rel=1e-5)
    assert float(logs["distill"]) == pytest.approx(float(soft), rel=1e-5)
    assert float(count) == 4
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert set(model.state_dict()) == set(classify().build({}).state_dict())  # no teacher in the checkpoint


def test_a_teacher_sees_the_mixed_pixels_and_the_labels_are_mixed_and_smoothed(tmp_path: Path) -> None:
    artifact, module = teacher(tmp_path)
    task = classify(
        distill={"teacher": artifact.uri, "temperature": 2, "alpha": 0.5}, augment={"mixup": 0.4}, label_smoothing=0.1
    )
    model = task.build({"task.distill.teacher": artifact})
    total, _, logs = task.phases(model)[0].loss(model, BATCH, CONTEXT)
    image, target = Mixing(0.4)(BATCH["image"], BATCH["label"], BATCH["valid"], 3, CONTEXT.shared)
    assert not torch.equal(image[:4], BATCH["image"][:4].float())
    with torch.no_grad():
        ours, theirs = model(image)[:4], module(image)[:4]
    p, q = (theirs / 2).softmax(1), (ours / 2).softmax(1)
    soft = 4 * (p * (p.log() - q.log())).sum()
    hard = -((target[:4] * 0.9 + 0.1 / 3) * ours.log_softmax(1)).sum()
    assert float(total.detach()) == pytest.approx(float(0.5 * soft + 0.5 * hard), rel=1e-4)
    assert float(logs["distill"]) == pytest.approx(float(soft), rel=1e-4)


def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    larger, _ = teacher(tmp_path / "a", image_size=16)
    other, _ = teacher(tmp_path / "b", info=DatasetInfo("m", "0", ("cat", "dog"), {"train": 9}, ("image", "label")))
    onnx, _ = teacher(tmp_path / "c")
    onnx.write_json({"kind": "onnx", "file": "model.onnx", "precision": "int8"}, "variant.json")
    for artifact, message in (
        (larger, "its task.image_size is 16, the student's 8"),
        (other, r"its classes are cat, dog \(2\), the student's cat, dog, fox \(3\)"),
        (onnx, "a model of kind 'onnx'; give a train artifact"),
    ):
        task = classify(distill={"teacher": artifact.uri})
        model = task.build({"task.distill.teacher": artifact})
        with pytest.raises(UserError, match=message):
            task.phases(model)


def test_rows_without_a_label_are_refused_before_training():
    info = replace(INFO, rows={"train": 8, "val": 4}, counts={"train": {"a": 4, "b": 3}, "val": {"a": 2, "b": 2}})
    with pytest.raises(UserError, match="1 of 8 rows of train have no label; label them"):
        Classify(ClassifyConfig(kind="classify"), {"train": info}).check()
    Classify(ClassifyConfig(kind="classify"), {"train": replace(info, counts={})}).check()


def test_options_are_part_of_a_trainings_address_only_where_there_are_some():
    from mapsto.tasks.classify_model import Model

    assert "options" not in Model().model_dump(mode="json") and Model(**Model().model_dump()) == Model()
    given = Model(options={"mlp_ratio": 0.125})
    assert given.model_dump(mode="json")["options"] == {"mlp_ratio": 0.125} and Model(**given.model_dump()) == given
