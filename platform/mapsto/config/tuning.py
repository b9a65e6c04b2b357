"""The recipe's `tune` section: what is searched, how, and when a trial is stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..core.section import Fraction, Section
from .document import parse_value


class Uniform(Section):
    kind: Literal["uniform"]
    low: float
    high: float


class LogUniform(Section):
    kind: Literal["loguniform"]
    low: float = Field(gt=0)
    high: float = Field(gt=0)


class Integers(Section):
    kind: Literal["integers"]
    low: int
    high: int
    """Inclusive."""


class Choice(Section):
    kind: Literal["choice"]
    values: list[Any] = Field(min_length=1)


class Branch(Section):
    """A choice that brings settings of its own: `branches: {sgd: {train.optimizer.momentum: ...}, adamw: {}}`."""

    kind: Literal["branch"]
    branches: dict[str, dict[str, Space]] = Field(min_length=1)
    """Value → what is drawn besides, only where this value was; a path may stand in several branches, with another range."""

    def options(self) -> list[tuple[Any, dict[str, Space]]]:
        """(value, its own space): the value as YAML reads it."""
        return [(parse_value(text), inner) for text, inner in self.branches.items()]


Space = Annotated[Uniform | LogUniform | Integers | Choice | Branch, Field(discriminator="kind")]
Branch.model_rebuild()


def walk(
    space: Mapping[str, Space], given: Mapping[str, Any] | None = None, at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, Space, dict[str, Any]]]:
    """Every (keys below `tune.space` to it, its dotted path, what it is drawn from, the branches that lead to it)."""
    for path, each in space.items():
        yield (*at, path), path, each, dict(given or {})
        if isinstance(each, Branch):
            for text, (value, inner) in zip(each.branches, each.options(), strict=True):
                yield from walk(inner, {**(given or {}), path: value}, (*at, path, "branches", text))


class AshaScheduler(Section):
    """At rungs all but the best wait; who belongs to them later goes on then, and the rest is stopped at the end (Li et al.,
    A System for Massively Parallel Hyperparameter Tuning, arXiv 1810.05934)."""

    kind: Literal["asha"]
    grace: int = Field(1, ge=1)
    """Epochs before a trial may have to wait."""
    reduction: int = Field(3, ge=2)
    """One in so many goes on from a rung to the next, rounded down while trials are still to begin, then up; rungs lie this factor apart."""


class HyperBandScheduler(Section):
    """ASHA in every bracket at once, from the boldest to none at all: for metrics that tell little at first (Li et al.,
    Hyperband, arXiv 1603.06560, in the asynchronous form of arXiv 1810.05934)."""

    kind: Literal["hyperband"]
    grace: int = Field(1, ge=1)
    """Epochs before the boldest bracket may stop a trial."""
    reduction: int = Field(3, ge=2)


class MedianScheduler(Section):
    """Stop a trial whose best is below the median of the others' means so far (Golovin et al., Google Vizier, KDD 2017)."""

    kind: Literal["median"]
    grace: int = Field(1, ge=1)
    """Epochs before a trial may be stopped."""
    samples: int = Field(3, ge=1)
    """Other trials that must have come as far."""


class PopulationScheduler(Section):
    """Population-based training: the trials are one population that trains at once; now and then the worst go on from
    the weights of one of the best, with its settings perturbed (Jaderberg et al., arXiv 1711.09846)."""

    kind: Literal["pbt"]
    every: int = Field(1, ge=1)
    """Epochs between two such moments of a member."""
    quantile: float = Field(0.25, gt=0, le=0.5)
    """Share of the population that is the worst, and that is the best."""
    resample: Fraction = 0.25
    """Probability that a perturbed setting is drawn anew; otherwise it is multiplied by 0.8 or 1.2, or moves to the next choice."""
    synchronous: bool = True
    """Members wait for each other at each such moment, so that they are compared at one age and by the seed; otherwise the
    slow ones are compared with what the quick ones were measured at last, and nobody waits."""


class NoScheduler(Section):
    kind: Literal["none"] = "none"


Scheduler = Annotated[
    AshaScheduler | HyperBandScheduler | MedianScheduler | PopulationScheduler | NoScheduler,
    Field(discriminator="kind"),
]

PERTURBED = ("train.optimizer.", "train.schedule.", "train.clip", "task.augment.", "task.label_smoothing")
"""What may change while a model trains: nothing of the model, its inputs' shapes, or the steps of an epoch."""
NOT_PERTURBED = (".kind", ".groups", ".layer_decay", ".decay_norms")


OWN = {
    "train.epochs": "every trial trains tune.epochs (default: train.epochs), so that they can be compared; set that",
    "train.workers": "every trial has tune.workers (default: train.workers); set that",
    "train.checkpoint_every": "it is no setting of the model's; leave it out of the space",
}
"""What a sweep sets itself, and why."""


class TuneConfig(Section):
    metric: str | None = None
    """Of the task's metrics on `val`; default: its primary one."""
    mode: Literal["max", "min"] | None = None
    objectives: dict[str, Literal["max", "min"]] = {}
    """What else a trial should be good at: `latency_p50_ms` (of one row, on this machine), `size_mb` (of the weights), or
    another of the task's metrics. The sweep's result is then a Pareto front; it goes on with its best by `metric`."""
    search: Literal["random", "grid", "optuna"] = "random"
    trials: int = Field(8, ge=1)
    """Ignored by grid, which runs every combination."""
    epochs: int | None = Field(None, ge=1)
    """Epochs of a trial; default: those of `train`."""
    concurrent: int | None = Field(None, ge=1)
    """Trials at once; default: as many as the cluster holds with a CPU of data for each. More share that CPU's work."""
    workers: int | None = Field(None, ge=1)
    """Workers of a trial; default: those of `train`. A trial of one worker needs no Ray Train and starts at once."""
    scheduler: Scheduler = NoScheduler()
    space: dict[str, Space] = Field(min_length=1)
    """Dotted path → what to draw from: `train.optimizer.lr: {kind: loguniform, low: 0.01, high: 1}`."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> TuneConfig:
        for _, path, each, _ in walk(self.space):
            if path in OWN:
                raise ValueError(f"{path}: {OWN[path]}")
            if isinstance(each, Uniform | LogUniform | Integers) and each.low > each.high:
                raise ValueError(f"{path}: low {each.low:g} lies above high {each.high:g}")
        if self.objectives and self.scheduler.kind != "none":
            raise ValueError(
                f"objectives and scheduler {self.scheduler.kind} do not go together: it stops trials by one metric, "
                "and so the small and quick ones first; set scheduler to none"
            )
        if self.scheduler.kind == "pbt":
            self._population()
        return self

    def _population(self) -> None:
        if self.search == "optuna":
            raise ValueError("search optuna and scheduler pbt both choose the settings; set search to random or grid")
        if self.search == "random" and self.trials < 2:
            raise ValueError("a population has at least 2 trials")
        for _, path, each, _ in walk(self.space):
            if isinstance(each, Branch):
                raise ValueError(
                    f"{path}: a population cannot change branches while it trains; list one kind's settings"
                )
            if not path.startswith(PERTURBED) or path.endswith(NOT_PERTURBED):
                raise ValueError(
                    f"{path} cannot change while a model trains, which scheduler pbt does; it can perturb "
                    "train.optimizer's and train.schedule's numbers, train.clip, task.augment and task.label_smoothing"
                )
