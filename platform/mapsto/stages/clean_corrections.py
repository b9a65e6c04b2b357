"""What people have corrected (`mapsto data corrections`) → the rows as they are to be, before the rules look at them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.artifact import digest
from ..core.codecs import decode_mask
from ..core.errors import UserError, nearest
from ..core.storage import Storage
from ..curate.annotation.corrections import read_corrections
from ..curate.facts import Facts
from ..data.rewrite import Correction


@dataclass(frozen=True)
class Corrected:
    """The facts of all rows as corrected, and what is to be written: index into the facts → columns."""

    facts: Facts
    rows: Mapping[int, Correction]
    erased: int = 0
    """Corrections of rows that are not there, in a data set of which rows were erased."""


def named(uris: Sequence[str], storage: Storage) -> list[list[str]]:
    """(URI, digest) of each file: new content makes a new version."""
    return [[uri, digest(storage.read(uri))] for uri in uris]


def corrected(facts: Facts, uris: Sequence[str], storage: Storage, manifest: Mapping[str, Any]) -> Corrected:
    """Apply the files in their order; where two correct the same column of a row, the later one counts. Raises UserError for a row
    that is not in the data set (unless rows of it were erased: those are counted) or is another image, an unknown class, and a
    column that the data set lacks."""
    classes, columns, gone = manifest["classes"], manifest["columns"], 0
    purged = any(each["rows"] for each in manifest.get("erased", ()))
    place = {int(row_id): k for k, row_id in enumerate(facts.row_id)} if uris else {}
    label, outside, largest = facts.label.copy(), facts.outside.copy(), facts.largest_id.copy()
    index = {name: k for k, name in enumerate(classes)}
    rows: dict[int, dict[str, Any]] = {}
    for uri in uris:
        for entry in read_corrections(storage.read(uri), uri):
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
            for name, key in (("label", "label"), ("boxes", "boxes"), ("mask", "mask_png")):
                if key in entry and name not in columns:
                    raise UserError(f"{where} has a corrected {name}, and the data set has none: ingest it with {name}")
            new = rows.setdefault(k, {})
            if "label" in entry:
                label[k] = -1 if entry["label"] is None else _class(entry["label"], index, where)
            if "boxes" in entry:
                ids = [_class(name, index, where) for name in entry["box_labels"]]
                segments = entry.get("segments")
                new |= {"boxes": entry["boxes"], "box_labels": ids, "origin": entry["origin"], "segments": segments}
                outside[k] = _outside(entry["boxes"], int(facts.width[k]), int(facts.height[k]))
            if "mask_png" in entry:
                new["mask"], largest[k] = _mask(entry["mask_png"], int(facts.width[k]), int(facts.height[k]), where)
    changed = replace(facts, label=label, outside=outside, largest_id=largest)
    return Corrected(changed, {k: Correction(**new) for k, new in rows.items()}, gone)


def _class(name: str, index: Mapping[str, int], where: str) -> int:
    if name not in index:
        raise UserError(f"{where}: class '{name}' is none of the data set's{nearest(name, index)}")
    return index[name]


def _outside(boxes: Sequence[Sequence[float]], width: int, height: int) -> float:
    """As `curate.facts.of_annotations`."""
    array = np.array(boxes, np.float32).reshape(-1, 4)
    over = np.maximum(array - np.array([width, height, width, height]), -array)
    return float(max(over.max(initial=0), 0))


def _mask(text: str, width: int, height: int, where: str) -> tuple[bytes, int]:
    """The mask's bytes, and its largest id."""
    try:
        data = base64.b64decode(text, validate=True)
        mask = decode_mask(data)
    except (binascii.Error, UserError) as error:
        raise UserError(f"{where}: mask_png: {error}") from error
    if mask.shape != (height, width):
        raise UserError(f"{where}: mask_png is {mask.shape[1]}x{mask.shape[0]}, the image {width}x{height}")
    ids = mask[mask != 255]
    return data, int(ids.max()) if ids.size else -1
