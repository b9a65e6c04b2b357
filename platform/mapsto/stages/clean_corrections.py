"""What people have corrected (`mapsto data corrections`) → the rows as they are to be, before the rules look at them."""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..core.artifact import digest
from ..core.codecs import MAX_PIXELS, decode_mask
from ..core.errors import UserError, nearest
from ..core.storage import Storage
from ..curate.annotation.corrections import read_corrections
from ..curate.facts import Facts, bits, largest_id
from ..data.annotations import column_types
from ..data.dataset import Dataset
from ..data.rewrite import Correction


@dataclass(frozen=True)
class Corrected:
    """The facts of all rows as corrected, and what is to be written: index into the facts → columns."""

    facts: Facts
    rows: Mapping[int, Correction]
    erased: int = 0
    """Corrections of rows that are not there, in a data set of which rows were erased."""
    new_classes: tuple[str, ...] = ()
    """Appended to the data set's."""
    new_columns: Mapping[str, int] = field(default_factory=dict)
    """Columns that the data set lacked, and how many rows have them now."""

    def told(self, classes: Sequence[str]) -> Iterator[str]:
        """What was added to a data set of these classes."""
        for number, name in enumerate(self.new_classes, len(classes)):
            yield f"new class '{name}' (id {number})"
        for name, rows in self.new_columns.items():
            yield f"new column {name}: {rows} rows have it, the others are as not annotated"

    def widened(self, before: Dataset) -> Dataset:
        """The version before, as a data set of the new classes and columns."""
        old = before.manifest
        columns = [*old["columns"], *(name for name in self.new_columns if name not in old["columns"])]
        more = {
            key: {split: {} for split in old["splits"]} | old.get(key, {})
            for key, column in (("objects", "boxes"), ("mask_pixels", "mask"))
            if column in self.new_columns
        }
        return replace(
            before, manifest=old | {"classes": [*old["classes"], *self.new_classes], "columns": columns} | more
        )

    def written(self) -> tuple[str, ...]:
        """The new columns that every shard is to get; that of labels is in all of them."""
        return tuple(name for name in column_types() if name in self.new_columns)


def named(uris: Sequence[str], storage: Storage) -> list[list[str]]:
    """(URI, digest) of each file: new content makes a new version."""
    return [[uri, digest(storage.read(uri))] for uri in uris]


def corrected(
    facts: Facts,
    files: Sequence[Sequence[str]],
    storage: Storage,
    manifest: Mapping[str, Any],
    add_classes: Sequence[str] = (),
    void: Sequence[int] = (),
) -> Corrected:
    """Apply the files, as `named` has them, in their order; where two correct the same column of a row, the later one counts. A column
    that the data set lacks is added, and so are `add_classes`. Raises UserError for a row that is not in the data set (unless rows of it
    were erased: those are counted) or is another image, for any other unknown class, and for a file that has changed since `named`.
    `void`: ids of masks that mark no class, besides 255."""
    columns, gone = manifest["columns"], 0
    new_classes = tuple(name for name in add_classes if name not in manifest["classes"])
    classes = [*manifest["classes"], *new_classes]
    new_columns: Counter[str] = Counter()
    purged = any(each["rows"] for each in manifest.get("erased", ()))
    place = {int(row_id): k for k, row_id in enumerate(facts.row_id)} if files else {}
    label, outside, largest = facts.label.copy(), facts.outside.copy(), facts.largest_id.copy()
    left_out = facts.left_out.copy()
    width = len(bits((), len(classes)))
    present = facts.present
    index = {name: k for k, name in enumerate(classes)}
    rows: dict[int, dict[str, Any]] = {}
    for uri, known in files:
        data = storage.read(uri)
        if digest(data) != known:
            raise UserError(f"{uri}: has changed since this cleaning began; run it again")
        for entry in read_corrections(data, uri):
            row_id = entry["row_id"]
            where = f"{uri}: row {row_id}"
            k = place.get(row_id)
            if k is None and purged:
                gone += 1
                continue
            if k is None:
                raise UserError(f"{where} is not in the data set")
            if bytes.fromhex(entry["content_sha256"])[:16] != facts.content[k].ljust(16, b"\0"):
                raise UserError(f"{where} is another image in the data set; it was corrected in another one's version")
            new = rows.setdefault(k, {})
            if "label" in entry:
                label[k] = -1 if entry["label"] is None else _class(entry["label"], index, where)
            if "boxes" in entry:
                ids = [_class(name, index, where) for name in entry["box_labels"]]
                segments = entry.get("segments")
                new |= {"boxes": entry["boxes"], "box_labels": ids, "origin": entry["origin"], "segments": segments}
                if not facts.listed[k]:
                    if present is facts.present:  # of one label a row, it has no place for classes
                        present = np.pad(present, ((0, 0), (0, max(0, width - present.shape[1]))))
                    present[k] = bits(ids, len(classes))
                outside[k] = _outside(entry["boxes"], int(facts.width[k]), int(facts.height[k]))
                left_out[k] = 0  # a person has looked
            if "mask_png" in entry:
                new["mask"], largest[k] = _mask(
                    entry["mask_png"], int(facts.width[k]), int(facts.height[k]), where, void
                )
    for k, new in rows.items():
        given = {"label"} if label[k] != facts.label[k] else set()
        given |= {name for name in ("boxes", "box_labels", "mask") if new.get(name) is not None}
        given |= {"segments"} if any(text is not None for text in new.get("segments") or ()) else set()
        new_columns.update(name for name in sorted(given) if name not in columns)
    changed = replace(facts, label=label, outside=outside, left_out=left_out, largest_id=largest, present=present)
    made = {k: Correction(**new) for k, new in rows.items()}
    return Corrected(changed, made, gone, new_classes, new_columns)


def _class(name: str, index: Mapping[str, int], where: str) -> int:
    if name not in index:
        told = f"{where}: class '{name}' is none of the data set's (`clean.add_classes` may add it)"
        raise UserError(f"{told}{nearest(name, index)}")
    return index[name]


def _outside(boxes: Sequence[Sequence[float]], width: int, height: int) -> float:
    """As `curate.facts.of_annotations`."""
    array = np.array(boxes, np.float32).reshape(-1, 4)
    over = np.maximum(array - np.array([width, height, width, height]), -array)
    return float(max(over.max(initial=0), 0))


def _mask(text: str, width: int, height: int, where: str, void: Sequence[int]) -> tuple[bytes, int]:
    """The mask's bytes, and its largest id."""
    try:
        data = base64.b64decode(text, validate=True)
        mask = decode_mask(data, max(MAX_PIXELS, width * height))
    except (binascii.Error, UserError) as error:
        raise UserError(f"{where}: mask_png: {error}") from error
    if mask.shape != (height, width):
        raise UserError(f"{where}: mask_png is {mask.shape[1]}x{mask.shape[0]}, the image {width}x{height}")
    return data, largest_id(mask, void)
