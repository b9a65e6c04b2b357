"""The page of findings: what each rule looks for, how much it found, what becomes of it, and the worst of it to see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ..core import codecs
from ..core.page import Page
from ..core.sample import SPLITS
from ..curate.facts import Facts
from ..curate.rules import NONE, RULES, Found, Setting, Verdict
from ..data.dataset import Dataset, read_group
from .clean_facts import shards

SHOWN = 12
"""Pictures for each rule."""
SIDE = 130
LOW_FIRST = {"too_small", "blank", "dark", "blurred", "low_information", "odd_mode"}
"""Rules whose lowest scores are the worst."""


@dataclass(frozen=True)
class Report:
    name: str
    before: Dataset
    facts: Facts
    verdict: Verdict
    chosen: Mapping[str, Setting]
    manifest: Mapping[str, Any]


def page(report: Report) -> str:
    out, manifest = Page(f"{report.name}: cleaning", report.before.artifact.uri), report.manifest
    found = report.verdict.found
    out.cards({
        "images in": manifest["rows_in"], "kept": manifest["rows_kept"], "quarantined": manifest["rows_quarantined"],
        "findings": sum(len(each.rows) for each in found.values()),
    })  # fmt: skip
    out.text(
        "Nothing is deleted: rows that leave lie in quarantine/*.parquet with their reason, every finding in findings.parquet."
    )
    out.heading("Rules")
    rows = []
    for name, rule in RULES.items():
        setting = report.chosen[name]
        count = len(found[name].rows) if name in found else None
        does = f"repair: {rule.repairs}" if setting.policy == "repair" else setting.policy
        rows.append((name, rule.about.format(t=setting.threshold), does, count))
    out.table(("rule", "what it finds", "policy", "found"), rows)
    _balance(out, report)
    _apart(out, report.before.manifest)
    for name, each in found.items():
        if len(each.rows):
            out.heading(f"{name}: {len(each.rows):,}")
            out.text(RULES[name].about.format(t=report.chosen[name].threshold))
            out.pictures(_pictures(report, name, each))
    return out.html()


def _balance(out: Page, report: Report) -> None:
    counts = report.manifest["counts"].get("train", {})
    if len(counts) < 2:
        return
    (most, largest), (least, smallest) = (
        max(counts.items(), key=lambda p: p[1]),
        min(counts.items(), key=lambda p: p[1]),
    )
    ratio = largest / smallest
    much = ratio > report.chosen["class_imbalance"].threshold
    verdict = "imbalanced: weigh classes or sample them alike" if much else "no imbalance to speak of"
    out.text(f"Classes in train: {most} {largest:,}, {least} {smallest:,}, {ratio:.1f} to 1: {verdict}.")


def _apart(out: Page, before: Mapping[str, Any]) -> None:
    """What the version before had set apart already: files that cannot be read, for one."""
    apart = [("quarantined", reason, count) for reason, count in before.get("reasons", {}).items()]
    apart += [("left out", what, count) for what, count in before.get("dropped", {}).items()]
    if apart:
        out.heading("Set apart before")
        out.text("By the version that was cleaned; its quarantine/ holds the files with their reasons.")
        out.table(("", "reason", "count"), apart)


def _pictures(report: Report, name: str, found: Found) -> list[tuple[np.ndarray, str]]:
    order = np.argsort(found.scores if name in LOW_FIRST else -found.scores, kind="stable")[:SHOWN]
    out = []
    for k in order:
        row, other = int(found.rows[k]), int(found.others[k])
        picture = _thumb(report, row)
        caption = f"{_says(report, row)}, {found.scores[k]:.3g}"
        if other != NONE:
            picture = np.concatenate([picture, np.full((SIDE, 4, 3), 255, np.uint8), _thumb(report, other)], axis=1)
            caption += f"; beside it {_says(report, other)}"
        if found.labels[k] != NONE and found.labels[k] != report.facts.label[row]:
            caption += f"; rather {report.manifest['classes'][int(found.labels[k])]}"
        out.append((picture, caption))
    return out


def _says(report: Report, row: int) -> str:
    facts, classes = report.facts, report.manifest["classes"]
    label = int(facts.label[row])
    return f"{SPLITS[facts.split[row]]} row {facts.row_id[row]}" + (f" ({classes[label]})" if label >= 0 else "")


def _thumb(report: Report, row: int) -> np.ndarray:
    """130×130, whole, on grey."""
    index = shards(report.before)[report.facts.file[row]]
    place = int(report.facts.place[row])
    group = int(np.searchsorted(index.starts, place, side="right")) - 1
    data = read_group(index, group, ["image"])["image"][place - int(index.starts[group])].as_py()
    image = codecs.decode(data)
    scale = SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    out = np.full((SIDE, SIDE, 3), 238, np.uint8)
    top, left = (SIDE - size[1]) // 2, (SIDE - size[0]) // 2
    out[top : top + size[1], left : left + size[0]] = small
    return out
