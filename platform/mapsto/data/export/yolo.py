"""YOLO text: `images/<split>/`, `labels/<split>/` with a line `class x y width height` for each box, and `data.yaml`.

Source: https://docs.ultralytics.com/datasets/detect/
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from ...core.errors import UserError
from .plan import Plan
from .target import Names

CROWD = "crowd regions: they are no single object"


class Yolo:
    """Raises UserError for a data set without boxes."""

    keeps = frozenset({"boxes", "box_labels", "crowd"})

    def __init__(self, plan: Plan) -> None:
        if "boxes" not in plan.columns:
            raise UserError("--format yolo: the data set has no boxes; take folder or parquet")
        self.plan = plan
        self.names = Names()
        self.splits: list[str] = []

    def add(self, split: str, rows: Sequence[dict[str, Any]]) -> None:
        files = []
        for row in rows:
            stem, suffix = self.names.of(split, row)
            files.append((f"images/{split}/{stem}{suffix}", row["image"]))
            if lines := "".join(self._lines(row)):
                files.append((f"labels/{split}/{stem}.txt", lines.encode()))
        self.plan.target.put(files)

    def _lines(self, row: dict[str, Any]) -> Iterator[str]:
        width, height = row["width"], row["height"]
        for box, label in single(row, self.plan):
            x0, y0, x1, y1 = box
            shares = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
            yield f"{label} {' '.join(f'{share:.12g}' for share in shares)}\n"

    def close(self, split: str) -> None:
        self.splits.append(split)

    def finish(self) -> None:
        folders = {split: f"images/{split}" for split in self.splits}
        names = dict(enumerate(self.plan.classes))
        text = yaml.safe_dump({**folders, "names": names}, sort_keys=False, allow_unicode=True)
        self.plan.target.put([("data.yaml", text.encode())])


def single(row: dict[str, Any], plan: Plan) -> Iterator[tuple[list[float], int]]:
    """(box, class id) of each object of a row; crowd regions are counted and left out."""
    boxes, labels = row.get("boxes") or [], row.get("box_labels") or []
    for k, box in enumerate(boxes):
        if (row.get("crowd") or [False] * len(boxes))[k]:
            plan.left_out[CROWD] += 1
        else:
            yield box, labels[k]
