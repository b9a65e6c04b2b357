"""Train: a task's model through Ray Train, on the ingested data; the weights, the history and the page."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..core.artifact import digest
from ..core.errors import UserError
from ..core.registry import save_task, task_class
from ..core.stage import Done, Job, datasets_of
from ..core.storage import absolute
from .given import given
from .log import logged
from .train_page import line, page
from .train_time import bottleneck
from .train_worker import WEIGHTS, Setup, Share, ask, train, under_ray

if TYPE_CHECKING:
    from ..config.training import TrainConfig
    from ..core.artifact import Artifact
    from ..core.item import Item
    from ..core.sample import Batch
    from ..core.task import Task
    from ..data.dataset import Dataset
    from ..data.plan import Run
    from ..engine.world import World
    from ..runtime.trackers import Trackers

HOW = (
    "workers",
    "most_workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "threads",
    "compile",
    "gradient_checkpointing",
    "max_failures",
    "keep",
    "checkpoint_every",
    "checkpoint_steps",
    "trackers",
)
"""Settings of `train` that say how it is run, not what comes out: they are no part of the fingerprint, so that a run
can be resumed on other machines."""


class Train:
    """Ray Train workers follow one fixed run of microbatches; checkpoints in the artifact carry it over lost workers
    and killed drivers.

    Options: `on_epoch(record)` is called on the driver after each epoch; `in_sweep`: somebody has looked for room already;
    `in_process` trains in this process, with one worker and without Ray Train (a trial that needs no more). A member of a population has `population`, which is a part
    of its address, and `state`, a local folder with the training state that it starts from. So is `answers`, of a trial
    whose settings were trained before, and measured otherwise.
    """

    name: ClassVar[str] = "train"
    about: ClassVar[str] = "train the task's model on the cluster"

    def section(self, recipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        section = {
            "task": recipe.task.trained(chosen=recipe.train.measured),
            "train": recipe.train.model_dump(mode="json", exclude=set(HOW)),
        }
        return section | {name: options[name] for name in ("population", "answers") if name in options}

    def needs(self, recipe: Any, options: Mapping[str, Any]) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        """The data; the artifacts that the task and `init` name: new content at their URIs makes a new run."""
        named = {f"task.{path}": given(uri) for path, uri in recipe.task.artifacts().items()}
        if recipe.train.init and recipe.train.init.artifact:
            named[WEIGHTS] = given(recipe.train.init.artifact)
        return datasets_of(recipe) | named

    def run(self, job: Job) -> Done:
        with logged(job) as told:
            return self._run(told)

    def _run(self, job: Job) -> Done:
        start = time.monotonic()
        config = job.recipe.train
        task, datasets = task_of(job.recipe, job.parents)
        if config.init and config.init.weights:  # the workers have another working directory
            init = config.init.model_copy(update={"weights": absolute(config.init.weights)})
            config = config.model_copy(update={"init": init})
        setup = Setup(task, config, job.artifact, datasets, job.parents, source)
        if "state" in job.options:
            from ..engine.checkpoints import Checkpoints

            Checkpoints(job.artifact, config.keep, task.metrics().mode).take(Path(job.options["state"]))
        with tracked(job) as trackers:
            tell = teller(job, config.epochs, task.metrics().primary, trackers)
            if job.options.get("in_process"):
                alone(setup, tell, job.say)
            else:
                # a sweep has looked for all its trials, whose data hold CPUs for a moment now and then
                distributed(setup, tell, job.say, look=not job.options.get("in_sweep"))
            done = conclude(job, setup, time.monotonic() - start)
            trackers.close(done.metrics)
        return done


def task_of(recipe: Any, parents: Mapping[str, Artifact]) -> tuple[Task, dict[str, Dataset]]:
    """The recipe's task, checked against its data, and the data sets by role."""
    from ..data.dataset import Dataset

    datasets = {
        name.removeprefix("data."): Dataset.open(parent) for name, parent in parents.items() if name.startswith("data.")
    }
    task = task_class(recipe.task.kind)(recipe.task, {role: dataset.info() for role, dataset in datasets.items()})
    task.check()
    return task, datasets


