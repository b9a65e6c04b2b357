"""The two tables: tasks and stages. A new one is a file and a line here; it is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pydantic import ValidationError

from .artifact import Artifact
from .errors import UserError, nearest
from .sample import DatasetInfo
from .stage import Stage
from .task import Task

TASKS = {
    "classify": "mapsto.tasks.classify:Classify",
    "multilabel": "mapsto.tasks.multilabel:MultiLabel",
    "regress": "mapsto.tasks.regress:Regress",
    "segment": "mapsto.tasks.segment:Segment",
    "detect": "mapsto.tasks.detect:Detect",
    "gan": "mapsto.tasks.gan:Gan",
    "vae": "mapsto.tasks.vae:Vae",
    "diffusion": "mapsto.tasks.diffusion:Diffusion",
    "embed": "mapsto.tasks.embed:Embed",
    "stylize": "mapsto.tasks.stylize:Stylize",
}

STAGES = {
    "ingest": "mapsto.stages.ingest:Ingest",
    "clean": "mapsto.stages.clean:Clean",
    "index": "mapsto.stages.index:Index",
    "tune": "mapsto.stages.tune:Tune",
    "train": "mapsto.stages.train:Train",
    "evaluate": "mapsto.stages.evaluate:Evaluate",
    "compress": "mapsto.stages.compress:Compress",
    "predict": "mapsto.stages.predict:Predict",
    "serve": "mapsto.stages.serve:Serve",
}


def task_class(kind: str) -> type[Task]:
    return _load(TASKS, kind, "task")


def stage(name: str) -> Stage:
    return _load(STAGES, name, "stage")()


def load_task(artifact: Artifact) -> Task:
    """The task that a model artifact (train, compress) was made for, from its `task.json`; it answers as `artifact.answers`
    says, where that says something. UserError for settings there that are no such ones of the task, or values that they
    cannot have."""
    saved = artifact.read_json("task.json")
    cls = task_class(saved["config"]["kind"])
    known = (*cls.Config.answering, *cls.Config.measuring)
    for name in artifact.answers:
        if name not in known:
            raise UserError(
                f"answers.{name}: nothing that a trained {saved['config']['kind']} can change{nearest(name, known)}"
            )
    try:
        config = cls.Config(**saved["config"] | dict(artifact.answers))
    except ValidationError as error:
        if not artifact.answers:
            raise
        wrong = (".".join(map(str, each["loc"])) or "together" for each in error.errors())
        told = "; ".join(f"{at}: {each['msg']}" for at, each in zip(wrong, error.errors(), strict=True))
        raise UserError(f"answers.{told}") from error
    return cls(
        config,
        {k: DatasetInfo(**_tuples(v)) for k, v in saved["datasets"].items()},
    )


def save_task(task: Task, artifact: Artifact) -> None:
    """Write `task.json`: the task's configuration, its data sets' description, its preprocess specification."""
    from dataclasses import asdict

    artifact.write_json(
        {
            "config": task.config.model_dump(mode="json"),
            "datasets": {k: asdict(v) for k, v in task.datasets.items()},
            "preprocess": task.preprocess.to_json() if task.preprocess else None,
            "signature": asdict(task.signature()),
        },
        "task.json",
    )


def weights_of(artifact: Artifact, setting: str, uri: str) -> str:
    """URI of a train artifact's weights, safetensors. UserError, with the setting that names the artifact and the address
    as given there, where it is of another kind."""
    variant = artifact.read_json("variant.json")
    if variant["kind"] != "torch":
        raise UserError(f"{setting}: {uri}: a model of kind '{variant['kind']}'; give a train artifact")
    return artifact.path(variant["file"])


def _tuples(saved: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}


def _load(table: dict[str, str], name: str, what: str) -> Any:
    if name not in table:
        raise UserError(f"{what} '{name}' is unknown{nearest(name, table)}")
    module, attribute = table[name].split(":")
    return getattr(import_module(module), attribute)
