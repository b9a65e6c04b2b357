"""What a search saves, and what it finds: ASHA beside running all trials out, and random search beside Optuna and a population.
`make bench NAME=tune`

The problem is real and small: scikit-learn's handwritten digits (1,797 of 8×8 pixels, 6 in 10 for training), a perceptron,
SGD's learning rate, momentum and weight decay. Every training is the platform's own loop, in one process and from memory:
the searches are compared, not the cluster.

- ASHA is replayed over recorded curves: the random sweeps' trials in many random orders, several at a time, by the same
  scheduler object that a sweep uses. Where it stops the trial that would have been best, its steps count on top of all the
  steps. A trial that waited goes on from its state: no step is taken twice.
- A population is replayed by the sweep's own scheduler object, too: its members train epoch by epoch, and hand on their states in memory.
- Random, Optuna and population get the same epochs and are compared by their best on the validation rows, seed by seed.

Environment: SEEDS (5), TRIALS (16), EPOCHS (9), ORDERS (400), AT_ONCE (4).
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from mapsto.config.load import load, override
from mapsto.config.tuning import PopulationScheduler
from mapsto.core.item import Item
from mapsto.core.sample import DatasetInfo
from mapsto.engine.checkpoints import from_bytes, to_bytes
from mapsto.engine.fit import Epoch, fit
from mapsto.engine.world import World
from mapsto.stages.tune_halving import Halving
from mapsto.stages.tune_optuna import Search
from mapsto.stages.tune_schedule import scheduler_of
from mapsto.stages.tune_space import draw
from mapsto.tasks.classify import Classify

from ._common import Figure, publish

SEEDS, TRIALS = int(os.environ.get("SEEDS", "5")), int(os.environ.get("TRIALS", "16"))
EPOCHS, ORDERS = int(os.environ.get("EPOCHS", "9")), int(os.environ.get("ORDERS", "400"))
AT_ONCE = int(os.environ.get("AT_ONCE", "4"))
METRIC, BATCH = "top1", 32
RECIPE = f"""
name: bench-tune
root: /nowhere
data: {{train: {{source: /nowhere}}}}
task: {{kind: classify, image_size: 8, model: {{name: mlp, widths: [64], mean: [0.31, 0.31, 0.31], std: [0.38, 0.38, 0.38]}}}}
train: {{epochs: {EPOCHS}, batch_size: {BATCH}, drop_last: true, optimizer: {{kind: sgd, nesterov: false}}}}
tune:
  search: optuna
  trials: {TRIALS}
  scheduler: {{kind: asha}}
  space:
    train.optimizer.lr: {{kind: loguniform, low: 1.0e-4, high: 3.0}}
    train.optimizer.momentum: {{kind: uniform, low: 0.0, high: 0.98}}
    train.optimizer.weight_decay: {{kind: loguniform, low: 1.0e-6, high: 0.1}}
"""
NOTHING: dict[str, Any] = {"trial": {"overrides": {}}}
Curve = list[float]
Arrays = dict[str, np.ndarray]


class Enough(Exception):
    """The epochs asked for are done."""


class Problem:
    """The digits, and the training of one setting on them."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.repeat((digits.images * 15.9).astype(np.uint8)[..., None], 3, axis=3)
        order = np.random.default_rng(0).permutation(len(images))
        cut = len(images) * 6 // 10
        self.train, self.val = (
            {"image": images[i], "label": digits.target[i], "row_id": i, "valid": np.ones(len(i), bool)}
            for i in (order[:cut], order[cut:])
        )
        self.recipe = load(RECIPE)
        self.steps = cut // BATCH
        info = DatasetInfo("memory://", "0", tuple("0123456789"), {"train": cut}, ("image", "label", "row_id"))
        self.task = Classify(self.recipe.task, {"train": info})  # type: ignore[arg-type]

    def run(
        self, overrides: dict[str, Any], seed: int, state: bytes | None = None, epochs: int = EPOCHS
    ) -> tuple[Curve, bytes]:
        """Train from the start, or from a state, up to the end of epoch `epochs`: the curve from epoch 1 on, and the state.
        A setting that diverges has scored 0 since, and has no state."""
        import torch

        from mapsto.core.errors import UserError

        config = override(self.recipe, {**overrides, "train.seed": seed}).train
        resume = from_bytes(state) if state else None
        torch.manual_seed(seed)
        model, last, curve = self.task.build({}), state or b"", []
        start = resume["epoch"] if resume else 0

        def on_epoch(epoch: Epoch) -> None:
            nonlocal last, curve
            curve = [record[f"val/{METRIC}"] for record in epoch.state()["history"]]
            if epoch.number == epochs:
                last = to_bytes(epoch.state())
                raise Enough

        try:
            fit(self.task, model, config, self._items(seed, start), World(), self.steps, resume, on_epoch)
        except Enough:
            pass
        except UserError:  # not finite
            curve, last = curve + [0.0] * (epochs - len(curve)), b""
        return curve, last

    def _items(self, seed: int, start: int) -> Iterator[tuple[Item, Arrays]]:
        rows = len(self.train["label"])
        for epoch in range(start, EPOCHS):
            order = np.random.default_rng([seed, epoch]).permutation(rows)
            for step in range(self.steps):
                take = order[step * BATCH : (step + 1) * BATCH]
                item = Item("train", epoch, epoch * self.steps + step, 0, True, step + 1 == self.steps)
                yield item, {name: values[take] for name, values in self.train.items()}
            yield Item("val", epoch, (epoch + 1) * self.steps, 0, False, True), self.val


