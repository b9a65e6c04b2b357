"""What an erasure is about: the rows that are asked for, and every copy of them in every version.

A row is the same in two versions by its `row_id`, where one was made from the other, and anywhere by its content's hash.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.storage import Storage, absolute, join
from .tree import Node, descendants, node, nodes

if TYPE_CHECKING:
    import pyarrow as pa

JOURNAL = "erasing.json"
"""Beside the artifacts while an erasure is under way: what a second run needs to finish it. Removed at its end."""
SMALL = ("row_id", "content_sha256", "source", "identity")


@dataclass(frozen=True)
class Asked:
    """What is to be erased; what is not given is None or empty. `source`: the beginning of URIs."""

    rows: tuple[int, ...] = ()
    identity: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if sum((bool(self.rows), self.identity is not None, self.source is not None)) != 1:
            raise UserError("data purge: say what to erase: one of --row, --identity and --source")
        if "" in (self.identity, self.source):
            raise UserError("data purge: an empty --identity or --source would mean every row; say which")
        if self.source and "://" not in self.source and not self.source.startswith("/"):
            end = "/" if self.source.endswith("/") else ""
            object.__setattr__(self, "source", absolute(self.source) + end)

    def within(self, table: pa.Table, mine: bool) -> np.ndarray:
        """N bool. `mine`: whether the table is of the data set that row ids were given for, or of its lineage."""
        if self.rows:
            return np.isin(table["row_id"].to_numpy(), self.rows) & mine
        name, wanted = ("identity", self.identity) if self.identity is not None else ("source", self.source)
        if name not in table.schema.names:
            return np.zeros(table.num_rows, bool)
        values = table[name].to_pylist()
        if name == "identity":
            return np.array([value == wanted for value in values], bool)
        return np.array([str(value or "").startswith(str(wanted)) for value in values], bool)

    def names(self, line: str, version: Node) -> bool:
        """Whether a line of an ingest's quarantine is of the person: by its `identity` or, where it has none in a data set of identities,
        by a folder of its path below the source, or a file's name with or without a number (`Anna_K_0001.jpg`)."""
        if self.identity is None:
            return False
        entry = refusal(line)
        if "identity" in entry:
            return entry["identity"] == self.identity
        if "identity" not in version.manifest["columns"]:
            return False
        below = str(entry["source"]).removeprefix(str(version.manifest["source"]))
        *folders, file = (part.replace("_", " ") for part in re.split(r"[/\\!]", below))
        wanted = self.identity.replace("_", " ")
        stem = file.rsplit(".", 1)[0]
        if wanted.isdigit():  # a file's number is nobody's
            return wanted in folders
        return wanted in folders or re.fullmatch(rf"{re.escape(wanted)}([-. ]+\d+)?", stem) is not None

    def text(self) -> str:
        if self.rows:
            return f"row {', '.join(map(str, self.rows))}"
        return f"identity '{self.identity}'" if self.identity is not None else f"source {self.source}..."


@dataclass
class Plan:
    """All that a second run needs to finish an erasure. Versions and artifacts are named by their URIs."""

    date: str
    tag: str
    """New shards' names end with it."""
    prefix: str = ""
    hashes: set[str] = field(default_factory=set)
    rows: dict[str, set[int]] = field(default_factory=dict)
    """Version → ids of the rows to erase, those of the versions before and after it with them."""
    sources: set[str] = field(default_factory=set)
    shards: dict[str, int] = field(default_factory=dict)
    """Shard → rows to erase in it."""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Version → `rows` in its shards, `quarantined` in its quarantine."""
    quarantine: dict[str, int] = field(default_factory=dict)
    """Quarantine file → rows or lines to erase in it."""
    pages: list[str] = field(default_factory=list)
    """Artifacts whose pages and contact sheets may show the rows."""
    indexes: list[str] = field(default_factory=list)
    """Search indexes over these versions: they hold a vector of every row, and go whole."""
    elsewhere: int = 0
    """Rows from the same source with other content (packed otherwise, say), which stay."""

    def hits(self, table: pa.Table, version: str) -> np.ndarray:
        """N bool: the rows of a version's shard or quarantine file to erase."""
        ids = list(self.rows.get(version, ()))
        known = [value in self.hashes for value in table["content_sha256"].to_pylist()]
        return np.array(known, bool) | np.isin(table["row_id"].to_numpy(), ids)

    def refused(self, line: str) -> bool:
        """Whether a line of an ingest's quarantine is about an erased source."""
        return self.erases(str(refusal(line)["source"]))

    def erases(self, source: str) -> bool:
        return source in self.sources or bool(self.prefix and source.startswith(self.prefix))

    def to_json(self) -> dict[str, Any]:
        plain = {name: sorted(value) if isinstance(value, set) else value for name, value in asdict(self).items()}
        return plain | {"rows": {uri: sorted(ids) for uri, ids in self.rows.items()}}

    @staticmethod
    def of(saved: dict[str, Any]) -> Plan:
        out = Plan(**saved)
        out.hashes, out.sources = set(out.hashes), set(out.sources)
        out.rows = {uri: set(ids) for uri, ids in out.rows.items()}
        return out


