"""Other people's books of training runs, by the recipe's `train.trackers`: MLflow, and Weights & Biases offline.

They are kept on the driver, beside the artifact's own history, and never end a run: what fails is told once. Their packages
are extras, imported only where a recipe names them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.storage import absolute
from .session import scratch

Record = Mapping[str, float]
PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}
"""Kind → the module that it imports; the extra has the kind's name."""


class Tracker(Protocol):
    def log(self, record: Record) -> None:
        """One epoch: its figures at its optimizer step."""
        ...

    def close(self, summary: Mapping[str, Any], *, failed: bool) -> None:
        """The run has ended. `summary`: what the train stage shows of it."""
        ...


@dataclass(frozen=True)
class Run:
    """What a tracker is told of a run when it begins."""

    artifact: Artifact
    name: str
    """The recipe's; the run itself has the artifact's fingerprint for a name."""
    settings: Mapping[str, Any]
    """The resolved recipe without secrets."""


def require(trackers: Sequence[Any]) -> None:
    """Raises UserError where a tracker's package is missing, before anything is trained."""
    for each in trackers:
        if find_spec(PACKAGES[each.kind]) is None:
            raise UserError(
                f"train.trackers: {each.kind} is not installed; pip install 'mapsto[{each.kind}]', on the cluster's nodes too"
            )


class Trackers:
    """The recipe's trackers of one run. `history`: epochs that an interrupted run has behind it."""

    def __init__(self, given: Sequence[Any], run: Run, history: Sequence[Record], say: Callable[[str], None]) -> None:
        require(given)
        self._say = say
        self._open: dict[str, Tracker] = {}
        for each in given:
            self._try(each.kind, lambda each=each: self._begin(each, run, history))

    def log(self, record: Record) -> None:
        for kind, tracker in list(self._open.items()):
            self._try(kind, lambda tracker=tracker: tracker.log(record))

    def close(self, summary: Mapping[str, Any], *, failed: bool = False) -> None:
        for kind, tracker in list(self._open.items()):
            self._try(kind, lambda tracker=tracker: tracker.close(summary, failed=failed))
        self._open.clear()

    def _begin(self, given: Any, run: Run, history: Sequence[Record]) -> None:
        tracker = {"mlflow": MLflow, "wandb": Wandb}[given.kind](given, run)
        self._open[given.kind] = tracker
        for record in history[tracker.known(history) :]:
            tracker.log(record)

    def _try(self, kind: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001  # a tracker's server that is away is no reason to lose a run
            self._open.pop(kind, None)
            reason = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
            self._say(f"train: tracker {kind} is left out from here on ({type(error).__name__}: {reason})")


class MLflow:
    """A run of the experiment, at a tracking server, a database or a folder; without `uri`, a folder that ends up in the
    artifact. A resumed run goes on in the same MLflow run, where that is still there."""

    def __init__(self, given: Any, run: Run) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions ask for consent to plain folders
        self._entities = import_module("mlflow.entities")
        self._run = run
        self._folder = None if given.uri else Path(tempfile.mkdtemp(prefix="mapsto-mlflow-", dir=scratch()))
        self._note = run.artifact.path("mlflow.json")
        self._client = import_module("mlflow.tracking").MlflowClient(tracking_uri=self._uri(given.uri))
        self._resumed = self._folder is None and run.artifact.storage.exists(self._note)
        self._id = self._again() if self._resumed else self._new(given.experiment or run.name)

    def _uri(self, given: str | None) -> str:
        if self._folder is not None:
            return self._folder.as_uri()
        assert given is not None
        return given if "://" in given else Path(absolute(given)).as_uri()

    def _again(self) -> str:
        saved = self._run.artifact.storage.read_json(self._note)["run_id"]
        self._client.set_terminated(saved, "RUNNING")
        return saved

    def _new(self, experiment: str) -> str:
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        artifact = self._run.artifact
        made = self._client.create_run(number, run_name=artifact.fingerprint, tags={"mapsto.artifact": artifact.uri})
        params = [self._entities.Param(key[:250], str(value)[:500]) for key, value in flat(self._run.settings).items()]
        for start in range(0, len(params), 100):
            self._client.log_batch(made.info.run_id, params=params[start : start + 100])
        if self._folder is None:
            artifact.storage.write_json(self._note, {"run_id": made.info.run_id})
        else:  # MLflow wants a run's folder `artifacts`, and an object store has no empty folders
            self._client.log_dict(made.info.run_id, dict(self._run.settings), "recipe.json")
        return made.info.run_id

    def known(self, history: Sequence[Record]) -> int:
        """How many of the earlier epochs the run has already."""
        return len(history) if self._resumed else 0

    def log(self, record: Record) -> None:
        when, step = int(1000 * record["time"]), int(record["step"])
        self._client.log_batch(
            self._id,
            metrics=[self._entities.Metric(name, value, when, step) for name, value in figures(record).items()],
        )

    def close(self, summary: Mapping[str, Any], *, failed: bool) -> None:
        for name, value in summary.items():
            self._client.set_tag(self._id, f"mapsto.{name}", str(value))
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")
        if self._folder is not None:
            upload(self._folder, self._run.artifact, "mlflow")
            shutil.rmtree(self._folder, ignore_errors=True)


class Wandb:
    """An offline run, in the artifact once training has ended; `wandb sync` sends it on. It needs no account."""

    def __init__(self, given: Any, run: Run) -> None:
        wandb = import_module("wandb")
        self._artifact = run.artifact
        self._folder = Path(tempfile.mkdtemp(prefix="mapsto-wandb-", dir=scratch()))
        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True
        )
        self._run = wandb.init(
            project=given.project or run.name, dir=str(self._folder), mode="offline", id=run.artifact.fingerprint,
            name=run.artifact.fingerprint, group=run.name, config=flat(run.settings), settings=settings, reinit="create_new",
        )  # fmt: skip

    def known(self, history: Sequence[Record]) -> int:
        return 0  # the folder of an interrupted run is gone

    def log(self, record: Record) -> None:
        self._run.log(figures(record), step=int(record["step"]))

    def close(self, summary: Mapping[str, Any], *, failed: bool) -> None:
        for name, value in summary.items():
            self._run.summary[name] = value
        self._run.finish(exit_code=int(failed))
        import_module("wandb").teardown()  # a run that is finished may not be written out yet: its process has to end
        for each in (self._folder / "wandb").glob("offline-run-*"):
            upload(each, self._artifact, "wandb", each.name)
        shutil.rmtree(self._folder, ignore_errors=True)


def figures(record: Record) -> dict[str, float]:
    """An epoch's figures without its step and its time of day."""
    return {name: float(value) for name, value in record.items() if name not in ("step", "time")}


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by their dotted paths."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = value
    return found


def upload(folder: Path, artifact: Artifact, *below: str) -> None:
    """Every file under a local folder into the artifact."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            artifact.write(file.read_bytes(), *below, *file.relative_to(folder).parts)