def random_search(problem: Problem, seed: int) -> list[Curve]:
    config = problem.recipe.tune.model_copy(update={"seed": seed, "search": "random"})  # type: ignore[union-attr]
    return [problem.run(overrides, seed)[0] for overrides in draw(config)]


def optuna_search(problem: Problem, seed: int) -> list[Curve]:
    config = problem.recipe.tune.model_copy(update={"seed": seed})  # type: ignore[union-attr]
    search, curves = Search(config, {METRIC: "max"}, [], []), []
    for number in range(TRIALS):
        curves.append(problem.run(search.suggest(str(number))["trial"]["overrides"], seed)[0])
        search.on_trial_complete(str(number), {METRIC: curves[-1][-1]})
    return curves


class Member:
    """A trial of a population as Ray's scheduler asks for one: between two epochs, with its state in memory."""

    experiment_tag, temporary_state = "", SimpleNamespace(saving_to=None)

    def __init__(self, number: int, overrides: dict[str, Any]) -> None:
        self.trial_id, self.status, self.curve = str(number), "PAUSED", Curve()
        self.config: dict[str, Any] = {"trial": {"overrides": overrides, "member": number, "turn": 0}}
        self.checkpoint: bytes | None = None
        config = SimpleNamespace(num_to_keep=None, checkpoint_score_attribute=None)
        self.manager = SimpleNamespace(checkpoint_config=config, _latest_checkpoint_result=None)
        self.run_metadata, self.evaluated_params = SimpleNamespace(checkpoint_manager=self.manager), dict[str, Any]()

    def is_finished(self) -> bool:
        return self.status == "TERMINATED"

    def set_experiment_tag(self, tag: str) -> None:
        pass

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config

    def take(self) -> None:
        """Go on from the state that the scheduler has handed over, if any."""
        if (handed := self.manager._latest_checkpoint_result) is not None:
            self.checkpoint, self.manager._latest_checkpoint_result = handed.checkpoint, None


class Controller:
    """What the scheduler asks Ray Tune's loop for."""

    search_alg = None

    def __init__(self, members: list[Member]) -> None:
        self.members = members

    def get_trials(self) -> list[Member]:
        return self.members

    def get_live_trials(self) -> list[Member]:
        return [each for each in self.members if not each.is_finished()]


def population(problem: Problem, seed: int) -> list[Curve]:
    """All members epoch by epoch, under the scheduler that a sweep uses; one that diverges has left the population, as there."""
    given = PopulationScheduler(kind="pbt")
    config = problem.recipe.tune.model_copy(update={"seed": seed, "search": "random", "scheduler": given})  # type: ignore[union-attr]
    members = [Member(number, overrides) for number, overrides in enumerate(draw(config), 1)]
    scheduler, controller = scheduler_of(config, METRIC, "max", EPOCHS), Controller(members)
    for each in members:
        scheduler.on_trial_add(controller, each)  # type: ignore[arg-type]
    for epoch in range(1, EPOCHS + 1):
        for each in controller.get_live_trials():
            each.take()
            overrides = each.config["trial"]["overrides"]
            each.curve, each.checkpoint = problem.run(overrides, seed, each.checkpoint, epoch)
            result = {"epoch": epoch, METRIC: each.curve[-1], "uri": "here" if epoch == EPOCHS else ""}
            if not each.checkpoint:
                each.status = "TERMINATED"
                result["failed"] = "diverged"
            scheduler.on_trial_result(controller, each, result)  # type: ignore[arg-type]
        scheduler.choose_trial_to_run(controller)  # type: ignore[arg-type]  # exchanges where the last one to come diverged
    return [each.curve + [0.0] * (EPOCHS - len(each.curve)) for each in members]


