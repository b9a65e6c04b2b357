"""The recipe's `train.optimizer` and `train.schedule`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ..core import heavy
from ..core.errors import nearest
from ..core.section import Fraction, Pattern, Section

LOOKAHEAD = "lookahead_"
TORCHS = ("sgd", "adam", "adamw", "adagrad", "rmsprop")
"""Optimizers by torch's own classes; any other name is timm's."""


class ParameterGroup(Section):
    """Other settings for some of the parameters."""

    match: Pattern
    """Regular expression, searched for in a parameter's name (`blocks.0.4.bias`)."""
    lr: float = Field(1.0, ge=0)
    """Times the optimizer's."""
    weight_decay: float | None = Field(None, ge=0)
    """In place of the optimizer's."""


class OptimizerConfig(Section):
    kind: str = "sgd"
    """sgd, adam, adamw, adagrad or rmsprop as torch has them, or a name of timm's optimizer factory: lamb, lion, muon, ...; as
    `lookahead_lamb` with slow weights that follow every sixth step halfway (Zhang et al., Lookahead Optimizer, arXiv 1907.08610)."""
    lr: float = Field(0.1, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    """Of sgd, adam, adagrad and rmsprop it is a part of the gradient; of adamw and most of timm's it is decoupled."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of sgd, rmsprop, and those of timm that have one."""
    nesterov: bool = True
    """sgd only, with momentum."""
    betas: tuple[Fraction, Fraction] | None = None
    """Of adam and its kin; default: the optimizer's own."""
    options: dict[str, Any] = {}
    """Further arguments of the optimizer by its own names (`eps: 1e-6`, `alpha: 0.9`)."""
    decay_norms: bool = False
    """Whether weight decay also falls on biases and norm layers (one-dimensional parameters), and on what a timm model
    says should have none (position embeddings)."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Each layer's learning rate, times this per layer below the top (BEiT, arXiv 2106.08254): 0.65 to 0.9 for fine-tuning."""
    groups: tuple[ParameterGroup, ...] = ()
    """The first that matches a parameter's name counts; one that matches none is refused."""

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in TORCHS:
            return value
        known, base = (
            {*TORCHS, *map(str, heavy.timm().optim.list_optimizers())} - {"adahessian"},
            value.removeprefix(LOOKAHEAD),
        )
        if base == "adahessian":
            raise ValueError("'adahessian' needs second derivatives, which this loop does not take")
        if base not in known:
            raise ValueError(f"'{value}' is no optimizer of torch or timm{nearest(base, known)}")
        return value


class FixedSchedule(Section):
    kind: Literal["fixed"] = "fixed"
    warmup: Fraction = 0.0
    """Share of all steps in which the learning rate climbs linearly from 0; in every schedule."""


class StepSchedule(Section):
    kind: Literal["step"]
    every: int = Field(30, ge=1)
    """Epochs."""
    gamma: float = Field(0.1, gt=0, le=1)
    warmup: Fraction = 0.0


class ExponentialSchedule(Section):
    """Times `gamma` after every epoch."""

    kind: Literal["exponential"]
    gamma: float = Field(0.95, gt=0, le=1)
    warmup: Fraction = 0.0


class CosineSchedule(Section):
    kind: Literal["cosine"]
    final: Fraction = 0.0
    """Learning rate at the end, as a share of `lr`."""
    warmup: Fraction = 0.0


class OneCycleSchedule(Section):
    """Linear up to `lr` at `peak`, linear down to `final` (Smith, Super-Convergence, arXiv 1708.07120)."""

    kind: Literal["one_cycle"]
    peak: Fraction = 0.25
    start: Fraction = 0.1
    final: Fraction = 0.0


class PlateauSchedule(Section):
    kind: Literal["plateau"]
    factor: float = Field(0.1, gt=0, lt=1)
    patience: int = Field(5, ge=0)
    """Evaluations (every `evaluate_every` epochs) without improvement of the task's primary metric on `val` that are endured."""
    warmup: Fraction = 0.0


Schedule = Annotated[
    FixedSchedule | StepSchedule | ExponentialSchedule | CosineSchedule | OneCycleSchedule | PlateauSchedule,
    Field(discriminator="kind"),
]
