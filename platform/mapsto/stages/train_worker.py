"""What one training worker does: the same function in a Ray Train worker and, for a trial, in the calling process."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.schema import TrainConfig
from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.item import Item
from ..core.sample import Batch
from ..core.task import Task
from .train_events import events

if TYPE_CHECKING:
    from ..data.dataset import Dataset
    from ..engine.fit import Epoch
    from ..engine.world import World

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
    source: Callable[[Setup, World, Share, int], tuple[Iterable[tuple[Item, Batch]], int]]
    """(setup, world, share, first epoch) → this rank's microbatches, and the optimizer steps of an epoch."""


def under_ray(setup: Setup) -> None:
    """The train function of a Ray Train worker."""
    import ray.train
    import ray.train.torch
    from ray.train.collective import broadcast_from_rank_zero

    from ..engine.world import World

    def report(record: dict[str, float]) -> None:
        ray.train.report({"record": record})

    def share(value: Any) -> Any:
        return broadcast_from_rank_zero([value])[0]  # boxed: a bare object reference would arrive as its object

    try:
        train(setup, World.current(ray.train.torch.get_device()), share, report)
    except UserError:
        raise
    except Exception as error:
        # a traceback does not survive the way to the driver; a note does
        error.add_note(f"in training worker {ray.train.get_context().get_world_rank()}:\n{traceback.format_exc()}")
        raise


def train(setup: Setup, world: World, share: Share, report: Callable[[dict[str, float]], None]) -> None:
    """Train from the newest checkpoint, or from the start, to the end, and write the model.

    `report` is called on every rank after each epoch, once its checkpoint is written.
    """
    import torch

    from ..engine.checkpoints import Checkpoints
    from ..engine.fit import fit

    config, task, artifact = setup.config, setup.task, setup.artifact
    torch.set_num_threads(config.threads or max(1, int(config.cpus_per_worker)))
    checkpoints = Checkpoints(artifact, config.keep, task.metrics().mode)
    newest = share(checkpoints.newest() if world.rank == 0 else None)
    resume = checkpoints.load(newest) if newest else None
    epoch = resume["epoch"] if resume else 0
    torch.manual_seed(config.seed)
    model = task.build(setup.parents)
    items, steps = setup.source(setup, world, share, epoch) if epoch < config.epochs else ((), 1)

    def on_epoch(done: Epoch) -> None:
        if world.rank == 0 and (done.last or done.number % config.checkpoint_every == 0):
            state = done.state()
            checkpoints.save(state, done.number, int(done.record["step"]), done.score)
            publish(artifact, state["history"])
        report(done.record)

    history = fit(task, model, config, items, world, steps, resume, on_epoch)
    if world.rank == 0:
        from safetensors.torch import save

        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        artifact.write(save(weights), "model.safetensors")
        publish(artifact, history)


def publish(artifact: Artifact, history: list[dict[str, float]]) -> None:
    """Write `history.jsonl` and the TensorBoard file of the epochs so far, in place of earlier ones."""
    artifact.write("".join(json.dumps(record) + "\n" for record in history).encode(), "history.jsonl")
    artifact.write(events(history), "tensorboard", "events.out.tfevents.0000000000.mapsto")