@dataclass(frozen=True)
class Survey:
    """What a purge looks at."""

    scope: str
    """The folder of the journal: the root, or `root/name`."""
    asked: str | None
    """The data set that was named, if one was."""
    versions: tuple[Node, ...]
    all: tuple[Node, ...]
    """Every artifact under the root."""
    storage: Storage

    @property
    def journal(self) -> str:
        return join(self.scope, JOURNAL)

    def lineages(self) -> dict[str, int]:
        """Version → a number that all versions have whose rows keep their ids: each was cleaned from another. (A parent of
        another role has ids of its own.)"""
        out = {each.uri: k for k, each in enumerate(self.versions)}
        for _ in self.versions:
            for each in self.versions:
                near = [uri for uri in (each.uri, _before(each)) if uri in out]
                out |= dict.fromkeys(near, min(out[uri] for uri in near))
        return out


def _before(version: Node) -> str:
    return absolute(str(version.manifest.get("before") or "")).rstrip("/")


def survey(uri: str, storage: Storage) -> Survey:
    """The data sets that a purge of a root or of a data set looks at. Raises UserError where there are none, and for
    unfinished data sets there, which nobody can mend."""
    uri = absolute(uri.removeprefix("file://")).rstrip("/")
    asked = node(Artifact(uri, storage))
    if asked is not None and not (asked.finished and asked.holds_data):
        raise UserError(
            f"{uri}: not a finished data set; name one that `mapsto ingest` or `mapsto clean` made, or a root"
        )
    scope = uri.rsplit("/", 2)[0] if asked else uri
    root = scope.rsplit("/", 1)[0] if asked else uri
    every = {each.uri: each for each in nodes(root, storage)}
    data = {u: each for u, each in every.items() if each.holds_data}
    chosen = {u: each for u, each in data.items() if asked is None or u.startswith(scope + "/")}
    size = -1
    while size != len(chosen):  # whoever shares a shard or a parent
        size = len(chosen)
        held = {shard for each in chosen.values() for _, shard, _ in each.files()}
        chosen |= {u: each for u, each in data.items() if held & {shard for _, shard, _ in each.files()}}
        for parent in {p for each in chosen.values() for p in each.parents} - chosen.keys():
            found = data.get(parent) or node(Artifact(parent, storage))
            if found is not None and found.holds_data:
                chosen[parent] = found
    if not chosen:
        raise UserError(f"{uri}: no data set here; name the URI of one, or the `root` of a recipe")
    for each in every.values():
        if not each.finished and each.artifact.stage in ("ingest", "clean") and each.uri.startswith(scope + "/"):
            raise UserError(
                f"{each.uri}: an unfinished data set, which may hold copies; let its run finish, or remove it:"
                f" mapsto gc {root} --yes --older-than 0"
            )
    return Survey(scope, uri if asked else None, tuple(chosen.values()), tuple(every.values()), storage)


def plan(found: Survey, asked: Asked) -> Plan:
    """Every copy of what is asked for. Raises UserError where there is none, and for row ids that the data set lacks."""
    if asked.rows and found.asked is None:
        raise UserError("data purge --row: row ids are of one data set: name its URI instead of the root")
    out = Plan(datetime.now(UTC).isoformat(timespec="seconds"), secrets.token_hex(4), asked.source or "")
    lineage = found.lineages()
    ids: dict[int, set[int]] = {}
    size, first = (-1, -1), True
    while size != (len(out.hashes), sum(map(len, ids.values()))):
        size = (len(out.hashes), sum(map(len, ids.values())))
        done: set[tuple[str, int]] = set()
        for version in found.versions:
            number = lineage[version.uri]
            out.rows[version.uri] = ids.setdefault(number, set())
            mine = found.asked is not None and number == lineage[found.asked]
            for uri in (*(shard for _, shard, _ in version.files()), *quarantines(version, ".parquet")):
                if (uri, number) in done:
                    continue
                done.add((uri, number))
                table = small(found.storage, uri)
                hit = table.filter(out.hits(table, version.uri) | asked.within(table, mine))
                out.hashes |= set(hit["content_sha256"].to_pylist())
                out.sources |= set(filter(None, hit["source"].to_pylist()))
                ids[number] |= set(hit["row_id"].to_pylist())
        if first and asked.rows and (missing := sorted(set(asked.rows) - ids[lineage[str(found.asked)]])):
            raise UserError(f"{found.asked}: no row {missing[0]}: neither here nor in the versions connected with it")
        first = False
    for version in found.versions:
        for uri in quarantines(version, ".jsonl"):
            out.sources |= {refusal(line)["source"] for line in lines(found.storage, uri) if asked.names(line, version)}
    _count(found, out)
    return out


