"""Pascal VOC: `JPEGImages/`, `Annotations/<name>.xml`, `SegmentationClass/`, `ImageSets/Main/<split>.txt`;
`labelmap.txt` with the classes, as CVAT and Datumaro have it.

Boxes are 1-based and inclusive there (The PASCAL VOC development kit, 2012, section 4.2): the lower corner moves by one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from ...core.errors import UserError
from .plan import Plan
from .target import Names, mask_suffix
from .yolo import CROWD


class Voc:
    """Raises UserError for a data set with neither boxes nor masks."""

    keeps = frozenset({"boxes", "box_labels", "difficult", "mask", "crowd"})

    def __init__(self, plan: Plan) -> None:
        if not {"boxes", "mask"} & set(plan.columns):
            raise UserError("--format voc: the data set has neither boxes nor masks; take folder or parquet")
        self.plan = plan
        self.names = Names()
        self.listed = tempfile.TemporaryDirectory(prefix="mapsto-export-")

    def add(self, split: str, rows: Sequence[dict[str, Any]]) -> None:
        files = []
        with open(self._list(split), "a", encoding="utf-8") as listed:
            for row in rows:
                stem, suffix = self.names.of("", row)
                files.append((f"JPEGImages/{stem}{suffix}", row["image"]))
                files.append((f"Annotations/{stem}.xml", self._annotation(row, f"{stem}{suffix}")))
                if row.get("mask"):
                    files.append((f"SegmentationClass/{stem}{mask_suffix(row['mask'])}", row["mask"]))
                listed.write(f"{stem}\n")
        self.plan.target.put(files)

    def _list(self, split: str) -> Path:
        return Path(self.listed.name) / f"{split}.txt"

    def _annotation(self, row: dict[str, Any], name: str) -> bytes:
        root = Element("annotation")
        _texts(root, {"folder": "JPEGImages", "filename": name})
        _texts(SubElement(root, "size"), {"width": row["width"], "height": row["height"], "depth": 3})
        _texts(root, {"segmented": int(bool(row.get("mask")))})
        boxes = row.get("boxes") or []
        crowd, difficult = row.get("crowd") or [], row.get("difficult") or []
        for k, (box, label) in enumerate(zip(boxes, self.plan.named(row), strict=True)):
            if crowd and crowd[k]:
                self.plan.left_out[CROWD] += 1
                continue
            if min(box[2] - box[0], box[3] - box[1]) <= 1:
                self.plan.left_out["boxes of at most one pixel's width or height: not read back"] += 1
            thing = SubElement(root, "object")
            _texts(thing, {"name": label, "difficult": int(bool(difficult and difficult[k]))})
            corners = zip(("xmin", "ymin", "xmax", "ymax"), (box[0] + 1, box[1] + 1, box[2], box[3]), strict=True)
            _texts(SubElement(thing, "bndbox"), {name: f"{value:.12g}" for name, value in corners})
        indent(root)
        return tostring(root, encoding="utf-8")

    def close(self, split: str) -> None:
        self.plan.target.upload(self._list(split), f"ImageSets/Main/{split}.txt")

    def finish(self) -> None:
        if "boxes" in self.plan.columns:  # by it CVAT and Datumaro know classes that are not VOC's own twenty
            lines = "".join(f"{name}:::\n" for name in ("background", *self.plan.classes))
            self.plan.target.put([("labelmap.txt", f"# label:color_rgb:parts:actions\n{lines}".encode())])
        self.listed.cleanup()


def _texts(parent: Element, values: dict[str, Any]) -> None:
    for name, value in values.items():
        SubElement(parent, name).text = str(value)
