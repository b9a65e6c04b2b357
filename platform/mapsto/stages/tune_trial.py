"""A sweep's trials: what runs one, and what is kept of each in the artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..core.artifact import Artifact
from ..core.errors import UserError


def trial(config: Mapping[str, Any], fixed: list[Any]) -> None:
    """One trial, in a Ray Tune actor: makes the train artifact of its settings and reports every epoch.

    With one worker it trains right here; with more it drives Ray Train. A UserError (a setting that diverges, say)
    fails this trial, not the sweep.
    """
    import ray
    from ray import tune

    from ..config.load import override
    from ..config.schema import recipe_model
    from .pipeline import produce

    given = ray.get(fixed[0])
    overrides = overrides_of(config)
    epochs, workers, metric = given["epochs"], given["workers"], given["metric"]
    reported = 0

    def report(record: Mapping[str, float]) -> None:
        nonlocal reported
        value = record.get(f"val/{metric}")
        if (
            value is not None and int(record["epoch"]) < epochs
        ):  # the last one once the artifact is complete: it may stop us
            reported = int(record["epoch"])
            tune.report({metric: value, "epoch": reported, "overrides": overrides, "uri": ""})

    try:
        recipe = override(
            recipe_model()(**given["recipe"]),
            {**overrides, "tune": None, "train.epochs": epochs, "train.workers": workers},
        )
        options = {"on_epoch": report, "in_process": workers == 1}
        artifact = produce(recipe, "train", options, say=lambda line: None)
        history = [r for r in read_history(artifact) if int(r["epoch"]) > reported]
        for record in history:  # an artifact of these settings was there: tell what it was measured at
            report(record)
        tune.report({**_last(artifact, metric, epochs), "overrides": overrides, "uri": artifact.uri})
    except UserError as error:
        tune.report({metric: given["worst"], "epoch": max(reported, 1), "overrides": overrides, "failed": str(error)})


def read_history(artifact: Artifact) -> list[dict[str, float]]:
    import json

    return [json.loads(text) for text in artifact.read("history.jsonl").splitlines()]


def _last(artifact: Artifact, metric: str, epochs: int) -> dict[str, Any]:
    last = read_history(artifact)[-1]
    value = last.get(f"val/{metric}")
    if value is None:
        known = ", ".join(sorted(name.removeprefix("val/") for name in last if name.startswith("val/"))) or "none"
        raise UserError(f"tune.metric: '{metric}' is not measured on val; measured: {known}")
    return {metric: value, "epoch": epochs}


@dataclass
class Trial:
    """What is known of one trial; `trials/<number>.json`."""

    number: int
    overrides: dict[str, Any]
    epochs: int = 0
    value: float | None = None
    uri: str = ""
    failed: str = ""
    finished: bool = False
    """It came to its end, was stopped early, or failed: not to be run again."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(epoch, metric) as reported."""

    def row(self) -> dict[str, Any]:
        state = (
            "failed" if self.failed else "complete" if self.uri else "stopped early" if self.finished else "interrupted"
        )
        return {**asdict(self), "state": state}


class Trials:
    """The sweep's record, kept in the artifact as it goes."""

    def __init__(self, artifact: Artifact, metric: str, mode: str, say: Callable[[str], None], epochs: int) -> None:
        self.artifact, self.metric, self.mode, self.say, self.epochs = artifact, metric, mode, say, epochs
        self.found: dict[int, Trial] = {}

    def load(self) -> list[Trial]:
        """The trials of an earlier, interrupted run of this sweep."""
        for name in self.artifact.storage.names(self.artifact.path("trials")):
            saved = Trial(**self.artifact.read_json("trials", name))
            self.found[saved.number] = saved
        return self.all()

    def all(self) -> list[Trial]:
        return [self.found[number] for number in sorted(self.found)]

    def of(self, overrides: Mapping[str, Any]) -> Trial:
        for each in self.found.values():
            if each.overrides == overrides and not each.finished:
                return each
        number = max(self.found, default=0) + 1
        self.found[number] = Trial(number, dict(overrides))
        return self.found[number]

    def best(self) -> Trial | None:
        """The best of those that came to their end; only where there is none, of those stopped early."""
        measured = [t for t in self.all() if t.value is not None and not t.failed]
        ended = [t for t in measured if t.uri] or measured
        sign = 1 if self.mode == "max" else -1
        return max(ended, key=lambda t: sign * (t.value or 0.0), default=None)

    def save(self, trial: Trial) -> None:
        self.artifact.write_json(asdict(trial), "trials", f"{trial.number:04d}.json")

    def hear(self, mine: Trial, result: Mapping[str, Any]) -> None:
        """One report of a trial."""
        mine.failed, mine.uri = result.get("failed", ""), result.get("uri") or mine.uri
        if mine.failed:
            return
        mine.value, epoch = float(result[self.metric]), int(result["epoch"])
        if epoch > mine.epochs:
            mine.epochs = epoch
            mine.curve.append((epoch, mine.value))
            shown = f"epoch {epoch}/{self.epochs}  {self.metric} {mine.value:.4f}  {_shown(mine.overrides)}"
            self.say(f"trial {mine.number}  {shown}")

    def end(self, mine: Trial) -> None:
        mine.finished = True
        self.save(mine)
        if mine.failed:
            self.say(f"trial {mine.number}  failed: {mine.failed}")
        elif not mine.uri:
            self.say(f"trial {mine.number}  stopped early after epoch {mine.epochs}")

    def callback(self) -> Any:
        """Hears Ray Tune's events, on the driver."""
        from ray.tune import Callback

        record = self

        class Hear(Callback):
            def __init__(self) -> None:
                self.current: dict[str, Trial] = {}

            def of(self, trial: Any) -> Trial:
                if trial.trial_id not in self.current:
                    self.current[trial.trial_id] = record.of(overrides_of(trial.config))
                return self.current[trial.trial_id]

            def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
                record.save(self.of(trial))

            def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
                record.hear(self.of(trial), result)

            def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
                record.end(self.of(trial))

            def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
                mine = self.of(trial)
                mine.failed = mine.failed or f"it ended with an error: {_first_line(trial)}"
                record.end(mine)

        return Hear()


def overrides_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's settings out of what Ray Tune calls its config: a listed one, or one that Optuna suggested."""
    return dict(config.get("overrides") or config)


def _shown(overrides: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{k.rsplit('.', 1)[-1]}={v:.4g}" if isinstance(v, float) else f"{k.rsplit('.', 1)[-1]}={v}"
        for k, v in overrides.items()
    )


def _first_line(trial: Any) -> str:
    error = getattr(trial, "get_pickled_error", lambda: None)()
    text = str(error or "").strip().splitlines()
    return text[-1][:200] if text else "see its log"
