"""`mapsto tune --apply`: which settings are taken, and where the recipe goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mapsto.config.load import load
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.stages.tune_apply import apply, settings
from mapsto.stages.tune_trials import Trial, Trials

TEXT = """\
# a comment
name: x
root: /nowhere
data: {train: {source: /nowhere}}
task: {kind: classify, image_size: 32, model: {name: airbench}}
train: {epochs: 6, optimizer: {lr: 0.1}} # another
tune:
  scheduler: {kind: %s}
  space: {train.optimizer.lr: {kind: loguniform, low: 0.01, high: 1}}
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Artifact:
    artifact = Artifact(str(tmp_path / "sweep"), Storage())
    trials = Trials(artifact, {"top1": "max"}, print, 3)
    for number, value in enumerate((0.5, 0.7, 0.6), 1):
        overrides = {"train.optimizer.lr": number / 10}
        trials.found[number] = Trial(number, overrides, 3, {"top1": value}, f"/models/{number}", finished=True)
    trials.found[4] = Trial(4, {"train.optimizer.lr": 1.0}, failed="diverged", finished=True)
    artifact.write_json(trials.rows(), "trials.json")
    artifact.write_json({"overrides": {"train.optimizer.lr": 0.2}}, "best.json")
    return artifact


def test_the_winner_becomes_a_recipe(sweep: Artifact, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(TEXT % "asha")
    given = ["train.batch_size=32"]
    recipe = load(file, given)
    target = apply(str(file), given, recipe, settings(sweep, recipe), str(tmp_path / "best.yaml"))
    written = Path(target).read_text()
    assert written == (
        "# a comment\nname: x\nroot: /nowhere\ndata: {train: {source: /nowhere}}\n"
        "task: {kind: classify, image_size: 32, model: {name: airbench}}\n"
        "train: {batch_size: 32, epochs: 6, optimizer: {lr: 0.2}} # another\n"
    )
    assert file.read_text() == TEXT % "asha"


def test_another_trial_may_be_taken(sweep: Artifact) -> None:
    recipe = load(TEXT % "none")
    assert settings(sweep, recipe, 3) == {"train.optimizer.lr": 0.3}
    with pytest.raises(UserError, match="--trial 9: the sweep has trials 1 to 4"):
        settings(sweep, recipe, 9)
    with pytest.raises(UserError, match=r"--trial 4: it failed \(diverged\)"):
        settings(sweep, recipe, 4)


def test_of_a_population_the_weights_are_taken(sweep: Artifact) -> None:
    found = settings(sweep, load(TEXT % "pbt"), 3)
    assert found == {"train.optimizer.lr": 0.3, "train.init.weights": "/models/3", "train.epochs": 0}
