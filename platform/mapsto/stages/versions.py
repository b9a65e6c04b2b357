"""Data sets as versions: what one holds, whether its bytes are still what was written, and how two differ."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.storage import Storage, absolute
from ..data.dataset import MANIFEST, Dataset, ShardFile, content_digest
from ..data.rows import Rows

AT_ONCE = 8
"""Shards read side by side."""


def opened(uri: str, storage: Storage | None = None) -> Dataset:
    """The data set at a URI. Raises UserError where there is none, or its description is broken."""
    try:
        return Dataset.open(Artifact(absolute(uri), storage or Storage()))
    except ValueError as error:
        raise UserError(
            f"{uri}: its artifact.json or {MANIFEST} is broken: {error}; make it anew with --force"
        ) from error


def show(dataset: Dataset) -> Iterator[str]:
    """What a data set holds, in lines."""
    m, meta = dataset.manifest, dataset.artifact.meta()
    yield f"{dataset.artifact.uri}"
    yield f"made     {meta['created']} from {m['source']} (layout {m['layout']})"
    yield f"rows     {m['rows_kept']:,} kept, {m['rows_quarantined']:,} quarantined of {m['rows_in']:,}"
    for name, split in m["splits"].items():
        size = sum(file["bytes"] for file in split["files"]) / 2**20
        yield f"{name:<8} {split['rows']:,} rows, {len(split['files'])} shards, {size:,.1f} MiB"
    yield f"columns  {', '.join(m['columns'])}"
    yield f"classes  {len(m['classes'])}: {', '.join(m['classes'][:20])}{' ...' if len(m['classes']) > 20 else ''}"
    yield f"pixels   mean {m['mean']}, standard deviation {m['std']}"
    for reason, count in m["reasons"].items():
        yield f"refused  {count:,}: {reason}"


def row(dataset: Dataset, row_id: int) -> tuple[list[str], bytes]:
    """A row: its columns in lines, and its encoded image. UserError for an id that the data set does not hold."""
    names = list(dataset.manifest["splits"])
    for name in names:
        rows = Rows([dataset.split(name)])
        try:
            (sample,) = rows.samples([row_id], dataset.manifest["columns"])
        except KeyError:
            continue
        image, classes = sample.pop("image"), dataset.manifest["classes"]
        if isinstance(label := sample.get("label"), int) and 0 <= label < len(classes):
            sample["label"] = f"{label} ({classes[label]})"
        if sample.get("mask"):
            sample["mask"] = f"{len(sample['mask']):,} bytes"
        lines = [f"{dataset.artifact.uri}", f"split           {name}", f"image           {len(image):,} bytes"]
        return lines + [f"{column:<15} {value}" for column, value in sample.items() if value is not None], image
    raise UserError(f"--row {row_id}: no row of {dataset.artifact.uri} has this row_id")


def verify(dataset: Dataset) -> list[str]:
    """What is wrong, a line each: shards that are missing, of another size, of another content, and a manifest that names
    other classes or shards than were written. Repairs nothing."""
    files = [file for name in dataset.manifest["splits"] for file in dataset.split(name).files]
    storage = dataset.artifact.storage

    def check(file: ShardFile) -> str | None:
        try:
            data = storage.read(file.uri)
        except UserError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return f"{file.uri}: missing"
            raise
        if len(data) != file.bytes:
            return f"{file.uri}: {len(data):,} bytes, {file.bytes:,} were written"
        if hashlib.sha256(data).hexdigest() != file.sha256:
            return f"{file.uri}: its content has changed (sha256)"
        return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [*_manifest(dataset), *(line for line in pool.map(check, files) if line)]


def _manifest(dataset: Dataset) -> Iterator[str]:
    """Whether the manifest still gives the digest that the artifact was finished with (ingest, clean)."""
    meta = dataset.artifact.meta()
    if meta["stage"] in ("ingest", "clean") and content_digest(dataset.manifest) != meta["digest"]:
        yield f"{dataset.artifact.path(MANIFEST)}: it names other classes or shards than were written"


@dataclass(frozen=True)
class Difference:
    """Images by content: of several with equal bytes, each counts."""

    added: int
    removed: int
    relabelled: int
    moved: int
    """In another split."""
    same: int

    def lines(self) -> Iterator[str]:
        for name in ("added", "removed", "relabelled", "moved", "same"):
            yield f"{name:<10} {getattr(self, name):,}"


def diff(old: Dataset, new: Dataset) -> Difference:
    """How `new` differs from `old`. An image is its encoded bytes; a change of label counts before one of split."""
    before, after = _contents(old), _contents(new)
    counts = Counter(dict.fromkeys(("added", "removed", "relabelled", "moved", "same"), 0))
    for content in before.keys() | after.keys():
        left, right = before.get(content, Counter()), after.get(content, Counter())
        same = left & right
        counts["same"] += same.total()
        left, right = left - same, right - same
        labels = Counter(k[0] for k in left.elements()) & Counter(k[0] for k in right.elements())
        moved = labels.total()
        paired = min(left.total(), right.total())
        counts["moved"] += moved
        counts["relabelled"] += paired - moved
        counts["removed"] += left.total() - paired
        counts["added"] += right.total() - paired
    return Difference(**counts)


def _contents(dataset: Dataset) -> dict[str, Counter[tuple[Any, str]]]:
    """Content hash → (class name, split) → how many."""
    import pyarrow.parquet as pq

    classes = dataset.manifest["classes"]
    out: dict[str, Counter[tuple[Any, str]]] = {}
    for name in dataset.manifest["splits"]:
        for file in dataset.split(name).files:
            filesystem, path = dataset.artifact.storage.arrow(file.uri)
            table = pq.read_table(path, filesystem=filesystem, columns=["content_sha256", "label"])
            hashes, labels = table.column("content_sha256").to_pylist(), table.column("label").to_pylist()
            for content, label in zip(hashes, labels, strict=True):
                out.setdefault(content, Counter())[classes[label] if label >= 0 else None, name] += 1
    return out
