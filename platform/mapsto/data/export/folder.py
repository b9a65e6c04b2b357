"""Image folders: `<split>/<class>/<name>`, and, where there are masks, `<split>annot/<class>/<name>` as CamVid has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.errors import UserError
from ..sources.item import UNLABELLED, hidden
from ..sources.pairs import pair_key
from .plan import Plan
from .target import Names, mask_suffix


class Folder:
    """Raises UserError for a class whose name cannot be a folder's. Where there are masks, the layout `pairs` reads the
    export back, which knows no classes; so names are unique in the whole split then."""

    def __init__(self, plan: Plan) -> None:
        wrong = [c for c in plan.classes if "/" in c or "\\" in c or "\0" in c or not c or hidden(c) or c == UNLABELLED]
        if "label" in plan.columns and wrong:
            raise UserError(f"--format folder: the class '{wrong[0]}' cannot be a folder's name; take parquet")
        self.plan = plan
        self.masked = "mask" in plan.columns
        self.keeps = frozenset({"label", "mask"})
        self.names = Names(pair_key) if self.masked else Names()

    def add(self, split: str, rows: Sequence[dict[str, Any]]) -> None:
        files = []
        for row in rows:
            folder = self._folder(row)
            stem, suffix = self.names.of(split if self.masked else f"{split}/{folder}", row)
            files.append((f"{split}/{folder}{stem}{suffix}", row["image"]))
            if row.get("mask"):
                files.append((f"{split}annot/{folder}{stem}{mask_suffix(row['mask'])}", row["mask"]))
            elif self.masked:
                self.plan.left_out["rows without a mask: beside masks they are not read back"] += 1
        self.plan.target.put(files)

    def _folder(self, row: dict[str, Any]) -> str:
        if "label" not in self.plan.columns:
            return ""
        label = self.plan.label(row)
        if label is None:
            self.plan.left_out[f"rows without a label: they are in {UNLABELLED}"] += 1
        elif self.masked:
            self.plan.left_out[
                "labels of rows beside masks: folders have them, the layout pairs does not read them"
            ] += 1
        return f"{label or UNLABELLED}/"

    def close(self, split: str) -> None:
        pass

    def finish(self) -> None:
        pass
