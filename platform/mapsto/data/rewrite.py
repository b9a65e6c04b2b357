"""A shard of a new version: rows left out, relabelled, corrected, moved to another split, boxes cut. Runs in a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..core import codecs
from ..core.artifact import Artifact
from .annotations import PER_BOX, column_types
from .dataset import SplitIndex, read_group
from .shards import moments, write_shard

if TYPE_CHECKING:
    import pyarrow as pa


NO_SEGMENT = "[]"
"""COCO's segmentation of a box that has none."""


@dataclass(frozen=True)
class Correction:
    """New annotations of a row; None where they stay."""

    boxes: list[list[float]] | None = None
    """xyxy pixels, all of the row's."""
    box_labels: list[int] | None = None
    origin: list[int | None] | None = None
    """For each box the number of the row's former box that it was, whose further columns it keeps."""
    segments: list[str | None] | None = None
    """COCO's segmentation as JSON for each box, None for one that has none; without the list a box keeps that of its origin."""
    mask: bytes | None = None
    """Encoded picture of class ids."""


@dataclass(frozen=True)
class Edit:
    """What becomes of the rows of one shard, by their place in it. Rows not named stay as they are."""

    number: int
    """Of the shard, over all splits."""
    index: SplitIndex
    """The shard alone."""
    dropped: Mapping[int, str]
    """Place → reason."""
    labels: Mapping[int, int]
    moved: Mapping[int, str]
    """Place → split."""
    cut: frozenset[int]
    """Places whose boxes are clipped to the image."""
    corrected: Mapping[int, Correction] = field(default_factory=dict)
    """Place → what a person said."""

    def touched(self) -> bool:
        return bool(self.dropped or self.labels or self.moved or self.cut or self.corrected)


@dataclass(frozen=True)
class Rewrite:
    """The edits of a new version; `run(k)` carries out the k-th and writes what came of it under `work/edits/`."""

    artifact: Artifact
    columns: tuple[str, ...]
    edits: tuple[Edit, ...]
    added: tuple[str, ...] = ()
    """Further columns, without a value where nothing is corrected."""
    measured: bool = True
    """Whether the pixels of training images and of masks that come and go are looked at, for the manifest's figures."""

    def result_path(self, k: int) -> str:
        return self.artifact.path("work", "edits", f"{k:06d}.json")

    def run(self, k: int) -> None:
        """`files`: split → manifest entry; `pixels`: 2×3 sums of the training images' moments to add; `lost`: rows
        quarantined; `boxes`: boxes left out by cutting; `objects`, `mask_pixels`: split → class id → boxes, or pixels of masks,
        more or less than before."""
        edit = self.edits[k]
        kept: dict[str, list[pa.Table]] = {}
        refused: list[pa.Table] = []
        pixels, lost, boxes, start = np.zeros((2, 3)), 0, 0, 0
        objects: dict[str, Counter[str]] = {}
        masks: dict[str, Counter[str]] = {}
        for group in range(len(edit.index.groups)):
            table = read_group(edit.index, group, self.columns)
            table = _with(table.select([name for name in self.columns if name in table.schema.names]), self.added)
            count = table.num_rows
            _count(objects, table, np.full(count, edit.index.name), -1)
            former = table
            table, out = _mended(table, edit, start)
            boxes += out
            where = np.array([edit.moved.get(start + i, edit.index.name) for i in range(count)], object)
            gone = np.array([start + i in edit.dropped for i in range(count)])
            for split in dict.fromkeys(where[~gone].tolist()):
                kept.setdefault(split, []).append(table.filter((where == split) & ~gone))
            if gone.any():
                refused.append(
                    _with_reasons(table.filter(gone), [edit.dropped[start + i] for i in np.flatnonzero(gone)])
                )
                lost += int(gone.sum())
            _count(objects, table.filter(~gone), where[~gone], 1)
            if self.measured:
                _count_masks(
                    masks,
                    former,
                    table,
                    edit.index.name,
                    [None if out else split for split, out in zip(where.tolist(), gone.tolist(), strict=True)],
                )
                pixels += _change(table, edit.index.name, where, gone)
            start += count
        files = {
            split: write_shard(self.artifact, f"shards/{split}-{edit.number:06d}e.parquet", tables[0].schema, tables)
            for split, tables in kept.items()
        }
        if refused:
            name = f"quarantine/{edit.index.name}-{edit.number:06d}.parquet"
            write_shard(self.artifact, name, refused[0].schema, refused)
        self.artifact.storage.write_json(
            self.result_path(k),
            {
                "files": files,
                "pixels": pixels.tolist(),
                "lost": lost,
                "boxes": boxes,
                "objects": objects,
                "mask_pixels": masks,
            },
        )


def _with(table: pa.Table, added: Sequence[str]) -> pa.Table:
    import pyarrow as pa

    types = column_types()
    for name in added:
        if name not in table.schema.names:
            table = table.append_column(name, pa.nulls(table.num_rows, types[name]))
    return table


def _count(objects: dict[str, Counter[str]], table: pa.Table, where: np.ndarray, sign: int) -> None:
    if "box_labels" in table.schema.names:
        for split, labels in zip(where.tolist(), table["box_labels"].to_pylist(), strict=True):
            for label in labels or ():
                objects.setdefault(split, Counter())[str(label)] += sign