class Floor:
    """What ASHA's scheduler asks Ray Tune's loop for; it is its search, too, which gives the trials in turn."""

    def __init__(self, curves: list[Curve]) -> None:
        self.left = [
            SimpleNamespace(trial_id=str(i), curve=c, age=0, config=NOTHING, status="") for i, c in enumerate(curves)
        ]
        self.search_alg, self.running = self, list[Any]()

    def is_finished(self) -> bool:
        return not self.left

    def pause_trial(self, trial: Any, should_checkpoint: bool = True) -> None:
        self.running.remove(trial)

    def stop_trial(self, trial: Any) -> None:
        self.scheduler.on_trial_remove(self, trial)

    def fill(self, scheduler: Halving) -> None:
        """Who begins, where there is room, or goes on, while there is a place."""
        self.scheduler = scheduler
        while True:
            if self.left and scheduler.room():
                scheduler.on_trial_add(self, chosen := self.left.pop(0))
            elif (chosen := scheduler.choose_trial_to_run(self)) is None:
                return
            self.running.append(chosen)


def asha(problem: Problem, curves: list[Curve], seed: int) -> tuple[int, float]:
    """(epochs trained, best value found) over the curves in this order, `AT_ONCE` trials at a time."""
    scheduler: Any = scheduler_of(problem.recipe.tune, METRIC, "max", EPOCHS)  # type: ignore[arg-type]
    scheduler.at_once = AT_ONCE
    floor = Floor([curves[i] for i in np.random.default_rng(seed).permutation(len(curves))])
    spent, best = 0, -math.inf
    floor.fill(scheduler)
    while floor.running:
        for each in list(floor.running):
            each.age += 1
            spent += 1
            value = each.curve[each.age - 1]
            over = each.age == EPOCHS
            result = {"epoch": each.age, METRIC: value, "uri": "here" if over else ""}
            scheduler.on_trial_result(floor, each, result)
            if over:
                best = max(best, value)
                floor.running.remove(each)
                scheduler.on_trial_complete(floor, each, result)
        floor.fill(scheduler)
    return spent, best


def replayed(problem: Problem, sweeps: list[list[Curve]]) -> tuple[list[float], float, float]:
    """Over all sweeps and orders: the ratios of epochs, the share that kept the best, the points lost on the average."""
    ratios, kept, lost = [], [], []
    for curves in sweeps:
        everything, best = len(curves) * EPOCHS, max(curve[-1] for curve in curves)
        for order in range(ORDERS):
            spent, found = asha(problem, curves, order)
            kept.append(found == best)
            lost.append(100 * (best - max(found, 0.0)))
            ratios.append((spent + (0 if kept[-1] else everything)) / everything)
    return ratios, statistics.mean(kept), statistics.mean(lost)


def effect(ours: list[float], theirs: list[float]) -> tuple[float, str]:
    """The mean difference in points, seed by seed, and its 95 % interval (Student's t)."""
    from scipy.stats import t

    differences = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return mean, "one seed: no interval"
    half = float(t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / math.sqrt(len(differences))
    return mean, f"95 % interval {mean - half:+.2f} to {mean + half:+.2f} over {len(differences)} seeds"


def main() -> None:
    problem = Problem()
    contestants: dict[str, Callable[[Problem, int], list[Curve]]] = {
        "random": random_search, "Optuna": optuna_search, "population": population
    }  # fmt: skip
    sweeps: dict[str, list[list[Curve]]] = {name: [] for name in contestants}
    for seed in range(SEEDS):
        for name, search in contestants.items():
            start = time.perf_counter()
            sweeps[name].append(search(problem, seed))
            best = max(curve[-1] for curve in sweeps[name][-1])
            print(f"  seed {seed}  {name}: best {METRIC} {best:.4f}, {time.perf_counter() - start:.1f} s", flush=True)
    ratios, kept, lost = replayed(problem, sweeps["random"])
    best = {name: [max(curve[-1] for curve in curves) for curves in found] for name, found in sweeps.items()}
    how = f"{TRIALS} trials of {EPOCHS} epochs, {AT_ONCE} at a time, {SEEDS} sweeps in {ORDERS} orders each"
    figures = [
        Figure("ASHA's steps over running all out, to the same best", statistics.mean(ratios), "x", 0.5, "lower", how),
        Figure(
            "the same, median", statistics.median(ratios), "x", None, "lower", "a stopped best counts all steps on top"
        ),
        Figure("orders in which ASHA keeps the best", 100 * kept, "%", None, "higher", how),
        Figure("ASHA's loss to the best", lost, "points", None, "lower", "mean over orders; 100 points are all"),
        Figure("random's best", 100 * statistics.mean(best["random"]), "%", None, "higher", "mean over seeds"),
    ]
    for name in ("Optuna", "population"):
        mean, interval = effect(best[name], best["random"])
        figures.append(Figure(f"{name}'s best over random's", mean, "points", None, "higher", interval))
    publish("tune", figures)


if __name__ == "__main__":
    main()
