"""What a model's shape decides, trained or not: its size, and its latency of one row on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from ..core.task import ExportSpec, Unsupported

if TYPE_CHECKING:
    from ..config.tuning import TuneConfig
    from ..core.task import Task, TaskConfig

MEASURED = ("latency_p50_ms", "size_mb")
REPEATS = 30


def goals_of(config: TuneConfig) -> tuple[str | None, ...]:
    """What a sweep's trials are measured by; None: the task's primary metric."""
    return (config.metric, *config.objectives)


def deciding(config: TaskConfig, goals: Iterable[str | None], primary: str | None = None) -> dict[str, Any]:
    """Of the settings that say how a trained model answers, those on which the goals depend, JSON-able: none where its
    shape decides them, those of the primary metric (`TaskConfig.measuring`), or of another metric any."""
    wanted = {None if goal == primary else goal for goal in goals} - {*MEASURED}
    names = {*config.measuring, *(config.answering if wanted - {None} else ())} if wanted else set()
    return {name: value for name, value in config.answers().items() if name in names}


def exported(task: Task) -> ExportSpec:
    """The task's export specification. Raises UserError where it has none."""
    spec = task.export()
    if isinstance(spec, Unsupported):
        raise UserError(
            f"tune.objectives: {' and '.join(MEASURED)} need a model to export, and {task.config.kind} has none: {spec.reason}"
        )
    return spec


def measure(task: Task, repeats: int = REPEATS) -> dict[str, float]:
    """`size_mb`: the weights' file, in 10⁶ bytes. `latency_p50_ms`: the median of calls with the export specification's
    first row, in torch as it serves the float model, one thread. Leaves torch's thread count as it was."""
    from safetensors.torch import save

    from ..compress.measure import latencies
    from ..serving.runtimes import open_variant, threads_kept

    spec = exported(task)
    weights = save({name: value.contiguous() for name, value in task.build({}).state_dict().items()})
    with threads_kept():
        runtime = open_variant(task, {"kind": "torch", "precision": "fp32"}, weights)
        row = {name: value[:1] for name, value in spec.inputs.items()}
        timing = latencies({"float": runtime}, row, repeats)["float"]
    return {"latency_p50_ms": timing.latency_p50_ms, "size_mb": len(weights) / 1e6}