def source(setup: Setup, world: World, share: Share, epoch: int, step: int) -> tuple[Iterable[tuple[Item, Batch]], int]:
    """The recipe's data, from a step of an epoch: one Ray Data execution for all that is left of the run."""
    from ..data.feed import Feed
    from ..data.kept import Kept
    from ..data.loader import worker_batches
    from ..data.plan import Run

    config = setup.config
    cache = config.cache
    kept = None if cache is None else Kept(cache.longest_side, cache.quality if cache.kind == "packed" else None)
    feed = Feed.of(setup.task, setup.datasets, ("train", "val"), kept)
    run = Run.of(feed.streams["train"], feed.streams.get("val"), config, world.size)
    cpus, gpus = (0.0, 0.0) if setup.counted else (config.cpus_per_worker, config.gpus_per_worker)
    items = worker_batches(
        feed.follow(run),
        world.rank,
        world.size,
        run.start_of(epoch, rewound(run, config, epoch, step)),
        share=share,
        worker_cpus=cpus,
        worker_gpus=gpus,
    )
    return items, run.steps_per_epoch


def rewound(run: Run, config: TrainConfig, epoch: int, step: int) -> int:
    """The step from which an epoch is read that goes on at `step`: with SWA so early that every worker has the epoch's last
    `swa.rows` rows, on which it measures batch norm's statistics at the end."""
    if config.swa is None or not config.swa.active(epoch, config.epochs):
        return step
    each = run.least_rows
    wanted = math.ceil(config.swa.rows / each) + 1 if each else run.steps_per_epoch
    return min(step, max(0, run.steps_per_epoch - wanted))


@contextmanager
def tracked(job: Job) -> Generator[Trackers]:
    """The recipe's trackers of this run; left by an error, they are closed as failed."""
    from ..runtime.trackers import Run, Trackers

    artifact, given = job.artifact, job.recipe.train.trackers
    before = [json.loads(text) for text in _history(artifact)] if given else []
    trackers = Trackers(given, Run(artifact, job.recipe.name, job.recipe.public()), before, job.say)
    try:
        yield trackers
    finally:
        trackers.close({}, failed=True)  # nothing where it is closed already


def _history(artifact: Artifact) -> list[bytes]:
    if not artifact.storage.exists(artifact.path("history.jsonl")):
        return []
    return artifact.read("history.jsonl").splitlines()


def teller(job: Job, epochs: int, primary: str, trackers: Trackers) -> Callable[[dict[str, float]], None]:
    """What is done on the driver after each epoch: a line, the trackers, and the caller's own `on_epoch`; before the first
    one, what became of `init.weights`."""
    told = False

    def tell(record: dict[str, float]) -> None:
        nonlocal told
        if not told:
            tell_init(job)
        told = True
        job.say(line(record, epochs, primary))
        trackers.log(record)
        if "on_epoch" in job.options:
            job.options["on_epoch"](record)

    return tell


def tell_init(job: Job) -> None:
    if job.artifact.storage.exists(job.artifact.path("init.json")):
        for text in job.artifact.read_json("init.json")["lines"]:
            job.say(text)


def alone(setup: Setup, tell: Callable[[dict[str, float]], None], say: Callable[[str], None] = print) -> None:
    """Train in this process, one worker. SIGTERM saves the run's state after the step that is being taken, and raises
    UserError."""
    import torch

    from ..engine.world import World

    device = "cuda" if setup.config.gpus_per_worker and torch.cuda.is_available() else "cpu"

    def report(record: dict[str, float] | None, notes: Sequence[str]) -> None:
        for note in notes:
            say(f"train: {note}")
        if record is not None:
            tell(record)

    with terminated() as asked:
        train(setup, World(device=torch.device(device)), lambda value: value, report, asked=asked)


