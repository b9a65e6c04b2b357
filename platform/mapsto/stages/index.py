"""Index: a data set → a vector for every image, and a graph (HNSW) that finds the nearest of them quickly.

Malkov and Yashunin, Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World graphs,
arXiv 1603.09320, by usearch. How much of the exact answer the graph finds is measured, and kept in the metrics.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..config.curation import IndexConfig
from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.registry import task_class
from ..core.stage import Done, Job, datasets_of
from ..core.task import Task
from ..data.dataset import Dataset
from ..data.execution import each
from ..runtime.progress import bar
from .clean_facts import shards
from .index_vectors import Features, VectorsJob, read_columns, vectors_of
from .ingest import config_of

GRAPH, ABOUT = "graph.usearch", "index.json"
CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 16, 128, 128
"""M, efConstruction and ef of the paper."""
ALONE = 1000
"""Vectors that one thread adds first: where many threads begin a graph at once, some find nothing to be joined to, and no search
reaches them."""
SAMPLE, NEAREST = 200, 10
"""Rows that recall is measured with, and neighbours of each."""
ASKED, VOTERS = 1000, 5
"""Rows that the baseline is measured with at most, and nearest training rows that vote for each."""
NO_VECTOR = ("detect", "stylize")
"""Tasks whose model takes an image and has nothing that stands for the whole of it, or wants more than the image."""


class Index:
    """Looks at every image once, in Ray tasks, shard by shard; an interrupted run goes on with the shards that are left."""

    name: ClassVar[str] = "index"
    about: ClassVar[str] = "a vector for every image, to search for those that look alike"

    def section(self, recipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"role": options.get("role", "train"), **(recipe.index or IndexConfig()).model_dump(mode="json")}

    def needs(self, recipe: Any, options: Mapping[str, Any]) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        """Raises UserError for a role that the recipe lacks, and for the model of a task that gives no vector for an image."""
        config_of(recipe, options)
        needs = {"data": datasets_of(recipe)[f"data.{options.get('role', 'train')}"]}
        if (recipe.index or IndexConfig()).trained:
            kind = recipe.task.kind
            if kind in NO_VECTOR or task_class(kind).preprocess is Task.preprocess:
                raise UserError(
                    f"index.features: a {kind} model gives no vector for an image; use colour, hog, lbp, or a timm model in `index.backbone`"
                )
            needs["model"] = ("train", {})
        return needs

    def run(self, job: Job) -> Done:
        config = job.recipe.index or IndexConfig()
        dataset = Dataset.open(job.parents["data"])
        found = shards(dataset)
        features = features_of(config, job.parents.get("model"))
        work = VectorsJob(job.artifact, tuple(found), features)
        there = set(job.storage.names(job.artifact.path("vectors"))) if job.resume else set()
        missing = [k for k in range(len(found)) if work.name(k) not in there]
        if len(missing) < len(found):
            job.say(f"index: the vectors of {len(found) - len(missing)} of {len(found)} shards are there already")
        for _ in bar(each(work.run, missing), "index: shards", len(missing)):
            pass
        graph, content, blank = build(job.artifact, [index.rows for index in found])
        rows = len(graph)
        assert rows == dataset.manifest["rows_kept"], (rows, dataset.manifest["rows_kept"])
        if blank:
            job.say(f"index: {blank} of {rows} images have no {config.features} features, and are like nothing")
        with tempfile.TemporaryDirectory(prefix="mapsto-index-") as folder:
            path = Path(folder) / GRAPH
            graph.save(str(path))
            with path.open("rb") as file:
                written = hashlib.file_digest(file, "sha256").hexdigest()
            job.storage.upload(path, job.artifact.path(GRAPH))
        about = {
            "rows": rows, "dimension": int(graph.ndim), "metric": config.metric, "dtype": "float16",
            "features": config.model_dump(mode="json"), "dataset": dataset.artifact.uri, "graph_sha256": written,
            "shards": [{"split": index.name, "rows": index.rows} for index in found],
        }  # fmt: skip
        job.artifact.write_json(about, ABOUT)
        share = recall(job.artifact, len(found), graph)
        metrics = {"images": rows, "dimension": int(graph.ndim), f"recall_at_{NEAREST}": share, "blank": blank}
        if (
            len(dataset.manifest["classes"]) > 1
            and (told := baseline(job.artifact, [index.name for index in found])) is not None
        ):
            metrics["knn_accuracy"] = told
        return Done(metrics, content)


def features_of(config: IndexConfig, model: Artifact | None) -> Features:
    """What the recipe's section asks for; `model`: the trained one, where that gives the vectors."""
    if config.features != "model":
        return Features(config.features)
    if model is not None:
        return Features("model", model=model)
    return Features("model", config.backbone, config.pretrained, config.image_size)


