"""Tune: search the recipe's space with Ray Tune; each trial is a train artifact, and the best one's recipe is kept."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

from ..config.document import dump
from ..config.load import override
from ..config.tuning import walk
from ..core.artifact import digest
from ..core.errors import UserError
from ..core.stage import Done, Job
from ..runtime.session import connect, scratch
from .log import logged
from .train import Train, defaulted, task_of
from .tune_measure import MEASURED, deciding, exported, goals_of
from .tune_page import page
from .tune_space import draw
from .tune_trial import trial
from .tune_trials import Trial, Trials

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")


class Tune:
    """A trial's train artifact has the address of its settings, so a setting is never trained twice. A sweep that was
    interrupted goes on: finished trials are read, interrupted ones resumed, the search and the scheduler told of them."""

    name: ClassVar[str] = "tune"
    about: ClassVar[str] = "search the settings of training: random, grid, Optuna or a population, with early stopping"

    def section(self, recipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        tune = recipe.tune.model_dump(mode="json", exclude={"concurrent", "workers"})
        section = {"tune": tune, **Train().section(recipe, options), "task": recipe.task.trained(chosen=True)}
        told = deciding(recipe.task, goals_of(recipe.tune))
        return section | ({"answers": told} if set(told) - set(recipe.task.measuring) else {})

    def needs(self, recipe: Any, options: Mapping[str, Any]) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        if recipe.tune is None:
            raise UserError("tune: the recipe has no `tune` section")
        answers = recipe.task.answers()
        for _, path, _, _ in walk(recipe.tune.space):
            name = path.removeprefix("task.").split(".")[0]
            if path.startswith("task.") and name in answers:
                raise UserError(
                    f"tune.space.{path}: it only says how a trained model answers, so its trials would train the same; leave it "
                    "out, and compare evaluations (mapsto evaluate), which need no training"
                )
        return Train().needs(recipe, options)

    def run(self, job: Job) -> Done:
        with logged(job) as told:
            return self._run(told)

    def _run(self, job: Job) -> Done:
        recipe, artifact = job.recipe, job.artifact
        goals, primary = objectives(job)
        population = recipe.tune.scheduler.kind == "pbt"
        epochs = recipe.tune.epochs or recipe.train.epochs
        trials = Trials(artifact, goals, job.say, epochs, population=population)
        sweep(job, trials, primary)
        if cut := [t for t in trials.all() if t.number in trials.cut]:
            raise UserError(
                f"tune: {len(cut)} of {len(trials.all())} trials were cut off, which lies in none of their settings: "
                f"{cut[0].failed}; the same command runs them again, and reads the others",
                outside=True,
            )
        best = trials.best()
        if best is None:
            reasons = sorted({t.failed for t in trials.all() if t.failed})
            raise UserError(
                f"tune: no trial came to an end: {reasons[0] if reasons else f'none was measured by {trials.metric} on val'}"
            )
        trials.clear()
        artifact.write_json(trials.rows(), "trials.json")
        chosen = chosen_settings(best, population=population)
        artifact.write_json(
            {"overrides": chosen, "metric": best.values[trials.metric], "values": best.values, "trial_uri": best.uri},
            "best.json",
        )
        artifact.write(dump(override(recipe, {**chosen, "tune": None}).public()).encode(), "best.yaml")
        artifact.write(page(recipe, trials, best).html().encode(), "report.html")
        shown = ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in best.overrides.items()
        )
        front = {"front": len(trials.front())} if len(goals) > 1 else {}
        metrics = {**best.values, "trials": len(trials.all()), **front, "best": shown}
        return Done(metrics, digest(artifact.read("best.json")))


def chosen_settings(best: Trial, *, population: bool) -> dict[str, Any]:
    """What the recipe goes on with: the trial's settings; of a population, whose settings changed on the way, its weights."""
    if population and best.uri:
        return {**best.overrides, "train.init.weights": best.uri, "train.epochs": 0}
    return best.overrides


def objectives(job: Job) -> tuple[dict[str, str], tuple[str, str]]:
    """What trials are measured by, metric → max or min, the recipe's own first; and the task's primary metric."""
    task, _ = task_of(job.recipe, job.parents)
    metrics, tune = task.metrics(), job.recipe.tune
    metric = tune.metric or metrics.primary
    if tune.mode is None and metric != metrics.primary:
        raise UserError(
            f"tune.mode: say max or min for '{metric}' (the task's primary metric is {metrics.primary}, {metrics.mode})"
        )
    if metric in tune.objectives:
        raise UserError(f"tune.objectives: '{metric}' is the sweep's metric already; name others")
    if any(name in MEASURED for name in tune.objectives):
        exported(task)
    return {metric: tune.mode or metrics.mode, **tune.objectives}, (metrics.primary, metrics.mode)


def sweep(job: Job, trials: Trials, primary: tuple[str, str]) -> None:
    """Run the trials that are not finished yet."""
    config = job.recipe.tune
    found = trials.load()
    finished = [t for t in found if t.finished]
    interrupted = [t for t in found if not t.finished]
    if found:
        job.say(f"tune: {len(finished)} trials finished before, {len(interrupted)} to resume")
    if config.search == "optuna":
        left = config.trials - len(finished)
        if left > 0:
            from .tune_optuna import Search

            search = Search(config, trials.goals, finished, interrupted)
            _tune(job, trials, primary, [], left, search, found)
        return
    if trials.population:
        listed = _members(draw(config), trials)
    else:
        done = [t.overrides for t in finished]
        listed = [{"overrides": overrides} for overrides in draw(config) if overrides not in done]
    if listed:
        _tune(job, trials, primary, listed, 1, None, found)