def taken_up(found: Survey, earlier: Plan) -> Plan:
    """A plan that was cut off, with what has come to hold its rows since: another version, or another's new shards."""
    now = replace(earlier, shards={}, counts={}, quarantine={}, pages=[], indexes=[])
    _count(found, now)
    now.shards = earlier.shards | now.shards
    now.quarantine = earlier.quarantine | now.quarantine
    now.counts |= earlier.counts
    now.pages = list(dict.fromkeys([*earlier.pages, *now.pages]))
    now.indexes = list(dict.fromkeys([*earlier.indexes, *now.indexes]))
    return now


def _count(found: Survey, out: Plan) -> None:
    """How many rows, where; and which pages may show them."""
    others: dict[str, int] = {}
    for version in found.versions:
        rows = quarantined = 0
        for _, uri, _ in version.files():
            table = small(found.storage, uri)
            hit = out.hits(table, version.uri)
            others[uri] = sum(s in out.sources for s in table.filter(~hit)["source"].to_pylist())
            if hit.any():
                out.shards[uri] = int(hit.sum())
                rows += int(hit.sum())
        for uri in quarantines(version, ".parquet"):
            if count := int(out.hits(small(found.storage, uri), version.uri).sum()):
                out.quarantine[uri] = count
                quarantined += count
        for uri in quarantines(version, ".jsonl"):
            if count := sum(map(out.refused, lines(found.storage, uri))):
                out.quarantine[uri] = count
                quarantined += count
        if rows or quarantined:
            out.counts[version.uri] = {"rows": rows, "quarantined": quarantined}
    out.elsewhere = sum(others.values())
    touched = list(out.counts)
    others_made = [each for each in descendants(found.all, touched) if each.uri not in out.counts]
    out.indexes = [each.uri for each in others_made if each.artifact.stage == "index" and each.parents & set(touched)]
    out.pages = touched + [each.uri for each in others_made if each.uri not in out.indexes]


def small(storage: Storage, uri: str, columns: tuple[str, ...] = SMALL) -> pa.Table:
    """A Parquet file's columns, those that it has. Raises UserError for a file that is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    filesystem, path = storage.arrow(uri)

    def read() -> pa.Table:
        try:
            with pq.ParquetFile(path, filesystem=filesystem) as file:
                return file.read([name for name in columns if name in file.schema_arrow.names])
        except pa.ArrowInvalid as error:
            raise UserError(f"{uri}: not a Parquet file: {str(error).splitlines()[0]}; `mapsto data verify`") from error

    return storage.retry(uri, read)


def refusal(line: str) -> dict[str, Any]:
    """A line of an ingest's quarantine. Raises UserError for what is none."""
    try:
        entry = json.loads(line)
        entry["source"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"quarantine/*.jsonl: a line that is no object with a source: {line[:80]}") from error
    return entry


def quarantines(version: Node, suffix: str) -> list[str]:
    names = version.artifact.storage.names(version.artifact.path("quarantine"))
    return [version.artifact.path("quarantine", name) for name in names if name.endswith(suffix)]


def lines(storage: Storage, uri: str) -> Iterator[str]:
    yield from filter(str.strip, storage.read(uri).decode().split("\n"))


def above(artifacts: list[str]) -> set[str]:
    """The folders of the recipes' own pages, over their stages'."""
    return {uri.rsplit("/", levels)[0] for uri in artifacts for levels in (2, 3)}


def told(found: Survey, out: Plan) -> Iterator[str]:
    """What would be, or was, rewritten."""
    rows = sum(each["rows"] for each in out.counts.values())
    quarantined = sum(each["quarantined"] for each in out.counts.values())
    yield (
        f"{len(out.hashes)} different images: {rows} rows in {len([c for c in out.counts.values() if c['rows']])} versions"
        f" ({len(out.shards)} shards), {quarantined} in {len(out.quarantine)} quarantine files; {len(found.versions)} versions looked at"
    )
    for uri, count in out.counts.items():
        yield f"version {uri}: {count['rows']} rows, {count['quarantined']} quarantined"
    for uri, count in (out.shards | out.quarantine).items():
        yield f"rewrite {uri}: without {count}"
    for folder in [*out.pages, *sorted(above(out.pages))]:
        names = found.storage.names(folder)
        for name in sorted(name for name in names if name == "sheet.jpg" or name.endswith(".html")):
            yield f"picture {join(folder, name)}: may show them; {'goes' if name == 'sheet.jpg' else 'stays without photographs'}"
    for uri in out.indexes:
        yield f"index {uri}: has vectors of them: goes whole, `mapsto index` makes it anew"
    if out.elsewhere:
        yield (
            f"{out.elsewhere} rows come from the same sources but hold other bytes (packed otherwise, or a source that has"
            " changed): they stay; name them by --source to erase them, too"
        )
    nodes_of = {each.uri: each for each in found.all}
    for uri in out.pages:
        if uri in nodes_of and not nodes_of[uri].holds_data:
            stage = nodes_of[uri].artifact.stage
            seen = "this model has seen the rows: train it anew, and remove this one"
            yield f"{stage} {uri}: {seen if stage in ('train', 'tune', 'compress') else 'made from the rows, or from such a model'}"
