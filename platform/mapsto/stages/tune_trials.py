"""A sweep's record: what is known of each trial, kept in the artifact as it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan, nan
from typing import Any

from ..core.artifact import Artifact


@dataclass
class Trial:
    """What is known of one trial; `trials/<number>.json`."""

    number: int
    overrides: dict[str, Any]
    epochs: int = 0
    values: dict[str, float] = field(default_factory=dict)
    """The sweep's metric, and its objectives."""
    uri: str = ""
    failed: str = ""
    finished: bool = False
    """It came to its end, was stopped early, or failed by its settings: not to be run again."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(epoch, metric) as reported."""
    settings: list[dict[str, Any]] = field(default_factory=list)
    """Of a population's member, each time they changed: `turn`, `epoch` (after which), `overrides`, `donor` (whose weights),
    `state` (the digest of the training state that it went on from)."""
    states: list[tuple[int, str]] = field(default_factory=list)
    """Of a population's member: (epoch, digest) of the training states that it handed on. One that another member went on
    from is among its donor's."""
    starts: list[str] = field(default_factory=list)
    """Of a population's member: the artifacts that it trained in, newest last."""

    @property
    def state(self) -> str:
        if self.failed and self.finished:
            return "failed"
        return "complete" if self.uri else "stopped early" if self.finished else "interrupted"


