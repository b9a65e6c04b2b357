"""Clean: a data set → a new version of it without what the rules send away, a table and a page of what they found.

Nothing is deleted: the version before stays as it is, rows that leave lie in `quarantine/` whole, with their reason, and
shards that nothing touched are shared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..config.schema import CleanConfig
from ..core.errors import UserError
from ..core.sample import SPLITS
from ..core.stage import Done, Job
from ..curate.duplicates import NO_PAIRS, Pairs, joined, near_pairs
from ..curate.facts import Facts
from ..curate.rules import (
    NONE,
    RULES,
    Seen,
    Setting,
    Verdict,
    heads_of,
    judge,
    kept_together,
    same_pixels,
    with_near,
)  # fmt: skip
from ..data.dataset import MANIFEST, Dataset, content_digest
from ..data.execution import each
from ..data.rewrite import Correction, Edit, Rewrite
from ..data.values import of_dataset
from .clean_corrections import Corrected, corrected, named
from .clean_embeddings import neighbours
from .clean_facts import columns_of, gather, shards
from .clean_findings import FINDINGS, encoded, findings, refused
from .clean_folds import predictions
from .clean_manifest import manifest_of
from .clean_page import Report, page
from .clean_verify import confirmed
from .given import given
from .ingest import config_of
from .train import Train


class Clean:
    """Looks at every image once, in Ray tasks, shard by shard; an interrupted run goes on with the shards that are left."""

    name: ClassVar[str] = "clean"
    about: ClassVar[str] = "find bad images, duplicates, leaks between splits and wrong labels; write a new version"

    def section(self, recipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        role = options.get("role", "train")
        config = recipe.clean or CleanConfig()
        rules = {name: asdict(setting) for name, setting in settings(config).items()}
        trained = Train().section(recipe, {}) if config.folds else {}
        section = {
            "role": role,
            "rules": rules,
            "folds": config.folds,
            "mask_classes": _mask_classes(recipe),
            **({"void": list(void)} if (void := _void(recipe)) else {}),
            **trained,
        }
        if config.corrections:
            section["corrections"] = named(config.corrections, recipe.storage.open())
            section |= {"add_classes": list(config.add_classes)} if config.add_classes else {}
        further = {"verify": config.verify, "embeddings": config.embeddings}
        return section | {name: given.model_dump(mode="json") for name, given in further.items() if given}

    def needs(self, recipe: Any, options: Mapping[str, Any]) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        config_of(recipe, options)
        role = options.get("role", "train")
        found: dict[str, tuple[str, Mapping[str, Any]]] = {"data": ("ingest", {"role": role})}
        config = recipe.clean or CleanConfig()
        for name, features in (("verify", config.verify), ("embeddings", config.embeddings)):
            if features and features.model:
                found[name] = given(features.model)
        if config.folds:  # what its training needs besides, as it came
            others = {f"data.{name}": ("ingest", {"role": name}) for name in recipe.data if name != role}
            named = {name: need for name, need in Train().needs(recipe, {}).items() if not name.startswith("data.")}
            found |= others | named
        return found

    def run(self, job: Job) -> Done:
        """Raises UserError where a split that the data set had would be left without images."""
        config = job.recipe.clean or CleanConfig()
        chosen = settings(config)
        before = Dataset.open(job.parents["data"])
        with tempfile.TemporaryDirectory(prefix="mapsto-clean-") as folder:
            void = _void(job.recipe)
            stored, thumbs = gather(job.artifact, before, Path(folder), job.resume, job.say, void)
            files = job.section.get("corrections", ())
            added = config.add_classes if files else ()
            by_hand = corrected(stored, files, job.storage, before.manifest, added, void)
            for line in by_hand.told(before.manifest["classes"]):
                job.say(f"clean: corrections: {line}")
            before = by_hand.widened(before)
            facts, classes = by_hand.facts, before.manifest["classes"]

            def sure(rows: np.ndarray, pairs: Pairs) -> Pairs:
                if pairs.passed_over:
                    job.say(
                        f"clean: {pairs.passed_over} candidates for near duplicates were not looked at: too many images are laid out alike"
                    )
                return confirmed(job, shards(before), facts, rows, pairs, config.verify) if config.verify else pairs

            def further(thumbs: np.ndarray, rows: np.ndarray, pairs: Pairs, wanted: list[float]) -> Pairs:
                if not config.embeddings:
                    return NO_PAIRS
                return neighbours(job, shards(before), thumbs, rows, pairs, config.embeddings, wanted)

            near, pairs, equal, hashed = alike(facts, thumbs, chosen, sure, further)
            del thumbs
        together = kept_together(near, facts, config_of(job.recipe, job.options).group)
        labelled = bool(classes)
        seen = Seen(facts, equal, near, pairs, together, _mask_classes(job.recipe), labelled)
        if config.folds and chosen["label_error"].policy != "off":
            role = str(job.options.get("role", "train"))
            seen = replace(
                seen, predictions=predictions(job, before, facts, facts.label != stored.label, config.folds, role)
            )
        verdict = judge(seen, chosen)
        for name, found in verdict.found.items():
            if len(found.rows):
                job.say(f"clean: {name}: {len(found.rows)} ({chosen[name].policy})")
        manifest, results = self._version(job, before, stored, by_hand, verdict, chosen)
        table = findings(seen, hashed, verdict, chosen, classes, refused(before))
        job.artifact.write(encoded(table), FINDINGS)
        report = Report(job.recipe.name, before, facts, verdict, chosen, manifest)
        job.artifact.write(page(report).encode(), "report.html")
        job.artifact.write_json(manifest, MANIFEST)
        repaired = int(
            (verdict.label != facts.label).sum() + (verdict.split != facts.split).sum() + verdict.cut_boxes.sum()
        )
        if config.corrections:
            job.say(f"clean: corrections: {len(by_hand.rows)} rows")
        if by_hand.erased:
            job.say(
                f"clean: corrections: {by_hand.erased} of rows that are not there: rows of this data set were erased; take them out of "
                f"{', '.join(config.corrections)}, which say what was in them"
            )
        metrics = {
            "images": manifest["rows_kept"],
            "quarantined": manifest["rows_quarantined"],
            "repaired": repaired,
            **({"corrected": len(by_hand.rows)} if config.corrections else {}),
            "findings": table.num_rows,
            "shards_shared": len(shards(before)) - len(results),
        }
        return Done(metrics, content_digest(manifest))

    def _version(
        self,
        job: Job,
        before: Dataset,
        stored: Facts,
        by_hand: Corrected,
        verdict: Verdict,
        chosen: Mapping[str, Setting],
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The new version's manifest, after its changed shards are written. `stored`: the rows as the shards have them."""
        found, facts = shards(before), by_hand.facts
        edits = (_edit(k, index, stored, by_hand, verdict) for k, index in enumerate(found))
        added = by_hand.written()
        made = [edit for edit in edits if edit.touched() or added]
        rewrite = Rewrite(job.artifact, tuple(columns_of(before)), tuple(made), added)
        there = set(job.storage.names(job.artifact.path("work", "edits"))) if job.resume else set()
        for _ in each(rewrite.run, [k for k in range(len(made)) if f"{k:06d}.json" not in there]):
            pass
        results = [job.storage.read_json(rewrite.result_path(k)) for k in range(len(made))]
        touched = {edit.number for edit in made}
        files: dict[str, list[dict[str, Any]]] = {}
        for number, index in enumerate(found):
            if number not in touched:
                files.setdefault(index.name, []).append(index.files[0].entry())
        for result in results:
            for split, entry in result["files"].items():
                files.setdefault(split, []).append(entry)
        for split in before.manifest["splits"]:
            if split not in files:
                raise UserError(
                    f"{before.artifact.uri}: cleaning would leave the {split} split without images; set a rule's policy to `report`"
                )
        manifest = manifest_of(before, facts, verdict, files, results, chosen)
        if "values" in manifest:
            manifest["values"] = of_dataset(Dataset(job.artifact, manifest, ""))
        return manifest, results


