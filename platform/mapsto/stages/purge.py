"""Purge: rows erased from every version of a data set that holds them, and the proof that no copy is left.

The order of writes: a journal; the new shards, under new names; the manifests, each in one write; quarantine, findings
and pages; then the old shards are deleted, and the journal last. So every version can be read at any moment, and a run
that was cut off is finished by the next one.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.storage import Storage, join
from ..data.dataset import MANIFEST
from ..data.shards import write_shard
from .clean_findings import FINDINGS
from .purge_manifest import Entry, groups, mended, mended_meta
from .purge_pages import without_pictures
from .purge_plan import Asked, Plan, Survey, above, lines, plan, quarantines, small, survey, taken_up, told
from .tree import Node, node

if TYPE_CHECKING:
    import pyarrow as pa

AT_ONCE = 4
"""Files that the proof reads side by side."""


def purge(uri: str, asked: Asked, storage: Storage | None = None, *, yes: bool = False) -> Iterator[str]:
    """Erase rows, or without `yes` say what would be done; yields lines to show.

    Raises UserError where no row is meant, and where a copy is found after all was rewritten.
    """
    storage = storage or Storage()
    found = survey(uri, storage)
    finished = False
    if storage.exists(found.journal):
        if not yes:
            yield f"{found.journal}: an erasure was cut off here; --yes finishes it first"
        else:
            earlier = taken_up(found, Plan.of(storage.read_json(found.journal)))
            storage.write_json(found.journal, earlier.to_json())
            yield f"finishing the erasure of {earlier.date}, which was cut off"
            yield from told(found, earlier)
            yield from _carry_out(found, earlier)
            found, finished = survey(uri, storage), True
    try:
        new = plan(found, asked)
    except UserError:
        if finished and asked.rows:  # they went with the erasure that was just finished
            return
        raise
    if not new.counts:
        if finished:
            return
        raise UserError(f"{uri}: nothing to erase: no row of {len(found.versions)} versions is of {asked.text()}")
    yield from told(found, new)
    if not yes:
        yield "nothing was changed; --yes erases them"
        return
    storage.write_json(found.journal, new.to_json())
    yield from _carry_out(found, new)


def _carry_out(found: Survey, work: Plan) -> Iterator[str]:
    storage = found.storage
    touched = [each for each in found.versions if each.uri in work.counts]
    replaced = {uri: _rewritten(found, uri, work) for uri in _with_hits(found, work)}
    for version in touched:
        manifest = mended(version, work, replaced)
        if manifest != version.manifest:
            version.artifact.write_json(manifest, MANIFEST)
        meta = mended_meta(version, manifest)
        if meta != version.meta:
            version.artifact.write_json(meta, "artifact.json")
    for version in touched:
        _quarantine(version, work)
        if "work" in version.names:
            storage.delete(version.artifact.path("work"))
    for version in found.versions:  # a cleaning tells what its parent refused
        _findings(version, work)
    for uri in work.indexes:
        storage.delete(uri)
    for uri in work.pages:
        _pages(Artifact(uri, storage), work)
    for folder in above(work.pages):
        _pages(Artifact(folder, storage), work)
    fresh = [again for each in found.versions if (again := node(each.artifact)) is not None]
    named = {uri for each in fresh for _, uri, _ in each.files()}
    for version in fresh:
        for uri in _stored(version) - named:
            if work.hits(small(storage, uri), version.uri).any():
                storage.delete(uri)
    for part in _parts(fresh, work):
        storage.delete(part)
    checked = prove(fresh, work)
    storage.delete(found.journal)
    rows = sum(each["rows"] + each["quarantined"] for each in work.counts.values())
    yield f"erased {rows} rows; {checked} files of {len(fresh)} versions were read again: no copy is left in them"


def _with_hits(found: Survey, work: Plan) -> dict[str, str]:
    """Shard → a version that has it, for every shard that a manifest still names and that holds rows to erase."""
    owners = {uri: each.uri for each in found.versions for _, uri, _ in each.files() if uri in work.shards}
    return {u: v for u, v in owners.items() if work.hits(small(found.storage, u), v).any()}


def _rewritten(found: Survey, uri: str, work: Plan) -> Entry | None:
    """Write the shard anew beside the old one, without its rows to erase; its entry. What an earlier run wrote and a
    manifest names already stays."""
    folder, _, name = uri.rpartition("/")
    new = f"{re.sub(r'-x[0-9a-f]{8}$', '', name.removesuffix('.parquet'))}-x{work.tag}.parquet"
    for version in found.versions:
        for _, known, entry in version.files():
            if known == join(folder, new):
                return entry | {"path": new}
    version = next(each.uri for each in found.versions for _, known, _ in each.files() if known == uri)
    if work.hits(small(found.storage, uri), version).all():
        return None
    kept = (table.filter(~work.hits(table, version)) for table in groups(found.storage, uri))
    return write_shard(Artifact(folder, found.storage), new, _schema(found.storage, uri), kept)


def _quarantine(version: Node, work: Plan) -> None:
    storage = version.artifact.storage
    for uri in quarantines(version, ".parquet"):
        hit = work.hits(small(storage, uri), version.uri)
        if hit.all():
            storage.delete(uri)
        elif hit.any():
            kept = (table.filter(~work.hits(table, version.uri)) for table in groups(storage, uri))
            name = uri.rsplit("/", 1)[1]
            write_shard(version.artifact, f"quarantine/{name}", _schema(storage, uri), kept)
    for uri in quarantines(version, ".jsonl"):
        before = list(lines(storage, uri))
        kept_lines = [line for line in before if not work.refused(line)]
        if not kept_lines:
            storage.delete(uri)
        elif len(kept_lines) < len(before):
            storage.write(uri, "".join(f"{line}\n" for line in kept_lines).encode())


def _findings(version: Node, work: Plan) -> None:
    """Cleaning's table, without what it says of the erased rows."""
    import pyarrow.parquet as pq

    if FINDINGS not in version.names:
        return
    table = pq.read_table(io.BytesIO(version.artifact.read(FINDINGS)))
    ids = list(work.rows.get(version.uri, ()))
    about = np.zeros(table.num_rows, bool)
    for name in ("row_id", "other_row_id"):
        about |= np.isin(table[name].fill_null(-1).to_numpy(), ids)
    if "source" in table.schema.names:  # of a file that ingest refused
        about |= np.array([source is not None and work.erases(source) for source in table["source"].to_pylist()], bool)
    if about.any():
        sink = io.BytesIO()
        pq.write_table(table.filter(~about), sink)
        version.artifact.write(sink.getvalue(), FINDINGS)


