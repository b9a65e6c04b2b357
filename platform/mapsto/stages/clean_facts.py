"""A data set's facts, gathered shard by shard in Ray tasks, and its small pictures, in a file mapped into memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core import codecs
from ..core.artifact import Artifact
from ..core.sample import SPLITS
from ..curate.facts import NO_IDENTITY, Facts, bits, code, joined, of_annotations, of_classes, of_image
from ..curate.fingerprints import THUMB_BYTES
from ..curate.quality import MEASURES
from ..data.annotations import LEFT_OUT
from ..data.dataset import Dataset, SplitIndex, read_group
from ..data.execution import each
from ..runtime.progress import bar

COLUMNS = (
    "image",
    "row_id",
    "label",
    "content_sha256",
    "width",
    "height",
    "format",
    "boxes",
    "box_labels",
    LEFT_OUT,
    "labels",
    "mask",
    "identity",
)


def shards(dataset: Dataset) -> list[SplitIndex]:
    """Every shard as an index of its own, in the manifest's order."""
    found = []
    for split in SPLITS:
        if split in dataset.manifest["splits"]:
            index = dataset.split(split)
            found += [SplitIndex(split, (file,), index.storage) for file in index.files]
    return found


def columns_of(dataset: Dataset) -> list[str]:
    """The shards' own columns, in their order."""
    import pyarrow.parquet as pq

    filesystem, path = dataset.artifact.storage.arrow(shards(dataset)[0].files[0].uri)
    return pq.read_schema(path, filesystem=filesystem).names


@dataclass(frozen=True)
class FactsJob:
    """What every task is handed."""

    artifact: Artifact
    shards: tuple[SplitIndex, ...]
    classes: int
    """That a row may have several of; 0 where none has lists of labels or boxes."""
    void: tuple[int, ...] = ()
    """Mask ids that mark no class, besides 255."""

    def path(self, number: int) -> str:
        return self.artifact.path("work", "facts", f"{number:06d}.parquet")

    def run(self, number: int) -> None:
        """Write the facts of one shard."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        index = self.shards[number]
        rows: list[dict[str, Any]] = []
        for group in range(len(index.groups)):
            rows += [_row(row, self.classes, self.void) for row in read_group(index, group, COLUMNS).to_pylist()]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, _schema(self.classes)), sink, compression="NONE")
        self.artifact.storage.write(self.path(number), sink.getvalue().to_pybytes())

    def read(self, number: int) -> dict[str, np.ndarray]:
        import pyarrow.parquet as pq

        filesystem, path = self.artifact.storage.arrow(self.path(number))
        table = pq.read_table(path, filesystem=filesystem)
        columns = {
            name: table[name].to_numpy()
            for name in (
                "row_id",
                "label",
                "identity",
                "width",
                "height",
                "outside",
                "left_out",
                "largest_id",
                "listed",
            )
        }
        for name, size in (("content", 16), ("pixels", 16)):
            columns[name] = _fixed(table[name], size).view(f"S{size}").ravel()
        columns["measures"] = _fixed(table["measures"], 4 * len(MEASURES)).view(np.float32)
        columns["present"] = _fixed(table["present"], len(bits((), self.classes)))
        columns["thumb"] = _fixed(table["thumb"], THUMB_BYTES)
        return columns | {"format": np.array(table["format"].to_pylist(), str)}


def gather(
    artifact: Artifact,
    dataset: Dataset,
    folder: Path,
    resume: bool,
    say: Callable[[str], None],
    void: tuple[int, ...] = (),
) -> tuple[Facts, np.ndarray]:
    """The facts of all rows, and their small pictures (N×4,296 uint8) in a file in `folder`. Finished shards are not done again."""
    found = shards(dataset)
    several = not {"labels", "box_labels"}.isdisjoint(columns_of(dataset))
    job = FactsJob(artifact, tuple(found), len(dataset.manifest["classes"]) if several else 0, void)
    there = set(artifact.storage.names(artifact.path("work", "facts"))) if resume else set()
    missing = [k for k in range(len(found)) if f"{k:06d}.parquet" not in there]
    if len(missing) < len(found):
        say(f"clean: the facts of {len(found) - len(missing)} of {len(found)} shards are there already")
    for _ in bar(each(job.run, missing), "clean: shards", len(missing)):
        pass
    total = sum(index.rows for index in found)
    thumbs = np.memmap(folder / "thumbs", np.uint8, "w+", shape=(total, THUMB_BYTES))
    parts, start = [], 0
    for number in range(len(found)):
        part = job.read(number)
        pictures = part.pop("thumb")
        thumbs[start : start + len(pictures)] = pictures
        start += len(pictures)
        parts.append(part)
    return joined(parts, [index.name for index in found]), thumbs


def _row(row: dict[str, Any], classes: int, void: tuple[int, ...]) -> dict[str, Any]:
    width, height = row["width"], row["height"]
    boxes = np.array(row["boxes"], np.float32).reshape(-1, 4) if row.get("boxes") else None
    mask = codecs.decode_mask(row["mask"]) if row.get("mask") else None
    known = {name: row[name] for name in ("row_id", "label", "width", "height", "format")}
    seen = of_image(codecs.decode(row["image"])) | of_annotations(width, height, boxes, mask, void)
    seen |= of_classes(row.get("labels"), row.get("box_labels"), classes)
    known["identity"] = code(row["identity"]) if row.get("identity") is not None else NO_IDENTITY
    known["left_out"] = row.get(LEFT_OUT) or 0
    return known | {"content": bytes.fromhex(row["content_sha256"])[:16]} | seen


def _schema(classes: int) -> Any:
    import pyarrow as pa

    return pa.schema({
        "row_id": pa.int64(), "label": pa.int64(), "identity": pa.int64(), "width": pa.int32(), "height": pa.int32(), "format": pa.string(),
        "content": pa.binary(16), "pixels": pa.binary(16), "measures": pa.binary(4 * len(MEASURES)),
        "thumb": pa.binary(THUMB_BYTES), "outside": pa.float32(), "left_out": pa.int32(), "largest_id": pa.int16(),
        "present": pa.binary(len(bits((), classes))), "listed": pa.bool_(),
    })  # fmt: skip


def _fixed(column: Any, size: int) -> np.ndarray:
    """A column of fixed-size binaries → N×size uint8."""
    joined = column.combine_chunks()
    start = joined.offset * size
    return np.frombuffer(joined.buffers()[1], np.uint8)[start : start + len(joined) * size].reshape(-1, size)
