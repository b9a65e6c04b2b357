"""A source's listing cut into chunks that tasks read: listed once, split by class and seed, kept beside the artifact."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..core.sample import Split
from ..core.storage import Storage, join
from .sources.item import Reference
from .splits import Chooser, Grouped, MultiLabel, classes_of, member_of

CHUNK_ROWS = 4096
CHUNK_BYTES = 64 * 2**20
"""A chunk ends at whichever comes first, and becomes one shard; several where its images turn out to be larger."""
UNKNOWN_BYTES = 128 * 2**10
"""What an image of unknown size counts."""
MASKS = ("_mask_range", "_mask_cell")
"""Where a mask is that is no file of its own."""
SHUFFLE_ROWS = 200_000
"""References to whole objects are shuffled through a buffer of so many, so that no shard holds one class only."""

FORM = 2
"""Of what a listing and the finished chunks keep for a resumed run; one that other code began, begins anew."""


@dataclass(frozen=True)
class Listed:
    """What a listing found, before an image is read."""

    rows: int
    chunks: int
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    """Further columns that the source gives, by the names of `annotations.COLUMNS`."""
    given: tuple[Split, ...]
    """Splits that the source itself gives."""
    groups: int = 0
    """Groups that the splits are to keep apart; 0 where they are not grouped."""
    straddling: int = 0
    """Of them, those that lie in several splits all the same, as the source's own splits have it."""

    form: int = FORM

    @staticmethod
    def of(saved: dict[str, Any]) -> Listed:
        """From its JSON form; `form` tells whether it is of this code."""
        return Listed(
            saved["rows"], saved["chunks"], tuple(saved["classes"]), tuple(saved["columns"]), tuple(saved["given"]),
            saved.get("groups", 0), saved.get("straddling", 0), saved.get("form", 0),
        )  # fmt: skip


def cut(
    references: Iterable[Reference],
    storage: Storage,
    folder: str,
    fractions: Mapping[Any, float],
    seed: int,
    limit: int | None,
    group: str | None = None,
    declared: Iterable[str] = (),
) -> Listed:
    """List once, into a temporary file; then assign splits and write the chunks to `folder`/chunk-000000.json.gz.

    `group`: rows that share this column (`identity`, `label`) stay in one split, unless the source's own splits part them, which
    is counted; UserError when none has it. `declared`: the classes that the source itself lists, read once the references have been.
    """
    counts: Counter[str] = Counter()
    names: set[str] = set()
    columns: set[str] = set()
    given: set[Split] = set()
    rows = grouped = single = drawn = 0
    multi_label = False
    where: dict[str, set[Split]] = {}
    with tempfile.TemporaryFile(prefix="mapsto-listing-") as spool:
        with gzip.open(spool, "wt", compresslevel=1) as out:
            for reference in _limited(references, limit, seed):
                rows += 1
                columns |= {
                    "mask" if name in MASKS else name
                    for name in reference.columns
                    if name in MASKS or not name.startswith("_")
                }
                if reference.label is not None:
                    columns.add("label")
                    names.add(reference.label)
                for several in ("box_labels", "labels"):
                    names |= {str(name) for name in reference.columns.get(several) or ()}
                if reference.split:
                    given.add(reference.split)
                if reference.split in (None, "train") and not reference.reason:
                    if group is None:
                        counts.update(classes := classes_of(reference))
                        drawn, multi_label = drawn + 1, multi_label or len(classes) > 1
                    elif (member := member_of(reference, group)) is not None:
                        counts[member] += 1
                        grouped += 1
                    else:
                        single += 1
                out.write(json.dumps(_brief(reference)) + "\n")
        wanted = {name: share for name, share in fractions.items() if name not in given}
        if group and rows and not grouped:
            raise UserError(f"group: no row has the column {group}, by which the splits are to be kept apart")
        shares = wanted.get("val", 0.0), wanted.get("test", 0.0)
        chooser: Chooser | MultiLabel | Grouped
        if group:
            chooser = Grouped(counts, *shares, seed, group, single)
        elif multi_label:
            chooser = MultiLabel(counts, drawn, *shares, seed)
        else:
            chooser = Chooser(counts, *shares, seed)
        spool.seek(0)
        with gzip.open(spool, "rt") as lines:
            ordered = _shuffled((Reference(**json.loads(line)) for line in lines), seed)
            chunks = _write(_placed(ordered, chooser, group, where))
            number = first = 0
            for split, held in chunks:
                _put(
                    storage,
                    folder,
                    number,
                    {"split": split, "first_row": first, "references": [_brief(r) for r in held]},
                )
                number, first = number + 1, first + len(held)
    apart = sum(len(splits) > 1 for splits in where.values())
    known = tuple(declared)
    known += ordered_classes(names.difference(known))
    return Listed(rows, number, known, tuple(sorted(columns)), tuple(sorted(given)), len(where), apart)


