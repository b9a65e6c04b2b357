"""One chunk of references → one Parquet shard: read, check, write, and a small summary. Runs in a task."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..core import codecs
from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.metadata import FREE, stripped
from ..core.sample import Split
from ..core.storage import Storage
from .annotations import LEFT_OUT, NO_AREA, annotated, column_types
from .chunks import read_chunk
from .dicom import is_dicom, to_png
from .execution import tries
from .pack import Packing, packed
from .reading import fetch
from .rows import with_index
from .sources.item import Reference
from .trial import Trial
from .values import sums

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_ROWS = 1024
GROUP_BYTES = 8 * 2**20
"""A row group ends at whichever comes first."""
SHARD_BYTES = 128 * 2**20
"""A chunk's rows are written as soon as so much of them is held: sources of unknown sizes have chunks of any."""
THUMB = 96
CAREFUL = 2
"""Lost processes after which a chunk's images are opened in another process first: one may crash its decoder."""

Summary = dict[str, Any]


@dataclass(frozen=True)
class ShardJob:
    """What every task of one ingest is handed."""

    artifact: Artifact
    source: Storage
    """Where the images are, which need not be where the artifact goes."""
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    max_pixels: int
    min_side: int
    thumbs: int
    """Pictures for the contact sheet from each chunk."""
    keep_metadata: bool = False
    packing: Packing | None = None

    def summary_path(self, number: int) -> str:
        return self.artifact.path("work", "done", f"{number:06d}.json")

    def run(self, number: int) -> Summary:
        """Write the shard, or shards, and the quarantine list of a chunk; its summary is written last, and makes it done. A file whose
        decoder has crashed the process twice is found and refused, too."""
        with ExitStack() as stack:
            return self._run(number, stack)

    def _run(self, number: int, stack: ExitStack) -> Summary:
        split, first, references = read_chunk(self.artifact.storage, self.artifact.path("work"), number)
        ids = {id(reference): first + k for k, reference in enumerate(references)}
        index = {name: k for k, name in enumerate(self.classes)}
        kept = _Kept(self, split, number)
        refused: list[dict[str, Any]] = []
        unstripped: Counter[str] = Counter()
        pixels, mask_pixels = np.zeros((2, 3)), np.zeros(256, np.int64)
        thumbs: list[tuple[str, str]] = []
        values: list[float] = []
        every = max(1, len(references) // max(self.thumbs, 1))
        trial = stack.enter_context(Trial(self.max_pixels)) if tries() >= CAREFUL else None
        for reference, data in fetch(references, self.source):
            try:
                if isinstance(data, str):
                    raise UserError(data)
                if trial:
                    trial.survived(data)
                row, image = self._checked(reference, data, index, unstripped)
            except UserError as error:
                refused.append(_refusal(reference, split, str(error)))
                continue
            mask_pixels += row.pop("_mask_pixels", 0)
            if split == "train":
                pixels += moments(image)
            if kept.rows % every == 0 and len(thumbs) < self.thumbs:
                small = codecs.encode(np.ascontiguousarray(_square(image)), "jpeg", 80)
                thumbs.append((base64.b64encode(small).decode(), reference.label or ""))
            if row.get("value") is not None:
                values.append(row["value"])
            kept.add(row | {"row_id": ids[id(reference)]})
        kept.write()
        summary = {
            "number": number,
            "split": split,
            "rows": len(references),
            "kept": kept.rows,
            "quarantined": len(refused),
            "files": kept.files,
            **kept.counts,
            "values": sums(values),
            "reasons": Counter(kind(entry["reason"]) for entry in refused),
            "refused": refused[:20],
            "unstripped": unstripped,
            "pixels": pixels.tolist(),
            "mask_pixels": {str(k): int(n) for k, n in enumerate(mask_pixels) if n},
            "thumbs": thumbs,
        }
        if refused:
            lines = "".join(json.dumps(entry) + "\n" for entry in refused)
            self.artifact.write(lines.encode(), "quarantine", f"{number:06d}.jsonl")
        self.artifact.storage.write_json(self.summary_path(number), summary)
        return summary

    def _checked(
        self,
        reference: Reference,
        data: bytes,
        index: Mapping[str, int],
        unstripped: Counter[str],
    ) -> tuple[dict[str, Any], np.ndarray]:
        """The row of an image that decodes whole, and its pixels; UserError says what is wrong with any other. Metadata that
        cannot be taken out is counted in `unstripped`, by format."""
        if is_dicom(data):
            with codecs.quiet(data):
                data = to_png(data, self.max_pixels)
        head = codecs.header(data, self.max_pixels)
        if min(head.width, head.height) < self.min_side:
            raise UserError(f"{head.width}x{head.height} is smaller than min_side {self.min_side}")
        stays = False
        if not self.keep_metadata and self.packing is None:
            bare = stripped(data, self.max_pixels)
            if bare is not None and bare != data:
                data, head = bare, codecs.header(bare, self.max_pixels)
            stays = bare is None and head.format not in FREE
        image = codecs.decode(data, self.max_pixels)
        height, width = image.shape[:2]
        row: dict[str, Any] = {
            "image": data,
            "label": index[reference.label] if reference.label is not None else -1,
            "width": width,
            "height": height,
            "format": head.format,
            "source": reference.name,
        } | annotated(reference, height, width, index, self.source)
        if self.packing is not None:
            row, image = packed(row, image, self.packing)
        unstripped.update([head.format] if stays else [])
        return row | {"content_sha256": hashlib.sha256(row["image"]).hexdigest()}, image


@dataclass
class _Kept:
    """The rows of a chunk that are kept: held up to `SHARD_BYTES`, then written as a shard."""

    job: ShardJob
    split: Split
    number: int
    rows: int = 0
    files: list[dict[str, Any]] = field(default_factory=list)
    """Entries of the manifest."""
    counts: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in _COUNTED})
    held: list[dict[str, Any]] = field(default_factory=list)
    size: int = 0

    def __post_init__(self) -> None:
        self.order = np.random.default_rng(self.number)

    def add(self, row: dict[str, Any]) -> None:
        self.rows, self.size = self.rows + 1, self.size + _size(row)
        self.held.append(row)
        for name, of in _COUNTED.items():
            self.counts[name].update(of(row))
        if self.size >= SHARD_BYTES:
            self.write()

    def write(self) -> None:
        """Write what is held, if anything."""
        import pyarrow as pa

        if not self.held:
            return
        self.order.shuffle(self.held)
        name = f"{self.split}-{self.number:06d}{f'-{len(self.files)}' if self.files else ''}.parquet"
        schema = shard_schema(self.job.columns)
        tables = (pa.Table.from_pylist(part, schema) for part in _groups(self.held))
        self.files.append(write_shard(self.job.artifact, f"shards/{name}", schema, tables))
        self.held, self.size = [], 0


