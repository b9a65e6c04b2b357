"""COCO JSON: `images/<split>/`, `annotations/instances_<split>.json` (boxes, segments, keypoints, crowd, area) and, where there
are captions, `annotations/captions_<split>.json`.

Source: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import UserError
from ...core.runs import from_text
from .plan import Plan
from .target import Names


class Coco:
    """Raises UserError for a data set with neither boxes nor captions. Image ids are row ids; category ids are class ids
    and one. A split's entries wait in a temporary folder, one a line, until its JSON is written."""

    keeps = frozenset({"boxes", "box_labels", "segments", "keypoints", "crowd", "area", "caption"})

    def __init__(self, plan: Plan) -> None:
        if not {"boxes", "caption"} & set(plan.columns):
            raise UserError("--format coco: the data set has neither boxes nor captions; take folder or parquet")
        self.plan = plan
        self.names = Names()
        self.work = tempfile.TemporaryDirectory(prefix="mapsto-export-")
        self.annotations = 0

    def add(self, split: str, rows: Sequence[dict[str, Any]]) -> None:
        files = []
        for row in rows:
            stem, suffix = self.names.of(split, row)
            files.append((f"images/{split}/{stem}{suffix}", row["image"]))
            size = {"width": row["width"], "height": row["height"]}
            self._hold("images", [{"id": row["row_id"], "file_name": f"{stem}{suffix}", **size}])
            self._hold("instances", self._instances(row))
            lines = (row.get("caption") or "").split("\n") if row.get("caption") else []
            self._hold("captions", [self._numbered({"image_id": row["row_id"], "caption": line}) for line in lines])
        self.plan.target.put(files)

    def _numbered(self, entry: dict[str, Any]) -> dict[str, Any]:
        self.annotations += 1
        return {"id": self.annotations, **entry}

    def _instances(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        boxes = row.get("boxes") or []
        names = ("segments", "crowd", "keypoints", "area")
        segments, crowd, points, areas = (row.get(name) or [] for name in names)
        for k, (x0, y0, x1, y1) in enumerate(boxes):
            shape = json.loads(segments[k]) if segments else []
            entry = {
                "image_id": row["row_id"],
                "category_id": row["box_labels"][k] + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": areas[k] if areas and areas[k] is not None else area(shape, boxes[k]),
                "segmentation": shape,
                "iscrowd": int(bool(crowd and crowd[k])),
            }
            if points and points[k]:
                entry |= {"keypoints": points[k], "num_keypoints": sum(v > 0 for v in points[k][2::3])}
            yield self._numbered(entry)

    def _file(self, kind: str) -> Path:
        return Path(self.work.name) / kind

    def _hold(self, kind: str, entries: Sequence[dict[str, Any]] | Iterator[dict[str, Any]]) -> None:
        with open(self._file(kind), "a", encoding="utf-8") as out:
            out.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)

    def close(self, split: str) -> None:
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(self.plan.classes)]
        kinds = {"instances": "boxes", "captions": "caption"}
        for kind in [kind for kind, column in kinds.items() if column in self.plan.columns]:
            whole = self._file("whole")
            with open(whole, "w", encoding="utf-8") as out:
                out.write('{"images": [\n')
                self._copy("images", out)
                out.write('],\n"annotations": [\n')
                self._copy(kind, out)
                out.write(f'],\n"categories": {json.dumps(categories, ensure_ascii=False)}}}\n')
            self.plan.target.upload(whole, f"annotations/{kind}_{split}.json")
        for kind in ("images", *kinds):
            self._file(kind).unlink(missing_ok=True)

    def _copy(self, kind: str, out: Any) -> None:
        with open(self._file(kind), encoding="utf-8") as lines:
            for k, line in enumerate(lines):
                out.write(("," if k else "") + line)

    def finish(self) -> None:
        self.work.cleanup()


def area(shape: Any, box: Sequence[float]) -> float:
    """Pixels of a segmentation (polygons: the shoelace formula; RLE: its runs of 1), of the box where there is none."""
    if isinstance(shape, dict) and "counts" in shape:
        counts = shape["counts"]
        return float(sum((from_text(counts) if isinstance(counts, str) else counts)[1::2]))
    if isinstance(shape, list) and shape and all(len(polygon) >= 6 for polygon in shape):
        return float(sum(_shoelace(np.asarray(polygon, np.float64).reshape(-1, 2)) for polygon in shape))
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _shoelace(points: np.ndarray) -> float:
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