def build(artifact: Artifact, rows: list[int]) -> tuple[Any, str, int]:
    """The graph over all shards' vectors (its keys are row numbers, shard after shard), the content's hash, and how many
    vectors are zero. Every row comes once: `rows` of each shard, no `row_id` twice."""
    from usearch.index import Index as Graph

    graph: Any = None
    ids, total, blank = [], hashlib.sha256(), 0
    for number, expected in enumerate(rows):
        table = read_columns(artifact, number, ("row_id", "vector"))
        vectors = vectors_of(table)
        assert len(vectors) == expected, (number, len(vectors), expected)
        if graph is None:
            graph = Graph(
                ndim=vectors.shape[1], metric="cos", dtype="f16", connectivity=CONNECTIVITY,
                expansion_add=EXPANSION_ADD, expansion_search=EXPANSION_SEARCH, enable_key_lookups=False,
            )  # fmt: skip
        keys = np.arange(len(graph), len(graph) + expected, dtype=np.uint64)
        alone = max(0, min(expected, ALONE - len(graph)))
        if alone:
            graph.add(keys[:alone], vectors[:alone], threads=1)
        if alone < expected:
            graph.add(keys[alone:], vectors[alone:])
        ids.append(table["row_id"].to_numpy())
        blank += int((~vectors.any(axis=1)).sum())
        total.update(ids[-1].tobytes() + vectors.tobytes())
    joined = np.concatenate(ids)
    assert len(np.unique(joined)) == len(joined) == len(graph) == sum(rows), (len(joined), len(graph), sum(rows))
    return graph, total.hexdigest()[:16], blank


def recall(artifact: Artifact, count: int, graph: Any) -> float:
    """Share of the exact nearest neighbours that the graph finds, over rows drawn at random; of neighbours that are equally
    near any counts. 1 for a data set of one row."""
    rows = len(graph)
    drawn = np.sort(np.random.default_rng(0).choice(rows, min(SAMPLE, rows), replace=False))
    parts, start = [], 0
    for number in range(count):
        vectors = vectors_of(read_columns(artifact, number, ("vector",)))
        parts.append(vectors[drawn[(drawn >= start) & (drawn < start + len(vectors))] - start])
        start += len(vectors)
    queries, wanted = _unit(np.concatenate(parts)), min(NEAREST, rows - 1)
    if not wanted:
        return 1.0
    answers = [np.asarray(graph.search(query, wanted + 1).keys, np.int64) for query in queries]
    best = np.empty((len(drawn), 0), np.float32)
    found: list[list[float]] = [[] for _ in drawn]
    start = 0
    for number in range(count):
        vectors = _unit(vectors_of(read_columns(artifact, number, ("vector",))))
        alike = queries @ vectors.T
        mine = np.flatnonzero((drawn >= start) & (drawn < start + len(vectors)))
        alike[mine, drawn[mine] - start] = -np.inf  # a row is no neighbour of itself
        for k, keys in enumerate(answers):
            keys = keys[(keys >= start) & (keys < start + len(vectors)) & (keys != drawn[k])]
            found[k] += alike[k, keys - start].tolist()
        best = -np.sort(-np.concatenate([best, alike], axis=1), axis=1)[:, :wanted]
        start += len(vectors)
    least = best[:, -1] - 1e-5  # float32 has about seven digits
    hits = [min(wanted, sum(value >= least[k] for value in values)) for k, values in enumerate(found)]
    return float(np.mean(hits) / wanted)


def baseline(artifact: Artifact, splits: list[str]) -> float | None:
    """The accuracy of a classifier by the VOTERS nearest training rows (Cover and Hart, 1967; of labels with as many votes the one whose
    rows are more alike), over ASKED rows drawn from the other splits: what a trained one is to be held against. None where there
    are no such rows. `splits`: that of each shard."""
    asked = [n for n, split in enumerate(splits) if split != "train"]
    labels = [read_columns(artifact, number, ("label",))["label"].to_numpy() for number in asked]
    known = np.flatnonzero(np.concatenate(labels) >= 0) if labels else np.empty(0, np.int64)
    if not len(known) or "train" not in splits:
        return None
    drawn = np.sort(np.random.default_rng(0).choice(known, min(ASKED, len(known)), replace=False))
    parts, start = [], 0
    for number in asked:
        vectors = vectors_of(read_columns(artifact, number, ("vector",)))
        parts.append(vectors[drawn[(drawn >= start) & (drawn < start + len(vectors))] - start])
        start += len(vectors)
    queries, truth = _unit(np.concatenate(parts)), np.concatenate(labels)[drawn]
    best = np.full((len(drawn), VOTERS), -np.inf, np.float32)
    votes = np.full((len(drawn), VOTERS), -1, np.int64)
    for number in (n for n, split in enumerate(splits) if split == "train"):
        table = read_columns(artifact, number, ("label", "vector"))
        known = table["label"].to_numpy() >= 0
        alike = np.concatenate([best, queries @ _unit(vectors_of(table)[known]).T], axis=1)
        own = np.broadcast_to(table["label"].to_numpy()[known], (len(drawn), int(known.sum())))
        every = np.concatenate([votes, own], axis=1)
        nearest = np.argpartition(-alike, VOTERS - 1, axis=1)[:, :VOTERS]
        best, votes = np.take_along_axis(alike, nearest, 1), np.take_along_axis(every, nearest, 1)
    return float(
        np.mean([_elected(row, weights) == label for row, weights, label in zip(votes, best, truth, strict=True)])
    )


def _elected(votes: np.ndarray, alike: np.ndarray) -> int:
    names = np.unique(votes[votes >= 0])
    return int(max(names, key=lambda name: ((votes == name).sum(), alike[votes == name].sum()))) if len(names) else -1


def _unit(vectors: np.ndarray) -> np.ndarray:
    """N×D float16 → float32 of unit length; zeros stay."""
    exact = vectors.astype(np.float32)
    return exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)