def write_shard(artifact: Artifact, path: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> dict[str, Any]:
    """Write a Parquet shard with a row group for each table that has rows, and its row index; returns its entry in the manifest.
    There must be a row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    groups = []
    others = {name: "ZSTD" for name in schema.names if name not in ("image", "mask")}
    with pq.ParquetWriter(
        sink, schema, use_dictionary=False, compression={"image": "NONE", "mask": "NONE"} | others,
        write_page_checksum=True,
    ) as out:  # fmt: skip
        for table in tables:
            if table.num_rows:
                out.write_table(table, row_group_size=table.num_rows)
                groups.append(table.num_rows)
    data, places = with_index(sink.getvalue())
    sha256 = hashlib.sha256(data).hexdigest()
    artifact.write(data, path, sha256=sha256)
    return {
        "path": path,
        "rows": sum(groups),
        "groups": groups,
        "bytes": len(data),
        "sha256": sha256,
    } | places


def shard_schema(columns: tuple[str, ...]) -> pa.Schema:
    """The shards' schema: the columns that every data set has, and those of `columns` that this one has."""
    import pyarrow as pa

    every = {
        "image": pa.binary(),
        "row_id": pa.int64(),
        "label": pa.int64(),
        "content_sha256": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "format": pa.string(),
        "source": pa.string(),
    }
    wanted = {*columns, *({"box_labels"} if "boxes" in columns else ())}
    further = {name: kind for name, kind in column_types().items() if name in wanted}
    return pa.schema(every | further | ({LEFT_OUT: pa.int32()} if "boxes" in columns else {}))


def moments(image: np.ndarray) -> np.ndarray:
    """Per channel, in 0..1: the mean, and the mean square. Every image counts alike, as it does in training."""
    channels = [cv2.meanStdDev(channel) for channel in cv2.split(image)]  # half the time of all three at once
    mean, std = np.array(channels).reshape(3, 2).T / 255
    return np.stack([mean, std**2 + mean**2])


def _refusal(reference: Reference, split: Split, reason: str) -> dict[str, Any]:
    """A line of the quarantine; with the identity that the source gives, by which an erasure finds it."""
    person = reference.columns.get("identity")
    named = {} if person is None else {"identity": str(person)}
    return {"source": reference.name, "split": split, "reason": reason} | named


def _square(image: np.ndarray) -> np.ndarray:
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    filter = cv2.INTER_AREA if side > THUMB else cv2.INTER_NEAREST
    return cv2.resize(image[top : top + side, left : left + side], (THUMB, THUMB), interpolation=filter)


def kind(reason: str) -> str:
    """What many reasons have in common: without their details and numbers."""
    return re.sub(r"\d+(\.\d+)?", "N", reason.split(":")[0])


def _bin(side: int) -> str:
    low = 1 << (side.bit_length() - 1)
    return f"{low}-{2 * low - 1}"


def _size(row: Mapping[str, Any]) -> int:
    return len(row["image"]) + len(row.get("mask") or b"")


_COUNTED: Mapping[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "labels": lambda row: [str(row["label"])],
    "objects": lambda row: [str(k) for k in row.get("box_labels", ())],
    "dropped": lambda row: [NO_AREA] * row.get(LEFT_OUT, 0),
    "formats": lambda row: [row["format"]],
    "sizes": lambda row: [_bin(max(row["width"], row["height"]))],
}


def _groups(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    held: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        held.append(row)
        size += _size(row)
        if len(held) >= GROUP_ROWS or size >= GROUP_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held