def distributed(
    setup: Setup, tell: Callable[[dict[str, float]], None], say: Callable[[str], None], *, look: bool = True
) -> None:
    """Train in Ray Train workers, after a `look` at whether the cluster has room for them. Raises a worker's UserError as it is, and Ray's error for anything else. SIGTERM lets
    them save the run's state, and raises UserError; a second one ends this process at once."""
    from functools import partial

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")  # a machine's notice may be of 30 s
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig  # as ray.train gives them, typed

    from ..runtime.leftovers import owned
    from ..runtime.progress import bar
    from ..runtime.resources import require_cpus
    from ..runtime.session import only_machine, scratch
    from .train_elastic import Trainer
    from .train_watch import Watch, follow

    config, artifact = setup.config, setup.artifact
    least, most = config.range
    if look:
        require_cpus(least, config.cpus_per_worker, config.gpus_per_worker)
    # A lost machine takes minutes to come back. Where fewer workers will do, Ray counts once more after this time: at first
    # it takes the lost machine's CPUs for there.
    start_s = "600" if least == most else "30"
    resources = {"CPU": config.cpus_per_worker}
    if config.gpus_per_worker:
        resources["GPU"] = config.gpus_per_worker
    filesystem, path = artifact.storage.arrow(artifact.path("ray"))
    where = scratch()
    folder = Path(tempfile.mkdtemp(prefix=owned("train", where), dir=where))
    artifact.storage.delete(artifact.path("ray"))
    name = f"{artifact.fingerprint}-{uuid.uuid4().hex[:8]}"  # an old name would resume Ray's own idea of the run
    stop = f"mapsto-stop-{name}".encode()
    trainer = Trainer(
        partial(under_ray, replace(setup, counted=True), stop),
        scaling_config=ScalingConfig(
            num_workers=least if least == most else (least, most),
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(
                max_failures=config.max_failures, controller_failure_limit=3 if least == most else 20
            ),
            callbacks=[Watch(str(folder / "lines"))],
        ),
    )

    def records() -> Iterator[dict[str, float]]:
        for told in follow(trainer.fit, folder / "lines"):
            if "record" in told:
                yield told["record"]
            elif "note" in told:
                say(f"train: {told['note']}")
            else:
                say(f"train: {told['lost']}; going on from the last checkpoint")

    epochs = config.epochs - len(_history(artifact))
    # Each of Ray's processes wakes a hundred times a second, and workers that train in step all wait for the one on whose core it
    # does. Where there is no other machine, none is to be looked out for: this one's notice is this process's SIGTERM.
    look_out = "0" if only_machine() else "1"
    with (
        defaulted("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", look_out),
        defaulted("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", start_s),
        terminated(lambda: ask(stop)),
        closing(bar(records(), "train: epochs", epochs, lines=False)) as shown,
    ):
        for record in shown:
            tell(record)
    shutil.rmtree(folder)  # not where an error left the loop: the run that goes on is asked there to stop
    artifact.storage.delete(artifact.path("ray"))  # Ray's bookkeeping: the checkpoints are ours


@contextmanager
def defaulted(name: str, value: str) -> Generator[None]:
    """Within, the environment has the variable: the person's own, or this one."""
    before = os.environ.get(name)
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


def conclude(job: Job, setup: Setup, seconds: float) -> Done:
    """Write what describes the trained model; its weights and history are there."""
    artifact = job.artifact
    history = [json.loads(text) for text in artifact.read("history.jsonl").splitlines()]
    save_task(setup.task, artifact)
    artifact.write_json({"kind": "torch", "file": "model.safetensors", "precision": "fp32"}, "variant.json")
    metrics = setup.task.metrics()
    last = kept(history, setup.config, metrics.primary, metrics.mode) if history else {}
    artifact.write(page(job.recipe.name, setup, history, last).html().encode(), "report.html")
    if not history:
        tell_init(job)
        return Done({"epochs": 0, "seconds": seconds}, digest(artifact.read("model.safetensors")))
    val = {name.removeprefix("val/"): value for name, value in last.items() if name.startswith("val/")}
    speed = sum(r["images_per_s"] * r["seconds"] for r in history) / sum(r["seconds"] for r in history)
    shown = {**val, "epochs": len(history), "images_per_s": speed, "seconds": seconds}
    shown |= {"memory_mb": history[-1]["memory_mb"]} if "memory_mb" in history[-1] else {}
    shown["bottleneck"] = bottleneck(history)
    return Done(shown, digest(artifact.read("model.safetensors")))


def kept(history: Sequence[dict[str, float]], config: TrainConfig, primary: str, mode: str) -> dict[str, float]:
    """The record of the weights that were kept: the last one, or with early stopping the best evaluation's."""
    if config.early_stop is None:
        return history[-1]
    name, sign, best = f"val/{primary}", 1 if mode == "max" else -1, None
    for record in history:  # as engine.stopping counts
        value = record.get(name, math.nan)
        better = value == value if best is None else sign * (value - best[name]) > config.early_stop.min_delta
        best = record if better else best
    return best or history[-1]


@contextmanager
def terminated(then: Callable[[], None] = lambda: None) -> Generator[Callable[[], bool]]:
    """Within, a first SIGTERM only sets what the yielded function tells, and calls `then`; a second one raises SystemExit.
    Elsewhere than in the main thread it stays as it is."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def told(number: int, frame: object) -> None:
        if asked.is_set():
            raise SystemExit(128 + number)
        asked.set()
        then()

    before = signal.signal(signal.SIGTERM, told)
    try:
        yield asked.is_set
    except UserError as error:
        if asked.is_set():
            error.code = 128 + signal.SIGTERM
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