class Trials:
    """`goals`: metric → max or min, the one that trials are stopped and chosen by first."""

    def __init__(
        self,
        artifact: Artifact,
        goals: Mapping[str, str],
        say: Callable[[str], None],
        epochs: int,
        *,
        population: bool = False,
    ) -> None:
        self.artifact, self.goals, self.say, self.epochs = artifact, dict(goals), say, epochs
        self.population = population
        self.metric, self.mode = next(iter(goals.items()))
        self.found: dict[int, Trial] = {}
        self.cut: set[int] = set()
        """Numbers of those that failed for a reason outside, in this run."""

    def load(self) -> list[Trial]:
        """The trials of an earlier, interrupted run of this sweep."""
        for name in self.artifact.storage.names(self.artifact.path("trials")):
            saved = Trial(**self.artifact.read_json("trials", name))
            saved.values = {name: _number(value) for name, value in saved.values.items()}
            saved.curve = [(int(epoch), _number(value)) for epoch, value in saved.curve]
            self.found[saved.number] = saved
        return self.all()

    def all(self) -> list[Trial]:
        return [self.found[number] for number in sorted(self.found)]

    def rows(self) -> list[dict[str, Any]]:
        """As JSON, with the metric as `value`, the state in words, and whether it is on the Pareto front."""
        front = {t.number for t in self.front()} if len(self.goals) > 1 else set()
        return [
            {**asdict(t), "value": t.values.get(self.metric), "state": t.state}
            | ({"front": t.number in front} if front else {})
            for t in self.all()
        ]

    def of(self, config: Mapping[str, Any]) -> Trial:
        """The record of a Ray Tune trial, by what it calls its config."""
        mine = config["trial"]
        number = mine.get("member")
        if number is None:
            same = [t for t in self.found.values() if t.overrides == mine["overrides"] and not t.finished]
            if same:
                return same[0]
            number = max(self.found, default=0) + 1
        return self.found.setdefault(number, Trial(number, dict(mine["overrides"])))

    def ended(self) -> list[Trial]:
        """Those that came to their end; only where there is none, those stopped early."""
        measured = [
            t for t in self.all() if self.metric in t.values and not t.failed and not any(map(isnan, t.values.values()))
        ]
        return [t for t in measured if t.uri] or measured

    def front(self) -> list[Trial]:
        """Those that no other one beats in every goal (Pareto)."""
        ended = self.ended()
        return [ended[i] for i in pareto([self._losses(t) for t in ended])]

    def best(self) -> Trial | None:
        """The front's best by the metric."""
        return min(self.front(), key=self._losses, default=None)

    def _losses(self, trial: Trial) -> list[float]:
        return [-trial.values[n] if mode == "max" else trial.values[n] for n, mode in self.goals.items()]

    def save(self, trial: Trial) -> None:
        self.artifact.write_json(asdict(trial), "trials", f"{trial.number:04d}.json")

    def hear(self, mine: Trial, result: Mapping[str, Any]) -> None:
        """One report of a trial."""
        mine.failed, mine.uri = result.get("failed", ""), result.get("uri") or mine.uri
        if mine.failed:
            if result.get("outside"):
                self.cut.add(mine.number)
            return
        self.cut.discard(mine.number)  # Optuna may draw its settings again
        mine.values, epoch = {name: float(result[name]) for name in self.goals}, int(result["epoch"])
        if self.population:
            self._follow(mine, result, epoch)
            if result.get("state"):
                mine.states.append((epoch, result["state"]))
        if epoch > mine.epochs:
            mine.epochs = epoch
            mine.curve.append((epoch, mine.values[self.metric]))
            shown = f"epoch {epoch}/{self.epochs}  {self._shown(mine)}  {_short(mine.overrides)}"
            self.say(f"trial {mine.number}  {shown}")
        self.save(mine)

    def _follow(self, mine: Trial, result: Mapping[str, Any], epoch: int) -> None:
        """Note what a member goes on with, where that changed; its curve is then its donor's age's."""
        if result["at"] in mine.starts:
            return
        mine.starts.append(result["at"])
        mine.overrides, donor = dict(result["overrides"]), result["donor"]
        mine.curve = [point for point in mine.curve if point[0] < epoch]
        mine.epochs = epoch - 1
        if not mine.settings or mine.settings[-1]["turn"] != result["turn"]:
            changed = {"turn": result["turn"], "epoch": epoch - 1, "overrides": mine.overrides, "donor": donor}
            mine.settings.append(changed | {"state": result["began"]})
            if donor:
                self.say(f"trial {mine.number}  goes on from trial {donor}: {_short(mine.overrides)}")

    def end(self, mine: Trial) -> None:
        mine.finished = mine.number not in self.cut
        self.save(mine)
        if mine.failed:
            self.say(f"trial {mine.number}  {'failed' if mine.finished else 'was cut off'}: {mine.failed}")
        elif not mine.uri:
            self.say(f"trial {mine.number}  stopped early after epoch {mine.epochs}")

    def clear(self) -> None:
        """Remove what a population's members left on their way."""
        for each in self.all():
            for uri in each.starts:
                if uri != each.uri:
                    self.artifact.storage.delete(uri)

    def _shown(self, trial: Trial) -> str:
        return "  ".join(f"{name} {value:.4f}" for name, value in trial.values.items())

    def callback(self) -> Any:
        """Hears Ray Tune's events, on the driver."""
        from ray.tune import Callback

        record = self

        class Hear(Callback):
            def __init__(self) -> None:
                self.current: dict[str, Trial] = {}

            def of(self, trial: Any) -> Trial:
                if trial.trial_id not in self.current:
                    self.current[trial.trial_id] = record.of(trial.config)
                return self.current[trial.trial_id]

            def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
                record.save(self.of(trial))

            def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
                record.hear(self.of(trial), result)

            def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
                record.end(self.of(trial))

            def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
                mine, error = self.of(trial), trial.get_pickled_error()
                mine.failed = mine.failed or f"it ended with an error: {_last_line(error)}"
                if lost(error):
                    record.cut.add(mine.number)
                record.end(mine)

        return Hear()


def pareto(losses: Sequence[Sequence[float]]) -> list[int]:
    """Numbers of the rows that none dominates: no other is as low in every column and lower in one."""
    return [
        i
        for i, mine in enumerate(losses)
        if not any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and list(other) != list(mine) for other in losses
        )
    ]


def _number(value: float | None) -> float:
    """As it was before it was written as JSON, where NaN is null."""
    return nan if value is None else float(value)


def _short(overrides: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{k.rsplit('.', 1)[-1]}={v:.4g}" if isinstance(v, float) else f"{k.rsplit('.', 1)[-1]}={v}"
        for k, v in overrides.items()
    )


def lost(error: Exception | None) -> bool:
    """Whether a trial ended with its machine, which lies in none of its settings. Ray cannot say at once why a machine is away; of a
    process that died alone it can, and that may lie in them: too large a batch, say."""
    from ray.exceptions import ActorUnavailableError, RayActorError

    away = isinstance(error, ActorUnavailableError) or "its node has died" in str(error)
    return isinstance(error, RayActorError) and (away or error.preempted)


def _last_line(error: Exception | None) -> str:
    text = str(error or "").strip().splitlines()
    return text[-1][:200] if text else "see its log"
