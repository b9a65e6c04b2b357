"""Out-of-sample predictions of a data set's training rows, by cross-validation with the recipe's own training."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.metrics.classification import softmax
from ..core.registry import load_task
from ..core.sample import SPLITS
from ..core.stage import Job
from ..curate.facts import Facts
from ..data.dataset import MANIFEST, Dataset
from ..data.execution import each
from ..data.rewrite import Edit, Rewrite
from .clean_facts import columns_of, shards
from .states import collect
from .train import Train

PREDICTIONS = "predictions.npy"


def predictions(job: Job, dataset: Dataset, facts: Facts, relabelled: np.ndarray, folds: int, role: str) -> np.ndarray:
    """N×classes float32 probabilities of models that did not see the row; NaN for rows outside `train` and for rows without
    label. Finished folds are kept under `work/`. `relabelled`: N bool, rows whose label in `facts` is another than the stored one.

    Raises UserError for a task that does not classify, or fewer labelled rows than folds.
    """
    if job.recipe.task.kind != "classify":
        raise UserError(
            f"clean.folds: label errors are looked for with classify; this recipe's task is {job.recipe.task.kind}"
        )
    usable = np.flatnonzero((facts.split == SPLITS.index("train")) & (facts.label >= 0))
    if len(usable) < 2 * folds:
        raise UserError(f"clean.folds: {len(usable)} labelled training rows are too few for {folds} parts")
    fold = np.full(len(facts), -1, np.int64)
    shuffled = np.random.default_rng(0).permutation(usable)
    order = shuffled[np.argsort(facts.label[shuffled], kind="stable")]  # every class spread over the parts
    fold[order] = np.arange(len(order)) % folds
    out = np.full((len(facts), len(dataset.manifest["classes"])), np.nan, np.float32)
    place = {int(row_id): k for k, row_id in enumerate(facts.row_id)}
    for k in range(folds):
        for row_id, probability in _fold(job, dataset, facts, relabelled, fold == k, k, folds, role).items():
            out[place[row_id]] = probability
    return out


def _fold(
    job: Job,
    dataset: Dataset,
    facts: Facts,
    relabelled: np.ndarray,
    held: np.ndarray,
    k: int,
    folds: int,
    role: str,
) -> Mapping[int, np.ndarray]:
    """row_id → probabilities of the held rows, by a model trained on the other training rows."""
    where = job.artifact.path("work", f"fold-{k}")
    kept = f"{where}/{PREDICTIONS}"
    if not job.storage.exists(kept):
        splits = ("train", "val") if job.recipe.train.measured else ("train",)
        data = _held_out(Artifact(f"{where}/data", job.storage), dataset, facts, relabelled, held, splits)
        job.say(f"clean: part {k + 1} of {folds}: training on {data.manifest['splits']['train']['rows']:,} rows")
        model = Artifact(f"{where}/train", job.storage)
        resume = model.started() and not model.complete()
        parents = {name: artifact for name, artifact in job.parents.items() if name != "data"}
        parents |= {f"data.{role}": data.artifact}
        stage = Train()
        section = stage.section(job.recipe, {})
        if not model.complete():
            model.begin(job.recipe.public(), section, parents)
            done = stage.run(Job(job.recipe, section, parents, model, job.storage, resume, {}, job.say))
            model.finish(section=section, parents=parents, metrics=done.metrics, digest=done.digest)
        states = collect(model, load_task(model), {role: data}, "test", job.recipe.evaluate)
        rows = np.concatenate([states["row_id"][:, None].astype(np.float64), softmax(states["logits"])], axis=1)
        job.storage.write(kept, rows.astype("<f8").tobytes())
        for part in ("data", "train"):
            job.storage.delete(f"{where}/{part}")
    table = np.frombuffer(job.storage.read(kept), "<f8").reshape(-1, 1 + len(dataset.manifest["classes"]))
    return {int(row[0]): row[1:] for row in table}


def _held_out(
    artifact: Artifact,
    dataset: Dataset,
    facts: Facts,
    relabelled: np.ndarray,
    held: np.ndarray,
    splits: Collection[str] = ("train",),
) -> Dataset:
    """The rows of `splits` (train; and val, where a metric has a part in the training) that have a label as a data set of their
    own: the held ones are its `test`."""
    if artifact.complete():
        return Dataset.open(artifact)
    artifact.begin({}, {}, {})
    files: dict[str, list[dict[str, Any]]] = {}
    edits = []
    for number, index in ((k, index) for k, index in enumerate(shards(dataset)) if index.name in splits):
        mine, new = np.flatnonzero((facts.file == number) & held), np.flatnonzero((facts.file == number) & relabelled)
        labels = dict(zip(facts.place[new].tolist(), facts.label[new].tolist(), strict=True))
        bare = np.flatnonzero((facts.file == number) & (facts.label < 0))
        out = dict.fromkeys(facts.place[bare].tolist(), "no label")
        edit = Edit(number, index, out, labels, dict.fromkeys(facts.place[mine].tolist(), "test"), frozenset())
        if edit.touched():
            edits.append(edit)
        else:
            files.setdefault(index.name, []).append(index.files[0].entry())
    rewrite = Rewrite(artifact, tuple(columns_of(dataset)), tuple(edits), measured=False)
    for _ in each(rewrite.run, range(len(edits))):
        pass
    for k in range(len(edits)):
        for split, entry in artifact.storage.read_json(rewrite.result_path(k))["files"].items():
            files.setdefault(split, []).append(entry)
    found = {
        name: {"rows": sum(f["rows"] for f in files[name]), "files": files[name]} for name in SPLITS if name in files
    }
    artifact.write_json(dataset.manifest | {"splits": found, "counts": {}}, MANIFEST)
    artifact.finish(section={}, parents={}, metrics={}, digest="0")
    return Dataset.open(artifact)
