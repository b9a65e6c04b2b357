"""Knowledge distillation: a student that learns a teacher's soft answers beside the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.registry import load_task, weights_of
from ..core.sample import Batch
from ..core.section import Section
from ..core.task import Context, Loss, Task

if TYPE_CHECKING:
    import torch
    from torch import nn


class Distill(Section):
    """Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531."""

    teacher: str
    """URI of a train artifact of the same task, with the same classes and image size."""
    temperature: float = Field(4.0, gt=0)
    alpha: float = Field(0.9, ge=0, le=1)
    """Weight of the teacher's answers; the labels have the rest."""


def distilled(hard: Loss, config: Distill, parents: Mapping[str, Artifact], student: Task) -> Loss:
    """alpha T² KL(teacher ‖ student) at temperature T + (1 - alpha) `hard`, as sums over the valid rows; logs `distill`.

    The teacher sees exactly the pixels that the student sees, mixed ones too, in eval mode and without gradient. It lives
    in the loss only: no checkpoint holds it. Raises UserError where it does not fit.
    """
    import torch
    import torch.nn.functional as F

    teacher = open_teacher(config, parents, student)

    def loss(
        model: nn.Module, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        seen: dict[str, Any] = {}

        def watched(**inputs: torch.Tensor) -> Any:
            seen["inputs"], seen["logits"] = inputs, model(**inputs)
            return seen["logits"]

        total, count, logs = hard(watched, batch, context)  # ty: ignore[invalid-argument-type]  # only called
        teacher.to(seen["logits"].device)
        with torch.no_grad():
            target = F.log_softmax(teacher(**seen["inputs"]).float() / config.temperature, 1)
        ours = F.log_softmax(seen["logits"].float() / config.temperature, 1)
        each = F.kl_div(ours, target, reduction="none", log_target=True).sum(1) * config.temperature**2
        soft = (each * batch["valid"].float()).sum()
        return config.alpha * soft + (1 - config.alpha) * total, count, {**logs, "distill": soft.detach()}

    return loss


def open_teacher(config: Distill, parents: Mapping[str, Artifact], student: Task) -> nn.Module:
    """The teacher's module with its weights, in eval mode, without gradient."""
    from safetensors.torch import load

    artifact = parents["task.distill.teacher"]
    task, weights = load_task(artifact), weights_of(artifact, "task.distill.teacher", config.teacher)
    where = f"task.distill.teacher: {config.teacher}"
    for what in ("kind", "image_size"):
        theirs, ours = getattr(task.config, what, None), getattr(student.config, what)
        if theirs != ours:
            raise UserError(f"{where}: its task.{what} is {theirs}, the student's {ours}; they must be the same")
    theirs, ours = (t.datasets[t.config.role].classes for t in (task, student))
    if theirs != ours:
        raise UserError(f"{where}: its classes are {_some(theirs)}, the student's {_some(ours)}; they must be the same")
    module = task.build({})
    module.load_state_dict(load(artifact.storage.read(weights)))
    return module.eval().requires_grad_(False)


def _some(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''} ({len(names)})"
