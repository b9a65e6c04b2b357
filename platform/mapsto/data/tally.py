"""Shards' summaries added up: the data set's manifest, its contact sheet and its page."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core import codecs
from ..core.errors import UserError
from ..core.page import Page
from ..core.picture import banner, wall
from ..core.sample import SPLITS
from .chunks import Listed
from .shards import Summary, shard_schema
from .values import joined

SHEET_PICTURES = 64
SHOWN = 50
"""Most rows of a table on the page."""


@dataclass
class Tally:
    """Summaries in any order; the same sums whatever it was."""

    summaries: dict[int, Summary] = field(default_factory=dict)
    rows: int = 0

    def add(self, summary: Summary) -> None:
        self.rows += summary["rows"] if summary["number"] not in self.summaries else 0
        self.summaries[summary["number"]] = summary

    def ordered(self) -> list[Summary]:
        return [self.summaries[number] for number in sorted(self.summaries)]

    def total(self, name: str) -> int:
        return sum(summary[name] for summary in self.summaries.values())

    def counter(self, name: str, split: str | None = None) -> Counter[str]:
        out: Counter[str] = Counter()
        for summary in self.summaries.values():
            if split in (None, summary["split"]):
                out.update(summary[name])
        return out

    def manifest(self, uri: str, layout: str, listed: Listed, wanted: Sequence[str]) -> dict[str, Any]:
        """`dataset.json`. `wanted`: the splits that must not be empty. Raises UserError for no readable image at all
        or an empty split; asserts that every row is accounted for."""
        kept, refused = self.total("kept"), self.total("quarantined")
        assert listed.rows == self.rows == kept + refused, (listed.rows, self.rows, kept, refused)
        if not kept:
            first = next(entry for summary in self.ordered() for entry in summary["refused"])
            raise UserError(
                f"{uri}: none of its {listed.rows} files is an image that can be read; the first: {first['source']}: {first['reason']}"
            )
        splits = {}
        for split in SPLITS:
            files = [file for summary in self.ordered() if summary["split"] == split for file in summary["files"]]
            if files:
                splits[split] = {"rows": sum(file["rows"] for file in files), "files": files}
            elif split in wanted:
                raise UserError(f"{uri}: the {split} split has no images; {_remedy(split, listed)}")
        mean, std = self._pixels()
        return {
            "source": uri,
            "layout": layout,
            "classes": list(listed.classes),
            "columns": [
                name for name in shard_schema(listed.columns).names if name != "label" or "label" in listed.columns
            ],
            "splits": splits,
            "given_splits": list(listed.given),
            "counts": {split: self._counts(split, listed.classes) for split in splits},
            "mean": mean,
            "std": std,
            "pixels_from": sum(s["kept"] for s in self.summaries.values() if s["split"] == "train"),
            "rows_in": listed.rows,
            "rows_kept": kept,
            "rows_quarantined": refused,
            "reasons": dict(self.counter("reasons").most_common()),
            "dropped": dict(self.counter("dropped").most_common()),
            "unstripped": dict(self.counter("unstripped").most_common()),
            "objects": {split: self._objects(split, listed.classes) for split in splits if "boxes" in listed.columns},
            "mask_pixels": {split: self._ids(split) for split in splits if "mask" in listed.columns},
            **({"values": {split: self._values(split) for split in splits}} if "value" in listed.columns else {}),
            "formats": dict(self.counter("formats").most_common()),
            "longest_side": dict(sorted(self.counter("sizes").items(), key=lambda pair: int(pair[0].split("-")[0]))),
        }

    def _pixels(self) -> tuple[list[float], list[float]]:
        """Per-channel mean and standard deviation of the training pixels, 0..1, every image weighing alike."""
        count = sum(s["kept"] for s in self.summaries.values() if s["split"] == "train")
        mean, square = np.sum([s["pixels"] for s in self.ordered()], axis=0) / max(count, 1)
        return mean.round(6).tolist(), np.sqrt(np.maximum(square - mean**2, 0)).round(6).tolist()

    def _counts(self, split: str, classes: Sequence[str]) -> dict[str, int]:
        found = self.counter("labels", split)
        return {name: found[str(k)] for k, name in enumerate(classes) if found[str(k)]}

    def _objects(self, split: str, classes: Sequence[str]) -> dict[str, int]:
        found = self.counter("objects", split)
        return {name: found[str(k)] for k, name in enumerate(classes) if found[str(k)]}

    def _ids(self, split: str) -> dict[str, int]:
        return dict(sorted(self.counter("mask_pixels", split).items(), key=lambda pair: int(pair[0])))

    def _values(self, split: str) -> dict[str, float]:
        return joined(summary["values"] for summary in self.ordered() if summary["split"] == split)

    def sheet(self) -> np.ndarray:
        """Up to 64 images with their labels, from all over the data set."""
        thumbs = [thumb for summary in self.ordered() for thumb in summary["thumbs"]]
        step = max(1.0, len(thumbs) / SHEET_PICTURES)
        picked = [thumbs[int(k * step)] for k in range(min(len(thumbs), SHEET_PICTURES))]
        return wall([banner(codecs.decode(base64.b64decode(data)), label, 128) for data, label in picked])

    def page(self, name: str, manifest: dict[str, Any]) -> str:
        page = Page(f"{name}: data set", manifest["source"])
        page.cards(
            {
                "images": manifest["rows_kept"],
                "classes": len(manifest["classes"]),
                "quarantined": manifest["rows_quarantined"],
            }
        )
        page.picture(codecs.encode(self.sheet(), "jpeg", 85), "Images from all over the data set")
        page.heading("Splits")
        given = manifest["given_splits"]
        page.table(
            ("split", "images", "shards", "comes from"),
            [
                (s, v["rows"], len(v["files"]), "the source" if s in given else "drawn")
                for s, v in manifest["splits"].items()
            ],
        )
        if manifest["classes"]:
            page.heading("Classes")
            page.table(
                ("class", *manifest["splits"]),
                [
                    (c, *(manifest["counts"][s].get(c, 0) for s in manifest["splits"]))
                    for c in manifest["classes"][:SHOWN]
                ],
            )
            if len(manifest["classes"]) > SHOWN:
                page.text(f"and {len(manifest['classes']) - SHOWN} more classes")
        if manifest["objects"]:
            page.heading("Objects")
            objects = manifest["objects"]
            page.table(
                ("class", *objects),
                [(c, *(objects[s].get(c, 0) for s in objects)) for c in manifest["classes"][:SHOWN]],
            )
        if manifest["mask_pixels"]:
            page.heading("Masks")
            pixels = manifest["mask_pixels"]
            ids = sorted({k for found in pixels.values() for k in found}, key=int)
            page.table(
                ("id", *(f"{s}, pixels" for s in pixels)), [(k, *(pixels[s].get(k, 0) for s in pixels)) for k in ids]
            )
        page.heading("Images")
        page.table(("longest side in pixels", "images"), manifest["longest_side"].items())
        page.table(("format", "images"), manifest["formats"].items())
        page.text(
            f"Training pixels (RGB, 0..1): mean {manifest['mean']}, standard deviation {manifest['std']}, over {manifest['pixels_from']} images."
        )
        if manifest["unstripped"]:
            page.table(("format whose metadata (places, cameras) stays", "images"), manifest["unstripped"].items())
        page.heading("Quarantine")
        page.text(
            f"{manifest['rows_in']} files in = {manifest['rows_kept']} kept + {manifest['rows_quarantined']} quarantined (quarantine/*.jsonl)."
        )
        if manifest["dropped"]:
            page.table(("left out of the annotations", "count"), manifest["dropped"].items())
        if manifest["rows_quarantined"]:
            page.table(("reason", "files"), manifest["reasons"].items())
            refused = [entry for summary in self.ordered() for entry in summary["refused"]][:SHOWN]
            page.table(("file", "reason"), [(entry["source"], entry["reason"]) for entry in refused])
        return page.html()


def longest_side(sides: np.ndarray) -> dict[str, int]:
    """How many images have their longest side in each doubling of pixels: `512-1023` → 7."""
    low, count = np.unique(np.floor(np.log2(np.maximum(sides, 1))).astype(int), return_counts=True)
    return {f"{1 << k}-{(2 << k) - 1}": int(n) for k, n in zip(low.tolist(), count.tolist(), strict=True)}


def _remedy(split: str, listed: Listed) -> str:
    if split in listed.given:
        return "the source names it, but none of its files is an image that can be read"
    if split == "train":
        return "every image went to val and test: set smaller shares in `splits`"
    return f"{listed.rows} images are too few for its share: set a larger one in `splits`, or 0 for none"
