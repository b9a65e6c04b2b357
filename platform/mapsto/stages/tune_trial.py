"""One trial of a sweep, in a Ray Tune actor: makes the train artifact of its settings, and reports every epoch."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.artifact import Artifact, digest
from ..core.errors import UserError
from ..runtime.leftovers import owned
from ..runtime.session import scratch
from .tune_measure import deciding

if TYPE_CHECKING:
    from ..config.schema import Recipe
    from .pipeline import Pipeline

log = logging.getLogger("mapsto.tune")
PATIENCE_S = 120.0
"""How long a trial that hands on its state, or may have to wait, waits for the checkpoint that is written behind its training."""


def trial(config: Mapping[str, Any], fixed: list[Any]) -> None:
    """Ray Tune's function. `config["trial"]`: `overrides`, and of a population `member`, `donor`, `turn` (how often it
    took another's weights) and `at` (where it trained before a driver was killed).

    With one worker it trains right here; with more it drives Ray Train. A UserError (a setting that diverges, say)
    fails this trial, not the sweep; one whose reason lies outside leaves it to the sweep's next run.
    """
    import ray

    # the next trial in this process waits for the last one's thread, which closes its data and its trackers; Ray's own 2 s fail it
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "120")
    from ..config.load import override
    from ..config.schema import recipe_model
    from .pipeline import Pipeline

    given, mine = ray.get(fixed[0]), config["trial"]
    changed = {"tune": None, "train.epochs": given["epochs"], "train.workers": given["workers"]}
    changed["train.most_workers"] = None  # it would take the other trials' place
    if given["sweep"] or given["pauses"]:
        changed["train.checkpoint_every"] = (
            1  # each report hands on the state it tells of, or may be the last for a while
        )
    reports = Reports(given, mine)
    try:
        recipe = override(recipe_model()(**given["recipe"]), {**mine["overrides"], **changed})
        where = scratch()
        with tempfile.TemporaryDirectory(prefix=owned("trial", where), dir=where) as folder:
            options = {"on_epoch": reports.epoch, "in_process": given["workers"] == 1, "in_sweep": True}
            if given["sweep"]:
                options |= member_options(given["sweep"], mine, recipe, Path(folder))
                reports.begin(options)
            pipeline = Pipeline(recipe, say=lambda line: None)
            reports.artifact = pipeline.planned("train", options)
            reports.fixed = measured(pipeline, recipe, options, given["goals"])
            answers = deciding(recipe.task, given["goals"], given["primary"][0])
            if measured_otherwise(reports.artifact, answers):  # it stays: it may be served
                options["answers"] = answers
                reports.artifact = pipeline.planned("train", options)
            pipeline.produce("train", options)
        reports.end(recipe)
    except UserError as error:
        reports.fail(error)


def measured_otherwise(artifact: Artifact, answers: Mapping[str, Any]) -> bool:
    """Whether a finished training is at the address, whose evaluations were made with other settings of how to answer."""
    if not artifact.complete():
        return False
    config = artifact.read_json("task.json")["config"]
    return any(config.get(name, value) != value for name, value in answers.items())


class Reports:
    """What a trial tells Ray Tune."""

    def __init__(self, given: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
        self.epochs, self.goals, self.population = given["epochs"], given["goals"], bool(given["sweep"])
        self.pauses = given["pauses"]
        self.primary = given["primary"]
        self.told = {"overrides": mine["overrides"], "donor": mine.get("donor"), "turn": mine.get("turn", 0)}
        self.artifact: Artifact | None = None
        self.fixed: dict[str, float] = {}
        """What does not change while it trains."""
        self.reported = 0

    def begin(self, options: Mapping[str, Any]) -> None:
        """Of a population's member: from which state, weights included, it starts; the epochs before it are its donor's."""
        self.told["began"] = ""
        if "state" in options:
            folder = Path(options["state"])
            self.told["began"] = digest((folder / "state.pt").read_bytes())
            self.reported = json.loads((folder / "done.json").read_text())["epoch"]

    def epoch(self, record: Mapping[str, float]) -> None:
        """After each epoch but the last, which is told once the artifact is complete: what hears it may stop us."""
        values = self._values(record)
        if None in values.values() or int(record["epoch"]) >= self.epochs:
            return
        before, self.reported = self.reported, int(record["epoch"])
        assert self.artifact is not None
        if any(before < epoch <= self.reported for epoch in self.pauses) and not self.artifact.complete():
            self._written()  # what hears it may pause us; what is not written by then is trained again
        self._report({**values, "epoch": self.reported, "uri": ""}, state=self.population)

    def end(self, recipe: Recipe) -> None:
        assert self.artifact is not None
        history = read_history(self.artifact)
        for record in history:  # an artifact of these settings was there: tell what it was measured at
            if int(record["epoch"]) > self.reported:
                self.epoch(record)
        kept = kept_record(recipe, history, self.primary)
        values = self._values(kept)
        for name in [name for name, value in values.items() if value is None]:
            known = ", ".join(sorted(n.removeprefix("val/") for n in kept if n.startswith("val/"))) or "none"
            raise UserError(f"tune: '{name}' is not measured on val; measured: {known}")
        self._report({**values, "epoch": len(history), "uri": self.artifact.uri})

    def fail(self, error: UserError) -> None:
        worst = {name: float("-inf") if mode == "max" else float("inf") for name, mode in self.goals.items()}
        self._report({**worst, "epoch": max(self.reported, 1), "failed": str(error), "outside": error.outside})

    def _values(self, record: Mapping[str, float]) -> dict[str, float | None]:
        return {name: self.fixed.get(name, record.get(f"val/{name}")) for name in self.goals}

    def _report(self, result: Mapping[str, Any], *, state: bool = False) -> None:
        from ray import tune

        told = {**self.told, **result, "at": self.artifact.uri if self.artifact else ""}
        if not state:
            tune.report(told)
            return
        where = scratch()
        with tempfile.TemporaryDirectory(prefix=owned("state", where), dir=where) as folder:
            told["state"] = self._state(Path(folder))
            # Without a checkpoint Ray's population-based training never exploits, and says nothing
            tune.report(told, checkpoint=tune.Checkpoint.from_directory(folder))

    def _written(self) -> bool:
        """Wait for this epoch's training state; whether it came."""
        from ..engine.checkpoints import Checkpoints

        assert self.artifact is not None
        checkpoints, deadline = Checkpoints(self.artifact, 1, "max"), time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            name = checkpoints.newest()
            if name is not None and checkpoints.done(name)["epoch"] >= self.reported:
                return True
            time.sleep(0.05)
        return False

    def _state(self, folder: Path) -> str:
        """Put this epoch's training state, once it is written, into the folder; its digest."""
        from ..engine.checkpoints import Checkpoints

        assert self.artifact is not None
        if not self._written():
            raise UserError(
                f"tune: the state after epoch {self.reported} was not written to {self.artifact.uri}", outside=True
            )
        checkpoints = Checkpoints(self.artifact, 1, "max")
        sound, told = checkpoints.sound()
        if sound is None or checkpoints.done(sound)["epoch"] < self.reported:
            raise UserError(f"tune: the state after epoch {self.reported} is none to hand on: {told[0]}", outside=True)
        return checkpoints.give(sound, folder)