def _placed(
    references: Iterable[Reference],
    chooser: Chooser | MultiLabel | Grouped,
    group: str | None,
    where: dict[str, set[Split]],
) -> Iterator[tuple[Reference, Split]]:
    """Each reference with its split; `where` gets the splits that each group is found in."""
    for reference in references:
        split = chooser.split(reference)
        if group and not reference.reason and (member := member_of(reference, group)) is not None:
            where.setdefault(member, set()).add(split)
        yield reference, split


def read_chunk(storage: Storage, folder: str, number: int) -> tuple[Split, int, list[Reference]]:
    """(split, row_id of the first reference, references)."""
    saved = json.loads(gzip.decompress(storage.read(_path(folder, number))))
    return saved["split"], saved["first_row"], [Reference(**r) for r in saved["references"]]


def chunk_names(count: int) -> list[str]:
    """The file names of so many chunks."""
    return [_path("", number).lstrip("/") for number in range(count)]


def ordered_classes(names: Iterable[str]) -> tuple[str, ...]:
    """By name; by value where all are numbers, of at most 20 digits."""
    found = sorted(names)
    return tuple(sorted(found, key=int) if all(name.isdecimal() and len(name) <= 20 for name in found) else found)


def _write(assigned: Iterable[tuple[Reference, Split]]) -> Iterator[tuple[Split, list[Reference]]]:
    held: dict[Split, list[Reference]] = {}
    sizes: Counter[str] = Counter()
    for reference, split in assigned:
        held.setdefault(split, []).append(reference)
        sizes[split] += reference.size or UNKNOWN_BYTES
        if len(held[split]) >= CHUNK_ROWS or sizes[split] >= CHUNK_BYTES:
            yield split, held.pop(split)
            sizes[split] = 0
    yield from held.items()


def _shuffled(references: Iterable[Reference], seed: int) -> Iterator[Reference]:
    """Whole objects in random order; members of archives stay as they lie, so that a task reads a stretch."""
    rng = np.random.default_rng([seed, 2])
    buffer: list[Reference] = []
    for reference in references:
        if reference.how != "object":
            yield reference
        elif len(buffer) < SHUFFLE_ROWS:
            buffer.append(reference)
        else:
            k = int(rng.integers(SHUFFLE_ROWS))
            buffer[k], reference = reference, buffer[k]
            yield reference
    yield from (buffer[k] for k in rng.permutation(len(buffer)))


def _limited(references: Iterable[Reference], limit: int | None, seed: int) -> Iterator[Reference]:
    """At most `limit`, drawn evenly from the whole listing (reservoir sampling), in its order."""
    if limit is None:
        yield from references
        return
    rng = np.random.default_rng([seed, 3])
    kept: list[tuple[int, Reference]] = []
    for n, reference in enumerate(references):
        if len(kept) < limit:
            kept.append((n, reference))
        elif (k := int(rng.integers(n + 1))) < limit:
            kept[k] = (n, reference)
    yield from (reference for _, reference in sorted(kept, key=lambda pair: pair[0]))


def _brief(reference: Reference) -> dict[str, Any]:
    return {k: v for k, v in vars(reference).items() if v not in (None, "", 0, {})}


def _put(storage: Storage, folder: str, number: int, value: Any) -> None:
    storage.write(_path(folder, number), gzip.compress(json.dumps(value).encode(), compresslevel=1))


def _path(folder: str, number: int) -> str:
    return join(folder, f"chunk-{number:06d}.json.gz")