def settings(config: CleanConfig) -> dict[str, Setting]:
    """Every rule's policy and threshold: the recipe's, or its own."""
    out = {}
    for name, rule in RULES.items():
        given = config.rules.get(name)
        policy = given.policy if given and given.policy else rule.policy
        threshold = given.threshold if given and given.threshold is not None else rule.threshold
        out[name] = Setting(policy, float(threshold))
    return out


def alike(
    facts: Facts,
    thumbs: np.ndarray,
    chosen: Mapping[str, Setting],
    sure: Callable[[np.ndarray, Pairs], Pairs],
    further: Callable[[np.ndarray, np.ndarray, Pairs, list[float]], Pairs],
) -> tuple[np.ndarray, Pairs, np.ndarray, np.ndarray]:
    """Who shows the same as whom, among all rows: (near groups, near pairs of equal groups, equal groups, N bool: rows in a pair that
    the hash has found). `sure`: of rows and pairs among them, the pairs that count; `further`: those that the hash has not found."""
    equal = same_pixels(facts)
    near, pairs, hashed = equal, NO_PAIRS, np.zeros(len(facts), bool)
    asking = [chosen[name] for name in ("near_duplicate", "leakage")]
    if wanted := [each.threshold for each in asking if each.policy != "off" and each.threshold < 1]:
        heads = heads_of(equal)
        splits = np.zeros(len(heads), np.uint8)
        np.bitwise_or.at(splits, equal, np.uint8(1) << facts.split)  # those that a group has rows in, as bits
        told = near_pairs(thumbs, wanted, heads, splits)
        pairs = sure(heads, told)
        hashed = np.isin(equal, np.concatenate([pairs.first, pairs.second]))
        pairs = joined([pairs, further(thumbs, heads, told, wanted)])  # of `told`, none comes back that is not sure
        near = with_near(equal, pairs)
    return near, pairs, equal, hashed


def _edit(number: int, index: Any, facts: Facts, by_hand: Corrected, verdict: Verdict) -> Edit:
    """`facts`: as the shard has them."""
    names = list(RULES)
    start, stop = (int(k) for k in np.searchsorted(facts.file, (number, number + 1)))  # facts are in the files' order
    dropped, label, split = (each[start:stop] for each in (verdict.dropped, verdict.label, verdict.split))
    place = facts.place[start:stop]

    def changed(mask: np.ndarray) -> list[int]:
        return np.flatnonzero(mask).tolist()

    return Edit(
        number,
        index,
        {int(place[r]): names[dropped[r]] for r in changed(dropped != NONE)},
        {int(place[r]): int(label[r]) for r in changed(label != facts.label[start:stop])},
        {int(place[r]): SPLITS[split[r]] for r in changed(split != facts.split[start:stop])},
        frozenset(place[verdict.cut_boxes[start:stop]].tolist()),
        {int(facts.place[k]): new for k, new in by_hand.rows.items() if start <= k < stop and new != Correction()},
    )


def _mask_classes(recipe: Any) -> int | None:
    names = getattr(recipe.task, "classes", None)
    return len(names) if recipe.task.kind == "segment" and names else None


def _void(recipe: Any) -> tuple[int, ...]:
    """The mask ids that the task says mark no class."""
    return tuple(getattr(recipe.task, "void", ()))
