"""Tune: search the recipe's space with Ray Tune; each trial is a train artifact, and the best one's recipe is kept."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any, ClassVar

import yaml

from ..config.load import override
from ..core.artifact import digest
from ..core.errors import UserError
from ..core.stage import Done, Job
from .train import Train
from .tune_page import page
from .tune_space import draw, optuna_search
from .tune_trial import Trials, trial


class Tune:
    """A trial's train artifact has the address of its settings, so a setting is never trained twice. A sweep that was
    interrupted goes on: finished trials are read, interrupted ones resumed, the search told of both."""

    name: ClassVar[str] = "tune"
    about: ClassVar[str] = "search the settings of training: random, grid or Optuna, with early stopping"

    def section(self, recipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        tune = recipe.tune.model_dump(mode="json", exclude={"concurrent", "workers"})
        return {"tune": tune, **Train().section(recipe, options)}

    def needs(self, recipe: Any, options: Mapping[str, Any]) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        if recipe.tune is None:
            raise UserError("tune: the recipe has no `tune` section")
        return Train().needs(recipe, options)

    def run(self, job: Job) -> Done:
        recipe, artifact = job.recipe, job.artifact
        metric, mode = objective(job)
        trials = Trials(artifact, metric, mode, job.say, recipe.tune.epochs or recipe.train.epochs)
        sweep(job, trials)
        best = trials.best()
        if best is None:
            reasons = sorted({t.failed for t in trials.all() if t.failed})
            raise UserError(
                f"tune: no trial came to an end: {reasons[0] if reasons else f'none was measured by {metric} on val'}"
            )
        chosen = override(recipe, {**best.overrides, "tune": None})
        artifact.write_json([t.row() for t in trials.all()], "trials.json")
        artifact.write_json({"overrides": best.overrides, "metric": best.value, "trial_uri": best.uri}, "best.json")
        recipe_text = yaml.safe_dump(json.loads(json.dumps(chosen.public())), sort_keys=False, allow_unicode=True)
        artifact.write(recipe_text.encode(), "best.yaml")
        artifact.write(page(recipe, trials, best).html().encode(), "report.html")
        shown = ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in best.overrides.items()
        )
        metrics = {metric: best.value, "trials": len(trials.all()), "best": shown}
        return Done(metrics, digest(artifact.read("best.json")))


def objective(job: Job) -> tuple[str, str]:
    """The metric and whether more of it is better: the recipe's, or the task's primary one."""
    from ..core.registry import task_class
    from ..data.dataset import Dataset

    infos = {k.removeprefix("data."): Dataset.open(v).info() for k, v in job.parents.items() if k.startswith("data.")}
    task = task_class(job.recipe.task.kind)(job.recipe.task, infos)
    task.check()
    metrics, tune = task.metrics(), job.recipe.tune
    if tune.metric in (None, metrics.primary):
        return metrics.primary, tune.mode or metrics.mode
    if tune.mode is None:
        raise UserError(
            f"tune.mode: say max or min for '{tune.metric}' (the task's primary metric is {metrics.primary}, {metrics.mode})"
        )
    return tune.metric, tune.mode


def sweep(job: Job, trials: Trials) -> None:
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
            _tune(job, trials, {}, left, optuna_search(config, trials.metric, trials.mode, finished, interrupted))
        return
    done = [t.overrides for t in finished]
    listed = [overrides for overrides in draw(config) if overrides not in done]
    if listed:
        from ray import tune

        _tune(job, trials, {"overrides": tune.grid_search(listed)}, 1, None)


def _tune(job: Job, trials: Trials, space: dict[str, Any], samples: int, searcher: Any) -> None:
    """`space` as Ray Tune takes it (empty: the searcher has its own), `samples` times."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints a table even at verbosity 0
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # our record is in the artifact
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    from ..runtime.resources import require_cpus

    recipe, config = job.recipe, job.recipe.tune
    train, workers = recipe.train, config.workers or recipe.train.workers
    require_cpus(workers, train.cpus_per_worker, train.gpus_per_worker, 1.0 if workers == 1 else 1.1, section="tune")
    alone = workers == 1
    resources = {"CPU": train.cpus_per_worker if alone else 0.1}
    if alone and train.gpus_per_worker:
        resources["GPU"] = train.gpus_per_worker
    scheduler = None
    if config.scheduler.kind == "asha":
        grace = min(config.scheduler.grace, trials.epochs)
        scheduler = ASHAScheduler(
            "epoch", max_t=trials.epochs, grace_period=grace, reduction_factor=config.scheduler.reduction
        )
    # Tune pickles the trainable and the space to its folder: the recipe, which may hold keys, goes by reference
    fixed = ray.put(
        {
            "recipe": recipe.model_dump(),
            "epochs": trials.epochs,
            "workers": workers,
            "metric": trials.metric,
            "worst": float("-inf") if trials.mode == "max" else float("inf"),
        }
    )
    folder = tempfile.mkdtemp(prefix="mapsto-tune-")  # Tune's own notes, on this node only; ours are in the artifact
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trial, fixed=[fixed]), resources),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=trials.metric,
            mode=trials.mode,
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=samples,
            max_concurrent_trials=config.concurrent or at_once(workers, train.cpus_per_worker, train.gpus_per_worker),
            reuse_actors=alone,  # the next trial finds torch imported
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=folder,
            verbose=0,
            callbacks=[trials.callback()],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def at_once(workers: int, cpus: float, gpus: float) -> int:
    """Trials that the cluster holds at a time, each with a CPU for its data."""
    import ray

    have = ray.cluster_resources()
    by_cpu = have.get("CPU", 1.0) / (workers * cpus + (1.0 if workers == 1 else 1.1))
    by_gpu = have.get("GPU", 0.0) / (workers * gpus) if gpus else by_cpu
    return max(1, int(min(by_cpu, by_gpu) + 1e-6))
