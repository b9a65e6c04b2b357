"""Near duplicates that the hash does not find, larger crops and turned images: neighbours in a space of features, then verified by
their small pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..config.curation import EmbeddingsConfig
from ..core.artifact import Artifact
from ..core.stage import Job
from ..curate.agreement import SURE, turned_agreement
from ..curate.duplicates import Pairs
from ..data.dataset import SplitIndex
from ..data.execution import each
from ..runtime.progress import bar
from .index import CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH, features_of
from .index_vectors import VectorsJob, read_columns, vectors_of


def neighbours(
    job: Job,
    shards: Sequence[SplitIndex],
    thumbs: np.ndarray,
    rows: np.ndarray,
    known: Pairs,
    config: EmbeddingsConfig,
    wanted: Sequence[float],
) -> Pairs:
    """Pairs among `rows` (indices into all rows; pair numbers are places in them) that are no `known` ones: of each the `config.nearest`
    rows whose features' cosine is the largest and at least `config.least`, where their small pictures agree to the least of `wanted`, turned by
    quarters, mirrored, or one as a part of the other. Vectors are made in Ray tasks, shard by shard; finished shards are not done again."""
    assert (np.diff(rows) > 0).all()
    artifact = Artifact(job.artifact.path("work", "embeddings"), job.storage)
    work = VectorsJob(artifact, tuple(shards), features_of(config, job.parents.get("embeddings")))
    there = set(job.storage.names(artifact.path("vectors"))) if job.resume else set()
    missing = [k for k in range(len(shards)) if work.name(k) not in there]
    for _ in bar(each(work.run, missing), "clean: embeddings", len(missing)):
        pass
    told = set(zip(known.first.tolist(), known.second.tolist(), strict=True))
    found: dict[tuple[int, int], float] = {}
    candidates, least, enough = 0, min(wanted), max(SURE, *wanted)
    for pair in _candidates(artifact, shards, rows, config):
        if pair not in told:
            told.add(pair)
            candidates += 1
            i, j = pair
            score = turned_agreement(np.asarray(thumbs[rows[i]]), np.asarray(thumbs[rows[j]]), least, enough)
            if score >= least:
                found[pair] = score
    job.say(
        f"clean: {len(found)} of {candidates} further pairs that are alike in their {config.features} features show the same"
    )
    first, second = np.array([*found], np.int64).reshape(-1, 2).T
    scores = np.array([*found.values()], np.float32)
    return Pairs(first, second, scores, np.zeros(len(found), bool), 0)


def _candidates(
    artifact: Artifact, shards: Sequence[SplitIndex], rows: np.ndarray, config: EmbeddingsConfig
) -> Iterator[tuple[int, int]]:
    """Pairs of places in `rows`, the lesser first; one may come twice."""
    from usearch.index import Index as Graph

    starts = np.cumsum([0, *(index.rows for index in shards)])
    graph: Any = None

    def part(number: int) -> tuple[np.ndarray, np.ndarray]:
        """(places in `rows`, vectors) of a shard's rows that have a vector."""
        low, high = np.searchsorted(rows, (starts[number], starts[number + 1]))
        vectors = vectors_of(read_columns(artifact, number, ("vector",)))[rows[low:high] - starts[number]]
        has = vectors.any(axis=1)
        return np.arange(low, high)[has], vectors[has]

    for number in range(len(shards)):
        places, vectors = part(number)
        if graph is None:
            graph = Graph(
                ndim=vectors.shape[1], metric="cos", dtype="f16", connectivity=CONNECTIVITY,
                expansion_add=EXPANSION_ADD, expansion_search=EXPANSION_SEARCH, enable_key_lookups=False,
            )  # fmt: skip
        if len(places):
            graph.add(places.astype(np.uint64), vectors, threads=1)  # in one order: the same graph each time
    for number in range(len(shards)):
        places, vectors = part(number)
        for place, vector in zip(places.tolist(), vectors, strict=True):
            hits = graph.search(vector, min(config.nearest + 1, len(graph)))
            for key, distance in zip(hits.keys.tolist(), hits.distances.tolist(), strict=True):
                if key != place and 1 - distance >= config.least:
                    yield min(place, key), max(place, key)
