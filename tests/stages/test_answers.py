"""Settings that only say how a trained model answers: they change what is made with it, and never train it anew."""

from __future__ import annotations

from dataclasses import replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from mapsto.config.load import override
from mapsto.config.schema import recipe_model
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.registry import TASKS, load_task, task_class
from mapsto.core.sample import DatasetInfo
from mapsto.core.storage import Storage
from mapsto.serving.app import application
from mapsto.serving.options import Options
from mapsto.serving.runtimes import open_runtime
from mapsto.stages import tune_trial
from mapsto.stages.evaluate import Evaluate
from mapsto.stages.pipeline import Pipeline
from mapsto.stages.serve import serving_options
from mapsto.stages.train import Train
from mapsto.stages.tune import Tune
from mapsto.stages.tune_measure import deciding
from mapsto.stages.tune_trial import measured_otherwise

models: Any = SourceFileLoader("saved_models", str(Path(__file__).parents[1] / "serving" / "models.py")).load_module()

OTHERWISE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "detect": ({"min_score": 0.7, "segments": "polygon"}, {"nms_iou": 0.4, "max_boxes": 7, "windows": {"size": 96}}),
    "segment": ({"boundary_tolerance": 2.0}, {"windows": {"size": 64}, "measure_at": "original"}),
    "multilabel": ({"threshold": 0.3}, {}),
    "gan": ({"neighbours": 5}, {}),
    "vae": ({"neighbours": 5}, {}),
    "diffusion": ({"neighbours": 5}, {"steps": 3, "guidance": 4.0}),
    "stylize": (
        {"longest_side": 512, "overlap": 16, "lpips": {"backbone": "s3://b/alexnet.pth", "linear": "s3://b/alex.pth"}},
        {"alpha": 0.5, "styles": 2},
    ),
}
"""Other values than the defaults, of the settings that never and those that seldom make a training another."""
GIVEN: dict[str, dict[str, Any]] = {
    "detect": {"image_size": 64, "model": {"name": "fasterrcnn", "backbone": "resnet10t", "channels": 16}},
    "segment": {"image_size": 32, "classes": ["a", "b"], "model": {"widths": [4, 8]}},
    "multilabel": {"image_size": 16, "model": {"name": "mlp"}},
    "gan": {"latent": 8, "width": 8},
    "vae": {"image_size": 16, "latent": 8, "width": 8},
    "diffusion": {"image_size": 16, "widths": [4, 8], "blocks": 1, "conditional": True},
    "stylize": {
        "image_size": 32, "style_size": 32, "overlap": 8, "style_role": "train",
        "features": {"model": {"name": "cnn", "widths": [4, 8]}, "content": ["layers.4"], "style": ["layers.1"]},
    },
}  # fmt: skip


def recipe(kind: str, **task: Any) -> Any:
    given = {"kind": kind, **GIVEN[kind], **task}
    return recipe_model()(name="a", root="/tmp/nowhere", data={"train": {"source": "/tmp/none"}}, task=given)


def test_every_task_with_such_settings_is_here() -> None:
    for kind in TASKS:
        config = task_class(kind).Config
        never, seldom = OTHERWISE.get(kind, ({}, {}))
        assert (set(config.answering), set(config.measuring)) == (set(never), set(seldom)), kind
        assert {*never, *seldom} <= set(config.model_fields)


@pytest.mark.parametrize("kind", sorted(OTHERWISE))
def test_they_are_no_part_of_a_trainings_address_but_of_what_is_made_with_it(kind: str, tmp_path: Path) -> None:
    never, seldom = OTHERWISE[kind]
    plain, section = recipe(kind), Train().section
    for name, value in {**never, **seldom}.items():
        assert section(recipe(kind, **{name: value}), {}) == section(plain, {}), name
    stopped = {"train.early_stop": {"patience": 3}}
    early = section(override(plain, stopped), {})
    steered = {"train.schedule": {"kind": "plateau"}}
    for name, value in seldom.items():
        if getattr(plain.task, name) != value:
            assert section(override(recipe(kind, **{name: value}), steered), {}) != section(
                override(plain, steered), {}
            )
    if kind == "segment":
        assert section(recipe(kind, measure_at="input"), {}) == section(plain, {})
    for name, value in never.items():
        assert section(override(recipe(kind, **{name: value}), stopped), {}) == early
    for name, value in seldom.items():
        if getattr(plain.task, name) != value:
            assert section(override(recipe(kind, **{name: value}), stopped), {}) != early, name
    model = Artifact(str(tmp_path / "a" / "train" / "0"), Storage())
    model.finish(section={}, parents={}, metrics={}, digest="d")

    def address(given: Any, stage: str) -> str:
        parents = {"model": replace(model, answers=given.task.answers())}
        return Pipeline(given, lambda line: None)._placed(stage, {}, parents)[0].uri

    for stage in ("evaluate", "compress", "predict", "serve"):
        changed = recipe(kind, **never)
        assert address(changed, stage) != address(plain, stage) == address(recipe(kind), stage)


SPACE = {"train.optimizer.lr": {"kind": "uniform", "low": 0.1, "high": 0.2}}
SWEEP = {"tune": {"space": SPACE}}


