"""What one training worker does: the same function in a Ray Train worker and, for a trial, in the calling process."""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.training import TrainConfig
from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.item import Item
from ..core.registry import weights_of
from ..core.sample import Batch
from ..core.task import Task
from ..data.order import fingerprint
from .train_events import events

if TYPE_CHECKING:
    from torch import nn

    from ..data.dataset import Dataset
    from ..engine.fit import Epoch, Midway
    from ..engine.world import World

log = logging.getLogger("mapsto.train")
WEIGHTS = "train.init.weights"
"""The parent's name, where they are an artifact's."""
Share = Callable[[Any], Any]
"""Rank 0's value on every rank."""


@dataclass(frozen=True)
class Setup:
    """What a worker is handed. Picklable, and without torch: it is made on the driver."""

    task: Task
    config: TrainConfig
    artifact: Artifact
    datasets: Mapping[str, Dataset]
    parents: Mapping[str, Artifact]
    source: Callable[[Setup, World, Share, int, int], tuple[Iterable[tuple[Item, Batch]], int]]
    """(setup, world, share, first epoch, its first step) → this rank's microbatches (from there, or as fit wants them with SWA),
    and the optimizer steps of an epoch."""
    counted: bool = False
    """Ray Train has told Ray Data what the workers hold; whoever counts it a second time takes it from the data's tasks."""


def under_ray(setup: Setup, stop: bytes = b"") -> None:
    """The train function of a Ray Train worker. `stop`: the key in Ray's store by which the driver asks it to end."""
    import ray.train
    import ray.train.torch

    from ..data.loader import train_broadcast
    from ..engine.world import World

    def report(record: dict[str, float] | None, notes: Sequence[str]) -> None:
        ray.train.report({"record": record, "notes": list(notes)})

    try:
        world = World.current(ray.train.torch.get_device())
        notice = drained(ray.train.get_preemption_info, world.broadcast_object)
        train(setup, world, train_broadcast, report, notice, asked_by(stop) if world.rank == 0 else lambda: False)
    except UserError:
        raise
    except Exception as error:
        # a traceback does not survive the way to the driver; a note does
        error.add_note(f"in training worker {ray.train.get_context().get_world_rank()}:\n{traceback.format_exc()}")
        raise