def _members(drawn: Sequence[dict[str, Any]], trials: Trials) -> list[dict[str, Any]]:
    """A population's members as they start, or go on: with the settings and from the state that they had come to."""
    listed = []
    for number, overrides in enumerate(drawn, 1):
        before = trials.found.get(number, Trial(number, overrides))
        if not before.finished:
            last = before.settings[-1] if before.settings else {"turn": 0, "donor": None}
            own = {"member": number, "donor": last["donor"], "turn": last["turn"]}
            listed.append({"overrides": before.overrides, "at": before.starts[-1] if before.starts else None, **own})
    return listed


def _tune(
    job: Job,
    trials: Trials,
    primary: tuple[str, str],
    listed: list[dict[str, Any]],
    samples: int,
    searcher: Any,
    before: Sequence[Trial],
) -> None:
    """The `listed` trials, or `samples` of the searcher's. `before`: those of the sweep's earlier run."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints a table even at verbosity 0
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # Its handler lets an interrupted sweep end as if it were whole, and stays for the rest of the process
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # our record is in the artifact
    import ray
    from ray import tune
    from ray.tune.execution import class_cache

    from .tune_halving import Halving, Listed
    from .tune_schedule import recall, scheduler_of

    # Tune would set the driver's keys in the trials' runtime environment, which Ray writes to a log; a node has its own
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(KEYS)
    recipe, config, artifact = job.recipe, job.recipe.tune, job.artifact
    train, workers = recipe.train, recipe.trial_workers
    alone, population = workers == 1, trials.population
    concurrent = _at_once(job, workers, len(listed) if population else None)
    resources = {"CPU": train.cpus_per_worker if alone else 0.1}
    if alone and train.gpus_per_worker:
        resources["GPU"] = train.gpus_per_worker
    scheduler = scheduler_of(config, trials.metric, trials.mode, trials.epochs)
    recall(scheduler, trials.metric, before)
    halving = scheduler if isinstance(scheduler, Halving) else None
    if halving:
        halving.at_once = concurrent
        if searcher is None:
            listed, samples, searcher = [], len(listed), Listed(listed, halving)
        else:
            searcher.halving = halving
    # Tune pickles the trainable and the space to its folder: the recipe, which may hold keys, goes by reference
    fixed = ray.put(
        {
            "recipe": recipe.model_dump(),
            "epochs": trials.epochs,
            "workers": workers,
            "goals": trials.goals,
            "primary": primary,
            "sweep": artifact.fingerprint if population else "",
            "pauses": halving.pauses if halving else [],
        }
    )
    folder = tempfile.mkdtemp(
        prefix="mapsto-tune-", dir=scratch()
    )  # Tune's notes, on this node; ours are in the artifact
    storage: dict[str, Any] = {"storage_path": folder}
    if population:  # members hand each other their states, from node to node
        filesystem, path = artifact.storage.arrow(artifact.path("ray"))
        artifact.storage.delete(artifact.path("ray"))
        storage = {"storage_path": path, "storage_filesystem": filesystem}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trial, fixed=[fixed]), resources),
        param_space={"trial": tune.grid_search(listed)} if listed else {},
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=samples,
            max_concurrent_trials=None if population or halving else concurrent,  # its limit counts paused ones, too
            reuse_actors=alone,  # the next trial finds torch imported
        ),
        run_config=tune.RunConfig(
            name="sweep",
            verbose=0,
            callbacks=[trials.callback()],
            failure_config=tune.FailureConfig(max_failures=1),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=4 if population else None),
            **storage,
        ),
    )
    try:
        # a search of ours would begin them one by one, each when the one before has started
        with defaulted("TUNE_MAX_PENDING_TRIALS_PG", str(concurrent)) if halving else nullcontext():
            tuner.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if population:
        artifact.storage.delete(artifact.path("ray"))


def places_are_freed(workers: int, dashboard: str | None) -> None:
    """Raises UserError where a stopped trial's place would never be freed: Ray Train does it through the State API, which is
    the dashboard's."""
    if workers > 1 and dashboard is None:
        raise UserError(
            f"tune.workers {workers}: this cluster's dashboard is off, through which Ray frees the place of a stopped trial of several "
            "workers: the next trial would wait for ever; start the head with --include-dashboard=true, or set tune.workers=1"
        )


def _at_once(job: Job, workers: int, population: int | None) -> int:
    """Trials at a time on the connected cluster. Raises UserError where not even one fits, or not the whole population."""
    from ..runtime.resources import free_nodes, require_cpus, trials_at_once

    places_are_freed(workers, connect().dashboard)
    train, own = job.recipe.train, 0.0 if workers == 1 else 0.1
    require_cpus(workers, train.cpus_per_worker, train.gpus_per_worker, 1.0 + own, section="tune")
    nodes, asked = free_nodes(), population or job.recipe.tune.concurrent
    free = sum(node.get("CPU", 0.0) for node in nodes)
    count, most, line = trials_at_once(nodes, workers, train.cpus_per_worker, train.gpus_per_worker, asked, own)
    if population and population > most:
        raise UserError(
            f"tune.trials {population}: a population trains at once, and of these trials ({workers} x "
            f"{train.cpus_per_worker:g} CPUs, and 1 CPU for all their loading) the {free:g} free CPUs hold {most}: "
            f"set tune.trials={most}, or a smaller train.cpus_per_worker"
        )
    if line:
        job.say(f"tune: {line}")
    return count
