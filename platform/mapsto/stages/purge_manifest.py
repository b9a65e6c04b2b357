"""A version's manifest and `artifact.json` after an erasure: counted anew from the rows that are left."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import codecs
from ..core.storage import Storage
from ..data.annotations import LEFT_OUT, NO_AREA
from ..data.dataset import content_digest
from ..data.shards import kind, moments
from ..data.tally import longest_side
from ..data.values import joined, sums
from .purge_plan import Plan, lines, quarantines, small
from .tree import Node

if TYPE_CHECKING:
    import pyarrow as pa

COUNTED = ("row_id", "content_sha256", "label", "width", "height", "format", "box_labels", LEFT_OUT, "value")
Entry = dict[str, Any]


def mended(version: Node, plan: Plan, replaced: Mapping[str, Entry | None]) -> dict[str, Any]:
    """The manifest as it is to be. `replaced`: old shard → the entry of the new one, None where no row is left.

    A function of what lies in the store and of the plan only, so that a second run gives the same.
    """
    out = dict(version.manifest)
    if any(uri in replaced for _, uri, _ in version.files()):
        out |= _counts(version, plan)
        out |= _pixels(version, plan)
        out["splits"] = _splits(version, replaced)
    reasons: Counter[str] = Counter()
    for uri in quarantines(version, ".parquet"):
        table = small(version.artifact.storage, uri, ("row_id", "content_sha256", "reason"))
        reasons.update(table.filter(~plan.hits(table, version.uri))["reason"].to_pylist())
    for uri in quarantines(version, ".jsonl"):
        reasons.update(_reason(line) for line in lines(version.artifact.storage, uri) if not plan.refused(line))
    kept = sum(split["rows"] for split in out["splits"].values())
    erased = [each for each in out.get("erased", ()) if each["date"] != plan.date]
    return out | {
        "rows_in": kept + reasons.total(), "rows_kept": kept, "rows_quarantined": reasons.total(),
        "reasons": dict(reasons.most_common()), "erased": [*erased, {"date": plan.date} | plan.counts[version.uri]],
    }  # fmt: skip


def mended_meta(version: Node, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """`artifact.json` with the new numbers; with a new digest where rows left the shards, so that children are made anew."""
    meta, splits = dict(version.meta), manifest["splits"]
    new = {"images": manifest["rows_kept"], "quarantined": manifest["rows_quarantined"]}
    new |= {name: splits[name]["rows"] if name in splits else 0 for name in ("train", "val", "test")}
    meta["metrics"] = {name: new.get(name, value) for name, value in meta["metrics"].items()}
    if any(each["rows"] for each in manifest["erased"]):
        meta["digest"] = content_digest(manifest)
    return meta


def _splits(version: Node, replaced: Mapping[str, Entry | None]) -> dict[str, Any]:
    """A split without rows goes, as `ingest` has it."""
    files: dict[str, list[Entry]] = {name: [] for name in version.manifest["splits"]}
    for split, uri, entry in version.files():
        new = replaced.get(uri, entry)
        if new is not None:
            path = entry["path"] if new is entry else f"{entry['path'].rpartition('/')[0]}/{new['path']}"
            files[split].append(new | {"path": path})
    return {name: {"rows": sum(f["rows"] for f in held), "files": held} for name, held in files.items() if held}


def _counts(version: Node, plan: Plan) -> dict[str, Any]:
    """What the manifest counts by row, over those that stay."""
    old, classes = version.manifest, version.manifest["classes"]
    labels: dict[str, Counter[int]] = {}
    objects: dict[str, Counter[int]] = {}
    formats: Counter[str] = Counter()
    values: dict[str, list[list[float]]] = {}
    sides = [np.empty(0, np.int64)]
    left_out = 0
    for split, uri, _ in version.files():
        table = small(version.artifact.storage, uri, COUNTED)
        table = table.filter(~plan.hits(table, version.uri))
        if table.num_rows:
            labels.setdefault(split, Counter()).update(table["label"].to_pylist())
            formats.update(table["format"].to_pylist())
            sides.append(np.maximum(table["width"].to_numpy(), table["height"].to_numpy()))
            if LEFT_OUT in table.schema.names:
                left_out += sum(table[LEFT_OUT].drop_null().to_pylist())
            if "value" in table.schema.names:
                values.setdefault(split, []).append(sums(table["value"].drop_null().to_pylist()))
            if old.get("objects"):
                found = table["box_labels"].to_pylist() if "box_labels" in table.schema.names else []
                objects.setdefault(split, Counter()).update(k for each in found for k in each or ())

    def named(counts: Mapping[str, Counter[int]]) -> dict[str, dict[str, int]]:
        return {s: {name: c[k] for k, name in enumerate(classes) if c[k]} for s, c in counts.items()}

    dropped = dict(old.get("dropped", {}))
    if NO_AREA in dropped and LEFT_OUT in old["columns"]:  # without the column, what was counted stays
        dropped[NO_AREA] = left_out
    return {
        "dropped": {what: count for what, count in dropped.items() if count},
        "counts": named(labels), "objects": named(objects) if old.get("objects") else old.get("objects", {}),
        "formats": dict(formats.most_common()), "longest_side": longest_side(np.concatenate(sides)),
        **({"values": {split: joined(parts) for split, parts in values.items()}} if "values" in old else {}),
    }  # fmt: skip


def _pixels(version: Node, plan: Plan) -> dict[str, Any]:
    """Mean and standard deviation of the training images, and the masks' ids, without those of the erased rows."""
    old = version.manifest
    mean, std, count = np.array(old["mean"]), np.array(old["std"]), int(old["pixels_from"])
    sums = np.stack([mean, std**2 + mean**2]) * count
    masks = {split: Counter(found) for split, found in old.get("mask_pixels", {}).items()}
    for split, uri, _ in version.files():
        if uri not in plan.shards:
            continue
        for row in erased_rows(version.artifact.storage, uri, plan, version.uri):
            if split == "train":
                sums -= moments(codecs.decode(row["image"]))
                count -= 1
            if row.get("mask") and split in masks:
                ids, found = np.unique(codecs.decode_mask(row["mask"]), return_counts=True)
                masks[split].subtract({str(k): int(n) for k, n in zip(ids, found, strict=True)})
    out = {"mask_pixels": {split: {k: n for k, n in found.items() if n > 0} for split, found in masks.items()}}
    if count > 0 and count != old["pixels_from"]:
        mean, square = sums / count
        out |= {"mean": mean.round(6).tolist(), "std": np.sqrt(np.maximum(square - mean**2, 0)).round(6).tolist()}
    return out | {"pixels_from": max(count, 0)}


def erased_rows(storage: Storage, uri: str, plan: Plan, version: str) -> list[dict[str, Any]]:
    """The pictures and masks of a shard's rows to erase."""
    rows = []
    for table in groups(storage, uri, ("row_id", "content_sha256", "image", "mask")):
        rows += table.filter(plan.hits(table, version)).to_pylist()
    return rows


def groups(storage: Storage, uri: str, columns: tuple[str, ...] | None = None) -> Iterator[pa.Table]:
    """A Parquet file's row groups, one at a time."""
    import pyarrow.parquet as pq

    filesystem, path = storage.arrow(uri)
    with storage.retry(uri, lambda: pq.ParquetFile(path, filesystem=filesystem)) as file:
        have = file.schema_arrow.names
        wanted = [name for name in columns if name in have] if columns else have
        for number in range(file.num_row_groups):
            yield file.read_row_group(number, columns=wanted)


def _reason(line: str) -> str:
    return kind(json.loads(line)["reason"])
