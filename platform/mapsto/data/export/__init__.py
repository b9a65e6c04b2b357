"""A data set written out in a layout that others read, and `data/sources/` too: one file each, and a line in the table.

A format is a class of one argument, its `Plan`. `keeps` names the columns that it holds; `add(split, rows)` takes the rows
of one row group, `close(split)` comes after a split's last one, `finish()` at the end.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from ...core.errors import UserError, nearest
from ...core.storage import Storage
from ..annotations import LEFT_OUT
from ..dataset import Dataset, read_group
from .plan import Format, Plan
from .target import Target

FORMATS = {
    "folder": "mapsto.data.export.folder:Folder",
    "webdataset": "mapsto.data.export.webdataset:WebDataset",
    "coco": "mapsto.data.export.coco:Coco",
    "yolo": "mapsto.data.export.yolo:Yolo",
    "voc": "mapsto.data.export.voc:Voc",
    "parquet": "mapsto.data.export.parquet:Parquet",
}
OWN = {"image", "row_id", "content_sha256", "width", "height", "format", "source", "box_labels", LEFT_OUT}
"""Columns that an ingest of the export makes anew, that its files' names keep, or that go with another."""


def export(
    dataset: Dataset,
    uri: str,
    format: str,
    splits: Sequence[str] = (),
    *,
    force: bool = False,
    storage: Storage | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write a data set to a folder or prefix, row group by row group; returns what `export.json` says, its last file.

    `splits`: of the data set; none means all. Raises UserError for an unknown format or split, a target that is not
    empty, a data set that the format holds nothing of, and images that are not what was ingested. What the format cannot
    hold is counted under `left_out`.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format}: unknown{nearest(format, FORMATS)}")
    indices = [dataset.split(name) for name in splits or dataset.manifest["splits"]]
    target = Target(uri, storage or dataset.artifact.storage)
    _apart(dataset.artifact.uri, uri)
    plan = Plan(target, tuple(dataset.manifest["classes"]), tuple(dataset.manifest["columns"]), Counter())
    module, name = FORMATS[format].split(":")
    writer: Format = getattr(import_module(module), name)(plan)
    target.begin(force=force)
    rows: dict[str, int] = {}
    for index in indices:
        rows[index.name] = 0
        for number in range(len(index.groups)):
            group = read_group(index, number, plan.columns).to_pylist()
            for row in group:
                _check(row, index.group(number)[0].uri)
                _count_left_out(row, writer.keeps, plan.left_out)
            writer.add(index.name, group)
            rows[index.name] += len(group)
        writer.close(index.name)
        assert rows[index.name] == index.rows, (index.name, rows[index.name], index.rows)
        say(f"export: {index.name}: {index.rows:,} rows")
    writer.finish()
    report = {
        "format": format, "dataset": dataset.artifact.uri, "fingerprint": dataset.fingerprint, "rows": rows,
        "classes": list(plan.classes), "left_out": dict(plan.left_out.most_common()), "files": target.files,
        "bytes": target.size, "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    target.finish(report)
    return report


def _apart(dataset: str, target: str) -> None:
    ours, theirs = dataset.rstrip("/") + "/", target.rstrip("/") + "/"
    if ours.startswith(theirs) or theirs.startswith(ours):
        raise UserError(f"{target}: the data set lies there ({dataset}); an export needs a folder of its own")


def _check(row: dict[str, Any], shard: str) -> None:
    if "content_sha256" in row and hashlib.sha256(row["image"]).hexdigest() != row["content_sha256"]:
        raise UserError(f"{shard}: row {row['row_id']}: the image is not what was ingested (sha256); see `data verify`")


def _count_left_out(row: dict[str, Any], keeps: frozenset[str], left_out: Counter[str]) -> None:
    for name, value in row.items():
        if name not in keeps and name not in OWN and _says(value):
            left_out[f"{name}: rows that have it; the format does not"] += 1


def _says(value: Any) -> bool:
    """Whether there is something in it: in one of its entries, where there is one for each box."""
    if isinstance(value, list):
        return any(entry not in (None, False, "", "[]", []) for entry in value)
    return value not in (None, "", -1)
