"""Near duplicates looked at again: a pair counts when the features of its two images are alike too."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from ..config.curation import VerifyConfig
from ..core import codecs
from ..core.artifact import Artifact
from ..core.stage import Job
from ..curate.duplicates import Pairs
from ..curate.facts import Facts
from ..data.dataset import SplitIndex, read_group
from ..data.execution import each
from .index import features_of
from .index_vectors import Features


@dataclass(frozen=True)
class VerifyJob:
    """What every task is handed: the rows of each shard that are in a pair."""

    artifact: Artifact
    shards: Mapping[int, SplitIndex]
    places: Mapping[int, tuple[int, ...]]
    features: Features

    def path(self, number: int) -> str:
        return self.artifact.path("work", "verify", f"{number:06d}.npy")

    def run(self, number: int) -> None:
        """Write the features of a shard's rows: 2×rows×D float32, of the images and of their mirror images."""
        index, wanted = self.shards[number], np.array(self.places[number])
        images: list[bytes] = []
        for group in range(len(index.groups)):
            within = wanted[(wanted >= index.starts[group]) & (wanted < index.starts[group + 1])] - index.starts[group]
            if len(within):
                images += read_group(index, group, ["image"])["image"].take(within).to_pylist()
        found = np.stack([self.features.of(images), self.features.of([_mirrored(data) for data in images])])
        sink = io.BytesIO()
        np.save(sink, found)
        self.artifact.storage.write(self.path(number), sink.getvalue())

    def read(self, number: int) -> np.ndarray:
        return np.load(io.BytesIO(self.artifact.storage.read(self.path(number))))


def confirmed(
    job: Job, shards: Sequence[SplitIndex], facts: Facts, rows: np.ndarray, pairs: Pairs, config: VerifyConfig
) -> Pairs:
    """The pairs whose features' cosine is at least `config.least`; pair numbers are places in `rows` (indices into the facts).
    Only rows in pairs are looked at, in Ray tasks, shard by shard."""
    if not len(pairs):
        return pairs
    wanted = np.unique(rows[np.concatenate([pairs.first, pairs.second])])
    numbers = [int(k) for k in np.unique(facts.file[wanted])]
    places = {k: tuple(np.sort(facts.place[wanted[facts.file[wanted] == k]]).tolist()) for k in numbers}
    features = features_of(config, job.parents.get("verify"))
    work = VerifyJob(job.artifact, {k: shards[k] for k in numbers}, places, features)
    for _ in each(work.run, numbers):
        pass
    # rows of a shard come in the order of their places, as `wanted` (facts are in the order of files and places)
    vectors = np.concatenate([work.read(k) for k in numbers], axis=1)
    first, second = (np.searchsorted(wanted, rows[side]) for side in (pairs.first, pairs.second))
    alike = np.einsum("pd,pd->p", vectors[pairs.mirrored.astype(int), first], vectors[0, second])
    keep = alike >= config.least
    job.say(
        f"clean: {keep.sum()} of {len(pairs)} pairs of near duplicates are alike in their {config.features} features"
    )
    chosen = {f.name: getattr(pairs, f.name)[keep] for f in fields(pairs) if f.name != "passed_over"}
    return Pairs(**chosen, passed_over=pairs.passed_over)


def _mirrored(data: bytes) -> bytes:
    return codecs.encode(np.ascontiguousarray(codecs.decode(data)[:, ::-1]), "png")