@pytest.mark.parametrize("kind", sorted(OTHERWISE))
def test_a_sweep_is_another_only_where_what_it_measures_depends_on_them(kind: str) -> None:
    never, seldom = OTHERWISE[kind]
    others = {"space": SPACE, "objectives": {"another": "max"}}
    for tune, same in (
        (SWEEP["tune"], True),
        ({"space": SPACE, "metric": "another", "mode": "max"}, False),
        (others, False),
    ):
        plain = Tune().section(override(recipe(kind), {"tune": tune}), {})
        assert (Tune().section(override(recipe(kind, **never), {"tune": tune}), {}) == plain) == same
        for name, value in seldom.items():
            if getattr(recipe(kind).task, name) != value:
                assert Tune().section(override(recipe(kind, **{name: value}), {"tune": tune}), {}) != plain, name
    config = recipe(kind).task
    for goals, names in (
        ({"top1": "max"}, config.measuring),
        ({"size_mb": "min"}, ()),
        ({"top1": "max", "size_mb": "min"}, config.measuring),
        ({"boundary_f": "max"}, (*config.measuring, *config.answering)),
    ):
        assert set(deciding(config, goals, "top1")) == set(names)


def test_a_trial_that_was_trained_and_measured_otherwise_has_another_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is finished stays: it is the recipe's own training."""
    made: list[str] = []

    def make(self: Any, what: Any, artifact: Artifact, *rest: Any) -> None:
        if not artifact.complete():
            made.append(artifact.uri)
            artifact.write_json({"config": self.recipe.task.model_dump(mode="json")}, "task.json")
            artifact.finish(section={}, parents={}, metrics={}, digest="d")

    told: list[Artifact] = []
    monkeypatch.setattr(ray, "get", lambda given: given)
    monkeypatch.setattr(Pipeline, "parents", lambda self, name, options: {})
    monkeypatch.setattr(Pipeline, "_make", make)
    monkeypatch.setattr(tune_trial.Reports, "end", lambda self, recipe: told.append(self.artifact))

    def run(**task: Any) -> str:
        given = override(recipe("detect", **task), {"root": str(tmp_path)}).model_dump()
        fixed = {
            "recipe": given,
            "epochs": 2,
            "workers": 1,
            "sweep": "",
            "pauses": [],
            "goals": {"mAP": "max"},
            "primary": ("mAP", "max"),
        }
        tune_trial.trial({"trial": {"overrides": {"train.optimizer.lr": 0.1}}}, [fixed])
        return told[-1].uri

    own = run()
    assert run(min_score=0.7) == own and made == [own]
    other = run(nms_iou=0.4)
    assert other != own and run(nms_iou=0.4) == other and made == [own, other]
    assert Artifact(own, Storage()).complete() and run() == own


@pytest.mark.parametrize("kind", sorted(OTHERWISE))
def test_the_same_weights_fit_and_the_model_answers_as_it_is_told(kind: str, tmp_path: Path) -> None:
    info = DatasetInfo("memory", "0", ("a", "b"), {"train": 9}, ("image", "label", "labels", "mask", "boxes"))
    cls, (never, seldom) = task_class(kind), OTHERWISE[kind]
    made = cls(cls.Config(kind=kind, **GIVEN[kind]), {"train": info})
    saved = models.train_artifact(tmp_path, made)
    told = recipe(kind, **never, **seldom).task.answers()
    opened = open_runtime(replace(saved, answers=told))
    for name, value in {**never, **seldom}.items():
        assert getattr(opened.task.config, name) == getattr(recipe(kind, **{name: value}).task, name)
    ours, theirs = opened.model.state_dict(), made.build({}).state_dict()
    assert [(k, v.shape) for k, v in ours.items()] == [(k, v.shape) for k, v in theirs.items()]
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), open_runtime(saved).model.state_dict().values()))
    served = serving_options(recipe(kind), replace(saved, answers=told)).model_dump(mode="json", exclude_none=True)
    options = Options.of(served)
    assert load_task(Artifact(options.artifact, Storage(), options.answers)).config == opened.task.config
    assert measured_otherwise(saved, told) and not measured_otherwise(saved, made.config.answers())
    assert not measured_otherwise(Artifact(str(tmp_path / "none"), Storage()), told)


def test_a_sweep_over_them_and_an_unknown_one_are_refused(tmp_path: Path) -> None:
    space = {"task.min_score": {"kind": "choice", "values": [0.1, 0.2]}}
    with pytest.raises(UserError, match=r"tune.space.task.min_score: it only says how a trained model answers"):
        Tune().needs(override(recipe("detect"), {"tune": {"space": space}}), {})
    saved = models.train_artifact(tmp_path, models.task("segment"))
    with pytest.raises(UserError, match=r"answers.measure_ad: nothing that a trained segment can change, did you mean"):
        load_task(replace(saved, answers={"measure_ad": "input"}))
    wrong = {"measure_at": "nowhere", "boundary_tolerance": -1}
    said = r"^answers.boundary_tolerance: Input should be greater than 0; measure_at: Input should be 'original' or 'input'$"
    with pytest.raises(UserError, match=said):
        load_task(replace(saved, answers=wrong))
    with pytest.raises(UserError, match=said):
        application(Options(artifact=saved.uri, name="m", answers=wrong), Storage())
    assert Evaluate.answers


def test_a_trained_model_is_handed_on_with_the_recipes_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(Pipeline, "parents", lambda self, name, options: {})
    monkeypatch.setattr(Pipeline, "_make", lambda self, what, artifact, *rest: made.append(artifact.uri))
    first = Pipeline(recipe("detect"), lambda line: None).produce("train")
    second = Pipeline(recipe("detect", min_score=0.8), lambda line: None)
    assert second.produce("train") == first and second.produce("train").answers["min_score"] == 0.8
    assert first.answers["min_score"] == 0.3 and made == [first.uri, first.uri]