def ask(stop: bytes) -> None:
    """Ask the run whose key this is to save its state and end."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(stop, b"1", overwrite=True)


def asked_by(stop: bytes, every_s: float = 1.0) -> Callable[[], bool]:
    """Whether somebody asked for it: looked at in a thread, so that no step waits for it."""
    from ray.experimental.internal_kv import _internal_kv_exists

    asked = threading.Event()

    def look() -> None:
        while not asked.wait(every_s):
            try:
                if _internal_kv_exists(stop):
                    asked.set()
            except Exception:  # Ray is going, or away for a moment: the run's own end tells
                log.debug("the stop key could not be read", exc_info=True)

    if stop:
        threading.Thread(target=look, name="mapsto-stop", daemon=True).start()
    return asked.is_set


def every(steps: int | None, done: int) -> Callable[[], bool]:
    """Whether a multiple of `steps` is done, called after each step from `done` on."""

    def due() -> bool:
        nonlocal done
        done += 1
        return steps is not None and done % steps == 0

    return due


def either(*notices: Callable[[], bool]) -> Callable[[], bool]:
    """Asks all of them, whatever the first answers."""
    return lambda: sum(notice() for notice in notices) > 0


ASK_S, ASK_STEPS = 5.0, 1000


def drained(
    info: Callable[[], Any], share: Share = lambda value: value, clock: Callable[[], float] = time.monotonic
) -> Callable[[], bool]:
    """Whether Ray tells of a node of this run that is being drained (a preempted machine), once for each such notice.

    Asking is a rendezvous of all ranks, so it is done in a step that they have agreed on: the first one, and from then on as many
    steps later as rank 0 took in `ASK_S` seconds, at least one, at most `ASK_STEPS` and at most twice as many as before, so that
    a few quick steps do not put it off. A notice may be of 30 s.
    """
    left, taken, since, known = 1, 0, clock(), None

    def notice() -> bool:
        nonlocal left, taken, since, known
        taken += 1
        if taken < left:
            return False
        found, step_s = info(), (clock() - since) / taken
        left = share(max(1, min(ASK_STEPS, 2 * left, int(ASK_S / max(step_s, 1e-9)))))
        taken, since = 0, clock()
        if found is None or found == known:
            return False
        known = found
        return True

    return notice


def train(
    setup: Setup,
    world: World,
    share: Share,
    report: Callable[[dict[str, float] | None, Sequence[str]], None],
    notice: Callable[[], bool] = lambda: False,
    asked: Callable[[], bool] = lambda: False,
) -> None:
    """Train from the newest checkpoint, or from the start, to the end, and write the model.

    `report` is called on every rank after each epoch, with its record and what is to be said beside it; rank 0's
    checkpoint is then on its way. After a `notice` (which is said, without a record), and every `checkpoint_steps` steps, the
    state is saved, and training goes on as long as the machine is there. Where any rank is `asked` to end (see fit) it is saved, and a UserError ends the run.
    """
    import torch

    from ..engine.behind import Behind
    from ..engine.checkpoints import Checkpoints, to_bytes
    from ..engine.fit import fit
    from ..engine.precision import emulated

    config, task, artifact = setup.config, setup.task, setup.artifact
    to_say = []
    if emulated(config.precision, world.device):
        config = config.model_copy(update={"precision": "fp32"})
        to_say.append("this CPU has no instructions for bf16 and would take many times as long: trained in fp32")
    torch.set_num_threads(config.threads or max(1, int(config.cpus_per_worker)))
    checkpoints = Checkpoints(artifact, config.keep, task.metrics().mode)
    newest, damaged = share(checkpoints.sound() if world.rank == 0 else None)
    to_say += damaged
    resume = checkpoints.load(newest) if newest else None
    versions = {role: dataset.fingerprint for role, dataset in setup.datasets.items()}
    if resume is not None:
        same_rows(resume, versions, artifact.path("checkpoints", str(newest)))
    epoch, within = (resume["epoch"], resume["within"]) if resume else (0, 0)
    over = epoch >= config.epochs or bool(resume and ended(resume, config))
    least, most = config.range
    if least < most:
        report(None, [f"{world.size} of {least} to {most} workers train, from epoch {epoch + 1}"])
    items, steps = ((), 1) if over else setup.source(setup, world, share, epoch, within)  # on its way from here on
    torch.manual_seed(config.seed)
    model = task.build(setup.parents)
    if resume is None and world.rank == 0:
        initialise(model, setup)

    written = Behind()

    def checkpoint(state: dict[str, Any], number: int, step: int, score: float | None) -> None:
        data, records = (
            to_bytes(state | {"data": versions, "order": fingerprint()}),
            list(state["history"]),
        )  # as they are now: training goes on meanwhile

        def write() -> None:
            checkpoints.save(data, number, step, score)
            publish(artifact, records)

        written.start(f"checkpoint after step {step}", write)

    measured: dict[int, float | None] = {}
    """Step → score, of the epoch that ended last."""
    saved = 0

    def on_epoch(done: Epoch) -> None:
        nonlocal measured, saved
        measured = {int(done.record["step"]): done.score}
        if done.last or done.number % config.checkpoint_every == 0:
            saved = int(done.record["step"])
            state = done.state()  # of every rank: where a model is sharded (fully_shard), all take part in gathering it
            if world.rank == 0:
                checkpoint(state, done.number, int(done.record["step"]), done.score)
                if done.last:
                    written.wait()  # what fails is told with the last report
        report(done.record, [*to_say, *written.told()])
        to_say.clear()

    leaving = False

    def noticed() -> bool:
        nonlocal leaving
        leaving = notice()
        return leaving

    def on_notice(midway: Midway) -> None:
        nonlocal saved
        if midway.step != saved:  # else the epoch's own checkpoint is on its way
            saved = midway.step
            state = midway.state()
            if world.rank == 0:
                checkpoint(state, midway.epoch, midway.step, measured.get(midway.step))
        if leaving:
            where = f"step {midway.step} (epoch {midway.epoch + 1})"
            report(None, [f"a machine of this run is to be taken away: saving after {where}"])
        if midway.asked:
            written.wait()
            failed = world.broadcast_object(written.told())  # who leaves first would end the others while they write
            became = failed[-1] if failed else f"saved after step {midway.step} (epoch {midway.epoch + 1})"
            raise UserError(
                f"train: asked to end; {became}, and the same command goes on from the newest checkpoint", outside=True
            )

    due = either(noticed, every(config.checkpoint_steps, resume["step"] if resume else 0))
    try:
        history = fit(task, model, config, items, world, steps, resume, on_epoch, due, on_notice, asked)
    finally:
        written.wait()  # what is saved when a run breaks off is what it goes on from
    weights = model.state_dict()  # of every rank, too
    if world.rank == 0:
        from safetensors.torch import save

        weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        artifact.write(save(weights), "model.safetensors")
        publish(artifact, history)


def same_rows(resume: Mapping[str, Any], now: Mapping[str, str], checkpoint: str) -> None:
    """Raises UserError where a checkpoint's position is one in other data, or, within an epoch, in another order: its numbers
    would mean other rows."""
    if resume["within"] and resume.get("order", fingerprint()) != fingerprint():
        raise UserError(
            f"{checkpoint}: its position lies within an epoch, whose rows this version of mapsto or NumPy draws in another "
            "order; go on with the version that trained before, or train anew with --force"
        )
    saved = resume.get("data", {})
    for role in [*now, *saved]:
        if saved.get(role) != now.get(role):
            raise UserError(
                f"{checkpoint}: its position is one in data.{role} of version {saved.get(role)}, and this run reads "
                f"version {now.get(role)}; train anew with --force"
            )


def initialise(model: nn.Module, setup: Setup) -> None:
    """Put `train.init.weights` into the model, and what became of each name, or of those that timm loaded by the model's, into
    `init.json`."""
    from ..models.fetched import fetched
    from ..models.transfer import load_weights, transfer

    init, parent = setup.config.init, setup.parents.get(WEIGHTS)
    if init is None or init.weights is None:
        report = fetched(model)
        if report is None:
            return
    else:
        uri = init.weights
        if parent is not None:
            uri = weights_of(parent, "train.init.weights", uri)
        report = transfer(model, load_weights(uri, setup.artifact.storage), uri, strict=init.strict)
    setup.artifact.write_json({**report.to_json(), "lines": report.lines()}, "init.json")


def ended(state: Mapping[str, Any], config: TrainConfig) -> bool:
    """Whether a saved run was stopped early."""
    stop = state["early_stop"]
    return config.early_stop is not None and stop is not None and stop["bad"] > config.early_stop.patience


def publish(artifact: Artifact, history: list[dict[str, float]]) -> None:
    """Write `history.jsonl` and the TensorBoard file of the epochs so far, in place of earlier ones."""
    artifact.write("".join(json.dumps(record) + "\n" for record in history).encode(), "history.jsonl")
    artifact.write(events(history), "tensorboard", "events.out.tfevents.0000000000.mapsto")
