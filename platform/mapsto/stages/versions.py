"""Data sets as versions: what one holds, whether its bytes are still what was written, and how two differ."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.storage import Storage, absolute
from ..data.annotations import column_types
from ..data.dataset import MANIFEST, Dataset, ShardFile, content_digest, read_group
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
    changed: int
    """With other annotations; whether or not in another split."""
    moved: int
    """In another split, and else the same."""
    same: int
    columns: Mapping[str, int]
    """Column → images that it has changed of; one whose boxes and labels have changed counts in both."""

    def lines(self) -> Iterator[str]:
        which = ", ".join(f"{name} {count:,}" for name, count in self.columns.items())
        for name in ("added", "removed", "changed", "moved", "same"):
            more = f" ({which})" if name == "changed" and which else ""
            yield f"{name:<10} {getattr(self, name):,}{more}"


def diff(old: Dataset, new: Dataset) -> Difference:
    """How `new` differs from `old`. An image is its encoded bytes; a changed annotation counts before a change of split. Classes are
    compared by their names; no value, an empty list and a column that is not there are the same."""
    names = ("label", *column_types())
    before, after = _contents(old, names), _contents(new, names)
    counts = Counter(dict.fromkeys(("added", "removed", "changed", "moved", "same"), 0))
    columns: Counter[str] = Counter()
    for content in before.keys() | after.keys():
        left, right = before.get(content, Counter()), after.get(content, Counter())
        same = left & right
        counts["same"] += same.total()
        ones, others = [*(left - same).elements()], [*(right - same).elements()]
        for one in ones[: len(others)]:
            other = max(others, key=lambda row: sum(a == b for a, b in zip(one[1], row[1], strict=True)))
            others.remove(other)
            differ = [name for name, a, b in zip(names, one[1], other[1], strict=True) if a != b]
            counts["changed" if differ else "moved"] += 1
            columns.update(differ)
        counts["removed"] += max(len(ones) - (right - same).total(), 0)
        counts["added"] += len(others)
    return Difference(**counts, columns={name: columns[name] for name in names if columns[name]})


Row = tuple[str, tuple[bytes, ...]]
"""Split, and a digest of each column; empty for no value."""


def _contents(dataset: Dataset, names: Sequence[str]) -> dict[bytes, Counter[Row]]:
    """Content hash → (split, digests of the columns) → how many."""
    classes = dataset.manifest["classes"]
    out: dict[bytes, Counter[Row]] = {}
    for split in dataset.manifest["splits"]:
        index = dataset.split(split)
        for group in range(len(index.groups)):
            for row in read_group(index, group, ("content_sha256", *names)).to_pylist():
                told = tuple(_digest(_by_name(name, row.get(name), classes)) for name in names)
                out.setdefault(bytes.fromhex(row["content_sha256"]), Counter())[split, told] += 1
    return out


def _by_name(column: str, value: Any, classes: Sequence[str]) -> Any:
    """Class ids as names; of `labels`, a set that is stored in the order of its ids, in the names' order."""
    if column == "label":
        return classes[value] if value is not None and value >= 0 else None
    if column == "box_labels" and value:
        return [classes[k] if k >= 0 else None for k in value]
    if column == "labels" and value:
        return sorted(classes[k] for k in value)
    return value


def _digest(value: Any) -> bytes:
    if value is None or value == []:
        return b""
    return hashlib.sha256(value if isinstance(value, bytes) else repr(value).encode()).digest()[:8]
