"""What a new version's manifest says: the version before's, and what came and went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core.sample import SPLITS
from ..curate.facts import Facts
from ..curate.rules import NONE, RULES, Setting, Verdict
from ..data.dataset import Dataset
from ..data.tally import longest_side


def manifest_of(
    before: Dataset,
    facts: Facts,
    verdict: Verdict,
    files: Mapping[str, list[dict[str, Any]]],
    results: list[dict[str, Any]],
    chosen: Mapping[str, Setting],
) -> dict[str, Any]:
    """`files`: split → entries of its shards; `results`: what the rewriting of each changed shard found."""
    old, kept = before.manifest, verdict.dropped == NONE
    classes = old["classes"]
    splits: dict[str, dict[str, Any]] = {
        s: {"rows": sum(f["rows"] for f in files[s]), "files": files[s]} for s in SPLITS if s in files
    }
    total = sum(split["rows"] for split in splits.values())
    assert total == int(kept.sum()) and len(facts) == old["rows_kept"], (total, int(kept.sum()), len(facts))
    counts = {}
    for split in splits:
        labels = verdict.label[kept & (verdict.split == SPLITS.index(split))]
        found = np.bincount(labels[labels >= 0], minlength=len(classes))
        counts[split] = {name: int(found[k]) for k, name in enumerate(classes) if found[k]}
    mean, std, trained = _pixels(old, facts, verdict, results)
    reasons = Counter(list(RULES)[k] for k in verdict.dropped[~kept].tolist())
    boxes = sum(result["boxes"] for result in results)
    return old | {
        "splits": splits, "counts": counts, "mean": mean, "std": std, "pixels_from": trained,
        "rows_in": len(facts), "rows_kept": total, "rows_quarantined": int((~kept).sum()), "reasons": dict(reasons.most_common()),
        "dropped": {"boxes without area after cutting": boxes} if boxes else {},
        "objects": _objects(old, results, classes),
        "mask_pixels": _mask_pixels(old, results),
        "formats": dict(Counter(facts.formats[k] for k in facts.kinds[kept].tolist()).most_common()),
        "longest_side": longest_side(np.maximum(facts.width, facts.height)[kept]),
        "before": before.artifact.uri,
        "rules": {n: {"policy": s.policy, "threshold": s.threshold, "found": len(verdict.found[n].rows)} for n, s in chosen.items() if n in verdict.found},
    }  # fmt: skip


def _pixels(
    old: Mapping[str, Any], facts: Facts, verdict: Verdict, results: list[dict[str, Any]]
) -> tuple[list[float], list[float], int]:
    """Mean, standard deviation and number of the training images: the old sums, and what came and went."""
    train = SPLITS.index("train")
    count = int(((verdict.dropped == NONE) & (verdict.split == train)).sum())
    mean, std = np.array(old["mean"]), np.array(old["std"])
    sums = np.stack([mean, std**2 + mean**2]) * old["pixels_from"] + sum(np.array(r["pixels"]) for r in results)
    if not count:
        return old["mean"], old["std"], 0
    mean, square = sums / count
    return mean.round(6).tolist(), np.sqrt(np.maximum(square - mean**2, 0)).round(6).tolist(), count


def _objects(old: Mapping[str, Any], results: list[dict[str, Any]], classes: list[str]) -> dict[str, dict[str, int]]:
    totals = {split: Counter(found) for split, found in old["objects"].items()}
    for result in results:
        for split, change in result["objects"].items():
            for k, count in change.items():
                totals.setdefault(split, Counter())[classes[int(k)]] += count
    return {split: {name: n for name, n in found.items() if n} for split, found in totals.items()}


def _mask_pixels(old: Mapping[str, Any], results: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    totals = {split: Counter(found) for split, found in old.get("mask_pixels", {}).items()}
    for result in results:
        for split, change in result["mask_pixels"].items():
            totals.setdefault(split, Counter()).update(change)
    return {
        split: {k: n for k, n in sorted(found.items(), key=lambda pair: int(pair[0])) if n}
        for split, found in totals.items()
    }
