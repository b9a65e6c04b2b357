"""Search: the images of an indexed data set that look most like a given one. Needs no cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config.curation import IndexConfig
from ..config.schema import Recipe
from ..core import codecs
from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.page import Page
from ..core.stage import Stage
from ..core.storage import Storage, absolute
from ..data.dataset import Dataset, SplitIndex, read_group
from ..data.rows import Rows
from .clean_facts import shards
from .index import ABOUT, EXPANSION_SEARCH, GRAPH, features_of
from .index_vectors import Features, read_columns, vectors_of
from .ingest import config_of
from .pipeline import Pipeline

THUMB = 260
"""Longest side of a picture on the page, pixels: twice what it is shown at."""


@dataclass(frozen=True)
class Hit:
    """A row of the data set, and its likeness to what was asked for: the cosine of their vectors, 1 for the same."""

    similarity: float
    split: str
    row_id: int
    label: str
    """Its class's name; empty where it has none."""
    source: str
    shard: int
    place: int
    """Row in the shard."""


class Searcher:
    """An index artifact, opened."""

    def __init__(self, artifact: Artifact) -> None:
        from usearch.index import Index as Graph

        self._artifact, about, parents = artifact, artifact.read_json(ABOUT), artifact.meta()["parents"]
        parent = {name: Artifact(found["uri"], artifact.storage) for name, found in parents.items()}
        self._dataset = Dataset.open(parent["data"])
        self._shards: list[SplitIndex] = shards(self._dataset)
        self._rows = Rows(self._shards)
        self._starts = np.cumsum([0, *(shard["rows"] for shard in about["shards"])])
        self.features: Features = features_of(IndexConfig(**about["features"]), parent.get("model"))
        data = artifact.read(GRAPH)
        if hashlib.sha256(data).hexdigest() != about["graph_sha256"]:  # usearch does not look: it would crash
            raise UserError(
                f"{artifact.path(GRAPH)}: not what was written (sha256); make it anew with `mapsto index --force`"
            )
        self._graph: Any = Graph.restore(data)

    def place(self, row_id: int) -> int:
        """Row number of a `row_id`. Raises UserError for one that the data set does not hold."""
        try:
            shard, place = self._rows.place(row_id)
        except KeyError as error:
            raise UserError(f"--row {row_id}: no row of {self._dataset.artifact.uri} has this row_id") from error
        return int(self._starts[shard]) + place

    def vector(self, row: int) -> np.ndarray:
        """The vector of a row number: D float32."""
        shard, place = self._where(row)
        return vectors_of(read_columns(self._artifact, shard, ("vector",)))[place].astype(np.float32)

    def nearest(self, vector: np.ndarray, top: int, without: int | None = None) -> list[Hit]:
        """The `top` rows that are most like a vector, the likest first; `without`: a row number that is left out."""
        count = min(top + (without is not None), len(self._graph))
        self._graph.expansion_search = max(EXPANSION_SEARCH, count)
        found = self._graph.search(vector, count)
        pairs = [(int(k), 1 - float(d)) for k, d in zip(found.keys, found.distances, strict=True) if int(k) != without]
        return self._hits(pairs[:top])

    def picture(self, row: int) -> np.ndarray:
        """A row number's image, H×W×3 uint8, its longest side at most 260 pixels."""
        shard, place = self._where(row)
        index = self._shards[shard]
        group = int(np.searchsorted(index.starts, place, side="right")) - 1
        return thumb(read_group(index, group, ["image"])["image"][place - int(index.starts[group])].as_py())

    def number(self, hit: Hit) -> int:
        return int(self._starts[hit.shard]) + hit.place

    def _where(self, row: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return shard, row - int(self._starts[shard])

    def _hits(self, pairs: Sequence[tuple[int, float]]) -> list[Hit]:
        classes, tables = self._dataset.manifest["classes"], {}
        out = []
        for row, similarity in pairs:
            shard, place = self._where(row)
            if shard not in tables:
                tables[shard] = read_columns(self._artifact, shard, ("row_id", "label", "source"))
            found: Mapping[str, Any] = tables[shard].slice(place, 1).to_pylist()[0]
            label = found["label"]
            name = classes[label] if label is not None and 0 <= label < len(classes) else ""
            split = self._shards[shard].name
            out.append(Hit(similarity, split, found["row_id"], name, found["source"], shard, place))
        return out


def search(
    recipe: Recipe, role: str = "train", *, image: str | None = None, row: int | None = None, top: int = 12,
    least: float | None = None, output: str | None = None,
) -> Iterator[str]:  # fmt: skip
    """Lines of a table: rank, similarity, split, row_id, label, source. One of `image` (a URI) and `row` (a row_id, itself
    left out) is asked for; `least`: rows of a smaller similarity are left out, and where no row is left, a line that begins
    with `unknown:` follows the table's head; `output`: where a page of pictures goes.

    Raises UserError where there is no index yet, for a file that is no image, and for an unknown row_id.
    """
    if top < 1:
        raise UserError(f"--top {top}: at least 1")
    if least is not None and not -1 <= least <= 1:
        raise UserError(f"--least {least:g}: a similarity, from -1 to 1")
    searcher = Searcher(indexed(recipe, role))
    storage: Storage = recipe.storage.open()
    if image is not None:
        uri, own = absolute(image), None
        asked = storage.read(uri)
        try:
            codecs.header(asked, codecs.MAX_PIXELS)
            vector, shown = searcher.features.of([asked])[0], thumb(asked)
        except UserError as error:
            raise UserError(f"{uri}: {error}") from error
    else:
        assert row is not None
        uri, own = f"row {row}", searcher.place(row)
        vector, shown = searcher.vector(own), searcher.picture(own)
    if not vector.any():
        raise UserError(
            f"{uri}: the image has no {searcher.features.kind} features (it is of one colour, or too small)"
        )
    found = searcher.nearest(vector, top, own)
    hits = [hit for hit in found if least is None or hit.similarity >= least]
    yield from _table(hits)
    unknown = ""
    if least is not None and not hits:
        nearest = f" (the nearest is {found[0].similarity:.4f})" if found else ""
        unknown = f"unknown: nothing at least {least:g} alike{nearest}"
        yield unknown
    if output:
        target = absolute(output)
        storage.write(target, _page(recipe.name, uri, shown, searcher, hits, unknown).encode())
        yield f"page: {target}"


def indexed(recipe: Recipe, role: str = "train") -> Artifact:
    """The recipe's index, where it is there already; nothing is made. Raises UserError where it is not."""
    config_of(recipe, {"role": role})
    return _Finder(recipe, lambda _: None).produce("index", {"role": role})


class _Finder(Pipeline):
    """Goes the pipeline's way, and stops where something would have to be made."""

    def _make(
        self, what: Stage, artifact: Artifact, section: dict[str, Any], parents: dict[str, Artifact],
        options: dict[str, Any], force: bool,
    ) -> None:  # fmt: skip
        if not artifact.complete():
            missing = (
                "no index yet" if what.name == "index" else f"no index yet, nor the {what.name} artifact before it"
            )
            raise UserError(f"{self.recipe.name}: {missing} ({artifact.uri}); make it with `mapsto index RECIPE`")


def thumb(data: bytes) -> np.ndarray:
    """Encoded bytes → H×W×3 uint8, its longest side at most 260 pixels. UserError for what is no image."""
    return codecs.fit(codecs.decode(data, at_least=THUMB), THUMB)


def _table(hits: Sequence[Hit]) -> Iterator[str]:
    rows = [("rank", "similarity", "split", "row_id", "label", "source")]
    rows += [
        (str(rank), f"{hit.similarity:.4f}", hit.split, str(hit.row_id), hit.label or "-", hit.source)
        for rank, hit in enumerate(hits, 1)
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _page(name: str, asked: str, shown: np.ndarray, searcher: Searcher, hits: Sequence[Hit], unknown: str) -> str:
    page = Page(f"{name}: search", f"by {searcher.features.backbone or searcher.features.kind}")
    page.pictures([(shown, asked)])
    page.heading(unknown.capitalize() or f"The {len(hits)} that look most like it")
    page.pictures(
        (
            searcher.picture(searcher.number(hit)),
            f"{rank}: {hit.similarity:.3f}, {hit.split} row {hit.row_id}" + (f" ({hit.label})" if hit.label else ""),
        )
        for rank, hit in enumerate(hits, 1)
    )
    return page.html()