def _count_masks(
    masks: dict[str, Counter[str]], before: pa.Table, after: pa.Table, split: str, where: Sequence[str | None]
) -> None:
    """`where`: each row's split from now on; None where it has none. Masks that stay as and where they are are not decoded."""
    if "mask" not in before.schema.names:
        return
    for old, new, there in zip(before["mask"].to_pylist(), after["mask"].to_pylist(), where, strict=True):
        if old == new and there == split:
            continue
        for data, name, sign in ((old, split, -1), (new, there, 1)):
            if data is not None and name is not None:
                ids, counts = np.unique(codecs.decode_mask(data), return_counts=True)
                for number, count in zip(ids.tolist(), counts.tolist(), strict=True):
                    masks.setdefault(name, Counter())[str(number)] += sign * count


def _mended(table: pa.Table, edit: Edit, start: int) -> tuple[pa.Table, int]:
    """The table with new labels, what was corrected, and cut boxes, and how many boxes had no area left."""
    import pyarrow as pa

    table, out = _corrected(table, {k - start: v for k, v in edit.corrected.items()}), 0
    labels = {k - start: v for k, v in edit.labels.items() if 0 <= k - start < table.num_rows}
    if labels and "label" in table.schema.names:
        values = table["label"].to_pylist()
        for place, label in labels.items():
            values[place] = label
        table = _replaced(table, "label", pa.array(values, table.schema.field("label").type))
    cut = [k - start for k in edit.cut if 0 <= k - start < table.num_rows]
    if cut and "boxes" in table.schema.names:
        names = [name for name in ("boxes", *PER_BOX) if name in table.schema.names]
        columns = {name: table[name].to_pylist() for name in names}
        for place in cut:
            width, height = table["width"][place].as_py(), table["height"][place].as_py()
            boxes = np.clip(np.array(columns["boxes"][place], np.float32).reshape(-1, 4), 0, [width, height] * 2)
            sound = [x1 > x0 and y1 > y0 for x0, y0, x1, y1 in boxes.tolist()]
            out += sound.count(False)
            for name in names[1:]:
                if columns[name][place]:
                    columns[name][place] = [v for v, good in zip(columns[name][place], sound, strict=True) if good]
            columns["boxes"][place] = boxes[sound].tolist()
        for name in names:
            table = _replaced(table, name, pa.array(columns[name], table.schema.field(name).type))
    return table, out


def _corrected(table: pa.Table, corrections: Mapping[int, Correction]) -> pa.Table:
    import pyarrow as pa

    here = {k: new for k, new in corrections.items() if 0 <= k < table.num_rows}
    if not here:
        return table
    names = [name for name in ("boxes", *PER_BOX, "mask") if name in table.schema.names]
    columns = {name: table[name].to_pylist() for name in names}
    for k, new in here.items():
        if new.mask is not None:
            columns["mask"][k] = new.mask
        if new.boxes is None:
            continue
        former = np.array(columns["boxes"][k] or [], np.float32).reshape(-1, 4)
        kept = [_same(o, box, former) for o, box in zip(new.origin or (), new.boxes, strict=True)]
        for name, nothing in (("crowd", False), ("difficult", False), ("keypoints", []), ("segments", NO_SEGMENT)):
            if columns.get(name) and columns[name][k] is not None:
                columns[name][k] = [nothing if o is None else columns[name][k][o] for o in kept]
        if columns.get("area") and columns["area"][k]:  # of a box that was drawn anew the box's own
            columns["area"][k] = [
                columns["area"][k][o] if o is not None and np.allclose(former[o], box, atol=0.5) else None
                for o, box in zip(kept, new.boxes, strict=True)
            ]
        if "segments" in columns and new.segments is not None:
            columns["segments"][k] = [NO_SEGMENT if text is None else text for text in new.segments]
        columns["boxes"][k], columns["box_labels"][k] = new.boxes, new.box_labels
    for name in names:
        table = _replaced(table, name, pa.array(columns[name], table.schema.field(name).type))
    return table


def _same(origin: int | None, box: Sequence[float], former: np.ndarray) -> int | None:
    """The number of the box that a corrected one was, where it is there: in another version boxes may have been left out."""
    if origin is None or origin >= len(former):
        return None
    new, old = np.array(box), former[origin]
    inner = np.prod(np.maximum(np.minimum(new[2:], old[2:]) - np.maximum(new[:2], old[:2]), 0))
    return origin if 2 * inner >= np.prod(new[2:] - new[:2]) + np.prod(old[2:] - old[:2]) - inner else None


def _replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)


def _with_reasons(table: pa.Table, reasons: list[str]) -> pa.Table:
    import pyarrow as pa

    return table.append_column("reason", pa.array(reasons, pa.string()))


def _change(table: pa.Table, split: str, where: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """2×3: what the training split's sums of moments gain and lose by the rows that come and go."""
    total = np.zeros((2, 3))
    for i in _moving(split, where, gone):
        sign = -1.0 if split == "train" else 1.0
        total += sign * moments(codecs.decode(table["image"][i].as_py()))
    return total


def _moving(split: str, where: np.ndarray, gone: np.ndarray) -> Iterator[int]:
    for i in range(len(where)):
        after = None if gone[i] else where[i]
        if (split == "train") != (after == "train"):
            yield i