def _pages(artifact: Artifact, work: Plan) -> None:
    for name in artifact.storage.names(artifact.uri):
        if name == "sheet.jpg":
            artifact.storage.delete(artifact.path(name))
        elif name.endswith(".html"):
            page = artifact.read(name).decode()
            bare = without_pictures(page, work.sources, work.prefix, work.date)
            if bare != page:
                artifact.write(bare.encode(), name)


def prove(versions: list[Node], work: Plan) -> int:
    """Read every shard, named by a manifest or not, and every quarantine file; hash every image again. Returns how many
    files. Raises UserError that names those in which an erased row is found, or may be: what a killed process left half-written."""
    files = {(uri, each.uri) for each in versions for uri in _stored(each)}
    files |= {(uri, each.uri) for each in versions for uri in quarantines(each, ".parquet")}
    files |= {(uri, each.uri) for each in versions for _, uri, _ in each.files()}
    storage = versions[0].artifact.storage

    def holds(file: tuple[str, str]) -> bool:
        uri, version = file
        for table in groups(storage, uri, ("row_id", "content_sha256", "image")):
            if work.hits(table, version).any():
                return True
            if any(hashlib.sha256(data.as_buffer()).hexdigest() in work.hashes for data in table["image"]):
                return True
        return False

    ordered = sorted(files)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        left = [uri for (uri, _), bad in zip(ordered, pool.map(holds, ordered), strict=True) if bad]
    texts = [uri for each in versions for uri in quarantines(each, ".jsonl")]
    left += [uri for uri in texts if any(map(work.refused, lines(storage, uri)))]
    left += [uri for uri in work.indexes if storage.names(uri)]
    left += _parts(versions, work)
    if left:
        raise UserError(
            f"the erasure is NOT complete: an erased row is still in {', '.join(left)}; is something writing there? run it again"
        )
    return len({uri for uri, _ in files}) + len(texts)


def _parts(versions: list[Node], work: Plan) -> list[str]:
    """Half-written files of processes that were killed: nobody can tell what is in them."""
    storage = versions[0].artifact.storage
    parts = {part for each in versions for part in storage.parts(each.uri)}
    beside = [uri for uri in work.pages if storage.names(uri)]  # of models, too, which may be in training
    return sorted(parts | {part for uri in beside for part in storage.parts(uri) if ".html." in part})


def _stored(version: Node) -> set[str]:
    """The shards that lie in a version's own folder."""
    names = version.artifact.storage.names(version.artifact.path("shards"))
    return {version.artifact.path("shards", name) for name in names if name.endswith(".parquet")}


def _schema(storage: Storage, uri: str) -> pa.Schema:
    import pyarrow.parquet as pq

    filesystem, path = storage.arrow(uri)
    return storage.retry(uri, lambda: pq.read_schema(path, filesystem=filesystem))
