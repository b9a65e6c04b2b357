"""Sweeps over Ray Tune as it is: a population, objectives, and what a resume finds."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from ray.util import placement_group_table

from mapsto.config.load import load
from mapsto.core.artifact import Artifact
from mapsto.core.errors import UserError
from mapsto.core.storage import Storage
from mapsto.stages.pipeline import Pipeline

RECIPE = """
name: sweep
root: {root}
data: {{train: {{source: {source}}}}}
task: {{kind: classify, model: {{name: airbench_tiny}}, image_size: 16}}
train: {{epochs: 3, batch_size: 16, workers: 1, cpus_per_worker: 0.5, optimizer: {{kind: sgd, lr: 0.01}}, seed: 1}}
tune: {tune}
"""


def sweep(folder: Path, source: Path, tune: dict[str, Any], *settings: str) -> tuple[Any, Artifact, list[str]]:
    text = RECIPE.format(root=folder / "root", source=source, tune=json.dumps(tune))
    recipe, said = load(text, settings), []
    return recipe, Pipeline(recipe, said.append).produce("tune"), said


def lr(low: float, high: float) -> dict[str, Any]:
    return {"train.optimizer.lr": {"kind": "loguniform", "low": low, "high": high}}


def test_a_population_goes_on_from_the_weights_of_its_best(tmp_path: Path, scenes: Path, cluster: str) -> None:
    """Ray exploits nothing, and says nothing, when reports carry no Tune checkpoint; in an artifact of its old name a
    member would go on from its own weights."""
    space = {"train.optimizer.lr": {"kind": "choice", "values": [1e-7, 0.02]}}
    tune = {"search": "grid", "scheduler": {"kind": "pbt", "every": 1, "quantile": 0.5, "resample": 0}, "space": space}
    _, artifact, said = sweep(tmp_path, scenes, tune)
    trials = artifact.read_json("trials.json")
    assert [t["state"] for t in trials] == ["complete", "complete"], said
    changes = [(t, s) for t in trials for s in t["settings"] if s["donor"]]
    assert changes, said
    for each, change in changes:
        assert change["donor"] != each["number"]
        assert any("goes on from trial" in line for line in said)
        donor = next(t for t in trials if t["number"] == change["donor"])
        assert [change["epoch"], change["state"]] in donor["states"]  # by the hash of the state, weights included
        assert [change["epoch"], change["state"]] not in each["states"]
    histories = {t["number"]: history(t["uri"]) for t in trials}
    each, change = max(changes, key=lambda pair: pair[1]["epoch"])
    # the donor's epochs are now this member's past, to the bit: its weights came along, not its settings only
    assert change["epoch"] > 0
    past = [r["train/loss"] for r in histories[each["number"]] if r["epoch"] <= change["epoch"]]
    assert past == [r["train/loss"] for r in histories[change["donor"]] if r["epoch"] <= change["epoch"]]
    for each in trials:
        last = histories[each["number"]][-1]
        assert last["lr"] == pytest.approx(each["overrides"]["train.optimizer.lr"])
        assert [epoch for epoch, _ in each["curve"]] == [1, 2, 3]
    best = artifact.read_json("best.json")
    assert best["overrides"]["train.init.weights"] == best["trial_uri"]
    kept = [p.name for p in (tmp_path / "root/sweep/train").iterdir()]
    assert sorted(kept) == sorted(t["uri"].rsplit("/", 1)[-1] for t in trials)  # what they left on their way is gone
    assert not Path(artifact.uri, "ray").exists()

    chosen = load(artifact.read("best.yaml").decode())
    assert (chosen.train.epochs, chosen.train.init.weights) == (0, best["trial_uri"])


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory, scenes: Path, cluster: str) -> Artifact:
    """A sweep of two models over two objectives; nothing moves, so that each trial stops early, after its second epoch."""
    names = {"task.model.name": {"kind": "choice", "values": ["airbench_tiny", "airbench"]}}
    tune = {
        "search": "optuna", "trials": 2, "concurrent": 1, "objectives": {"size_mb": "min", "latency_p50_ms": "min"}, "space": names | lr(1e-9, 1e-8)
    }  # fmt: skip
    _, artifact, said = sweep(
        tmp_path_factory.mktemp("still"), scenes, tune, "train.early_stop={patience: 0}", "train.epochs=6"
    )
    assert [t["state"] for t in artifact.read_json("trials.json")] == ["complete"] * 2, said
    return artifact


def test_objectives_give_a_front(still: Artifact) -> None:
    trials = still.read_json("trials.json")
    for each in trials:
        size = Path(each["uri"], "model.safetensors").stat().st_size
        assert each["values"]["size_mb"] == pytest.approx(size / 1e6, rel=1e-3)
        assert 0 < each["values"]["latency_p50_ms"] < math.inf
    assert any(t["front"] for t in trials)
    assert "Pareto front" in still.read("report.html").decode()


def test_early_stopping_counts_the_best_epoch(still: Artifact) -> None:
    for each in still.read_json("trials.json"):
        records = history(each["uri"])
        assert each["epochs"] == len(records) < 6
        assert each["value"] == max(r["val/top1"] for r in records)


def test_a_population_that_does_not_fit_is_refused(tmp_path: Path, scenes: Path, cluster: str) -> None:
    tune = {"trials": 12, "scheduler": {"kind": "pbt"}, "space": lr(1e-3, 1e-1)}
    with pytest.raises(
        UserError, match=r"tune.trials 12: a population trains at once, .* hold (\d): set tune.trials=\1"
    ):
        sweep(tmp_path, scenes, tune)


@pytest.mark.parametrize("search", ["grid", "optuna"])
def test_a_trial_that_waited_goes_on_from_its_checkpoint(
    tmp_path: Path, scenes: Path, cluster: str, search: str
) -> None:
    """Of four, two go on after an epoch and one of these after three; one at a time, so that all have to wait."""
    listed = {"train.optimizer.lr": {"kind": "choice", "values": [0.02, 1e-8, 1e-7, 1e-6]}}
    values = listed if search == "grid" else lr(1e-3, 1e-2)
    tune = {
        "search": search, "trials": 4, "workers": 1, "concurrent": 1, "scheduler": {"kind": "asha"}, "space": values,
        "metric": "nll", "mode": "min",
    }  # fmt: skip
    _, artifact, said = sweep(tmp_path, scenes, tune, "train.epochs=4")
    trials = artifact.read_json("trials.json")
    assert sorted((t["state"], t["epochs"]) for t in trials) == [
        ("complete", 4),
        ("stopped early", 1),
        ("stopped early", 1),
        ("stopped early", 3),
    ], said
    for each in trials:
        assert [epoch for epoch, _ in each["curve"]] == list(range(1, each["epochs"] + 1))
    (whole,) = [t for t in trials if t["state"] == "complete"]
    found = [
        json.loads(text)
        for p in (tmp_path / "root/sweep/train").glob("*/history.jsonl")
        for text in p.read_text().splitlines()[:1]
    ]
    firsts, times = sorted(record["time"] for record in found), [record["time"] for record in history(whole["uri"])]
    assert len(firsts) == 4 and times == sorted(times)
    mine = firsts.index(times[0])
    assert search == "optuna" or mine == 0
    if mine < 3:  # it waited, and its first epoch is the one of then
        assert times[1] > firsts[mine + 1]


def test_a_trial_of_two_workers_that_is_stopped_leaves_its_place_to_the_next(
    tmp_path: Path, scenes: Path, cluster: str
) -> None:
    """Ray frees a stopped trial's placement group through an address that it guesses: where it guesses wrong, the next trial waits
    for ever."""
    values = {"train.optimizer.lr": {"kind": "choice", "values": [0.02, 1e-8, 0.03]}}
    tune = {
        "search": "grid", "workers": 2, "concurrent": 1, "scheduler": {"kind": "asha", "reduction": 2}, "space": values,
        "metric": "nll", "mode": "min",
    }  # fmt: skip
    _, artifact, said = sweep(tmp_path, scenes, tune, "train.cpus_per_worker=0.4", "train.epochs=2")
    states = [t["state"] for t in artifact.read_json("trials.json")]
    assert states == ["complete", "stopped early", "complete"], said
    deadline = time.monotonic() + 60
    while held := [g for g in placement_group_table().values() if g["state"] != "REMOVED"]:
        assert time.monotonic() < deadline, held
        time.sleep(0.5)


def history(uri: str) -> list[dict[str, float]]:
    return [json.loads(text) for text in Artifact(uri, Storage()).read("history.jsonl").splitlines()]