def member_options(sweep: str, mine: Mapping[str, Any], recipe: Recipe, folder: Path) -> dict[str, Any]:
    """A population's member starts in an artifact of its own each time, from the state that it is handed.

    In the same one it would find, and go on from, the weights that it is to leave; and what its stopped workers still
    write would fall among its own.
    """
    from ray import tune

    from ..engine.checkpoints import Checkpoints

    options: dict[str, Any] = {"population": {"sweep": sweep, "member": mine["member"], "start": uuid.uuid4().hex[:12]}}
    handed, at = tune.get_checkpoint(), mine.get("at")
    if handed is not None:
        handed.to_directory(str(folder))
        options["state"] = str(folder)
    elif at:  # of a driver that was killed
        before = Checkpoints(Artifact(at, recipe.storage.open()), 1, "max")
        name, told = before.sound()
        for line in told:
            log.warning("tune: %s", line)
        if name:
            before.give(name, folder)
            options["state"] = str(folder)
    return options


def measured(
    pipeline: Pipeline, recipe: Recipe, options: Mapping[str, Any], goals: Mapping[str, str]
) -> dict[str, float]:
    """Those of the goals that a model's shape decides, measured before it trains."""
    from .train import task_of
    from .tune_measure import MEASURED, measure

    wanted = [name for name in goals if name in MEASURED]
    if not wanted:
        return {}
    task, _ = task_of(recipe, pipeline.parents("train", options))
    found = measure(task)
    return {name: found[name] for name in wanted}


def read_history(artifact: Artifact) -> list[dict[str, float]]:
    return [json.loads(text) for text in artifact.read("history.jsonl").splitlines()]


def kept_record(recipe: Recipe, history: list[dict[str, float]], primary: tuple[str, str]) -> dict[str, float]:
    """The record of the weights that were kept: with early stopping the best epoch's, not the last one's."""
    from .train import kept

    return kept(history, recipe.train, *primary)
