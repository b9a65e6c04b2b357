"""WebDataset: tar shards `<split>-000000.tar` of samples `<row id>.jpg`, `.cls`, `.json`, `.mask.png`.

Source: https://github.com/webdataset/webdataset#the-webdataset-format
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

from ...core import codecs
from ..sources.item import is_image
from ..sources.webdataset import FIELDS, LARGEST_TEXT
from .plan import Plan
from .target import suffix

SHARD_BYTES = 128 * 2**20
"""A shard ends beyond so many; so much is held in memory."""


class WebDataset:
    """`.cls` is the class name; `.json` holds what else there is of the row, under the columns' names."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.keeps = frozenset({"label", "mask", *FIELDS})
        self._shard = 0
        self._open()

    def _open(self) -> None:
        self.buffer = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self.held = 0

    def add(self, split: str, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            for kind, data in self._members(row):
                member = tarfile.TarInfo(f"{row['row_id']:09d}.{kind}")
                member.size = len(data)
                self.tar.addfile(member, io.BytesIO(data))
            self.held += 1
            if self.buffer.tell() >= SHARD_BYTES:
                self._flush(split)

    def _members(self, row: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
        end = suffix(row.get("format") or codecs.header(row["image"]).format)
        if not is_image(end):
            self.plan.left_out[f"images with the suffix {end}: not taken for images by it"] += 1
        yield end[1:], row["image"]
        label = self.plan.label(row)
        if label is not None:
            yield "cls", label.encode()
        elif "label" in self.plan.columns:
            self.plan.left_out["rows without a label: samples without .cls"] += 1
        further = {name: row[name] for name in FIELDS if row.get(name) is not None}
        further |= {column: self.plan.named(row, column) for column in ("box_labels", "labels") if column in further}
        source = {"source": row["source"]} if row.get("source") else {}
        text = json.dumps(further | source, ensure_ascii=False).encode()
        if len(text) > LARGEST_TEXT:
            self.plan.left_out[f".json of more than {LARGEST_TEXT:,} bytes: not read back"] += 1
        yield "json", text
        if row.get("mask"):
            yield "mask.png", _png(row["mask"])

    def _flush(self, split: str) -> None:
        if self.held:
            self.tar.close()
            self.plan.target.put([(f"{split}-{self._shard:06d}.tar", self.buffer.getvalue())])
            self._shard += 1
            self._open()

    def close(self, split: str) -> None:
        self._flush(split)
        self._shard = 0

    def finish(self) -> None:
        pass


def _png(mask: bytes) -> bytes:
    """A mask as PNG: itself, or its ids where it is of another format."""
    return mask if mask.startswith(b"\x89PNG") else codecs.encode(codecs.decode_mask(mask), "png")
