"""Ingest: a source of images → a data set artifact of checked Parquet shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, ClassVar

from ..config.schema import DataConfig
from ..core import codecs
from ..core.errors import UserError, nearest
from ..core.stage import Done, Job
from ..core.storage import Storage, absolute
from ..data.chunks import FORM, Listed, chunk_names, cut
from ..data.dataset import MANIFEST, content_digest
from ..data.execution import each
from ..data.pack import Packing
from ..data.shards import ShardJob, Summary
from ..data.sources import Told, detect, listing
from ..data.tally import SHEET_PICTURES, Tally
from ..runtime.progress import bar


class Ingest:
    """Lists the source once, then reads, checks and writes it in Ray tasks. An interrupted ingest goes on where it
    stopped: the listing and every finished shard are kept under `work/` until the artifact is finished."""

    name: ClassVar[str] = "ingest"
    about: ClassVar[str] = "read, check and write a source of images as a data set"

    def section(self, recipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        config = config_of(recipe, options)
        return config.model_dump(mode="json", exclude={"storage"}) | {"source": absolute(config.source)}

    def needs(self, recipe: Any, options: Mapping[str, Any]) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        return {}

    def run(self, job: Job) -> Done:
        """Raises UserError for a source that is not there, refuses, is empty or holds no readable image, for a split
        without images, and for a full disk."""
        config = config_of(job.recipe, job.options)
        source = absolute(config.source)
        layout, storage = config.layout, config.storage.open() if config.storage else job.storage
        if layout == "auto":
            layout, why = detect(source, storage)
            job.say(f"ingest: layout {layout} ({why})")
        listed = self._listed(job, config, source, layout, storage)
        shares = {name: share for name, share in config.splits.items() if share > 0}
        work = ShardJob(
            job.artifact,
            storage,
            listed.classes,
            listed.columns,
            config.max_pixels,
            config.min_side,
            -(-SHEET_PICTURES // listed.chunks),
            config.keep_metadata,
            Packing(config.pack.longest_side, config.pack.quality) if config.pack else None,
        )
        tally = self._read(job, work, listed)
        trains = not listed.given or any(summary["split"] == "train" for summary in tally.summaries.values())
        wanted = ["train", *listed.given, *shares] if trains else listed.given  # a set to evaluate on has no more
        manifest = tally.manifest(source, layout, listed, wanted)
        job.artifact.write(codecs.encode(tally.sheet(), "jpeg", 85), "sheet.jpg")
        job.artifact.write(tally.page(job.recipe.name, manifest).encode(), "report.html")
        job.artifact.write_json(manifest, MANIFEST)
        self._say_oddities(job, manifest)
        metrics = {
            "images": manifest["rows_kept"],
            "quarantined": manifest["rows_quarantined"],
            "classes": len(manifest["classes"]),
        }
        return Done(
            metrics | {s: v["rows"] for s, v in manifest["splits"].items()},
            content_digest(manifest),
        )

    def _listed(self, job: Job, config: DataConfig, source: str, layout: str, storage: Storage) -> Listed:
        """The listing, made once: a resumed ingest finds the one it began with, or begins anew where a part of it is gone."""
        kept = job.artifact.path("work", "listed.json")
        work = job.artifact.path("work")
        if job.resume and job.storage.exists(kept):
            listed = Listed.of(job.storage.read_json(kept))
            if listed.form != FORM:
                job.say("ingest: the run before was begun by another version of mapsto; it begins anew")
            elif set(chunk_names(listed.chunks)) <= set(job.storage.names(work)):
                return listed
            else:
                job.say("ingest: a part of what the run before had listed is gone; it begins anew")
        if job.resume:
            job.storage.delete(work)  # shards of another listing do not count
        told = Told()
        listed = cut(
            listing(layout, source, storage, work, {"frames_per_s": config.frames_per_s}, told),
            job.storage,
            work,
            config.splits,
            config.seed,
            config.limit,
            config.group,
            told.classes,
        )
        if not listed.rows:
            raise UserError(f"{source}: the data set is empty (no file in it)")
        job.storage.write_json(kept, asdict(listed))
        job.say(f"ingest: {listed.rows} files, {len(listed.classes)} classes, {listed.chunks} shards to write")
        for note in told.notes:
            job.say(f"ingest: {note}")
        if listed.straddling:
            job.say(
                f"ingest: group: {config.group}: {listed.straddling} of {listed.groups} groups lie in several of the source's own splits"
            )
        return listed

    def _read(self, job: Job, work: ShardJob, listed: Listed) -> Tally:
        tally = Tally()
        done = (
            {
                int(name.removesuffix(".json"))
                for name in job.storage.names(job.artifact.path("work", "done"))
                if name.endswith(".json") and not name.startswith(".")
            }
            if job.resume
            else set()
        )
        for number in sorted(done):
            tally.add(job.storage.read_json(work.summary_path(number)))
        if done:
            job.say(f"ingest: {len(done)} of {listed.chunks} shards are there already")
        left = [n for n in range(listed.chunks) if n not in done]
        for summary in bar(_summaries(work, left), "ingest: shards", len(left)):
            tally.add(summary)
        return tally

    def _say_oddities(self, job: Job, manifest: Mapping[str, Any]) -> None:
        classes = manifest["classes"]
        if len(classes) == 1:
            job.say(f"ingest: one class only ({classes[0]}): enough for a GAN, not for a classifier")
        if manifest["rows_quarantined"]:
            top = "; ".join(f"{reason}: {count}" for reason, count in list(manifest["reasons"].items())[:3])
            job.say(f"ingest: {manifest['rows_quarantined']} of {manifest['rows_in']} files quarantined ({top})")
        for what, count in manifest["dropped"].items():
            job.say(f"ingest: left out: {what}: {count}")
        if left := manifest["unstripped"]:
            formats = ", ".join(f"{format}: {count}" for format, count in left.items())
            job.say(f"ingest: metadata (places, cameras) that may be in these files stays: {formats}")


def _summaries(work: ShardJob, numbers: list[int]) -> Iterator[Summary]:
    """Write the shards of the given chunks in Ray tasks; their summaries as they are done."""
    for number in each(work.run, numbers):
        yield work.artifact.storage.read_json(work.summary_path(number))


def config_of(recipe: Any, options: Mapping[str, Any]) -> DataConfig:
    """The data set that a role names. Raises UserError for one that the recipe does not have."""
    role = options.get("role", "train")
    if role not in recipe.data:
        raise UserError(f"data.{role}: the recipe has no such data set{nearest(role, recipe.data)}")
    return recipe.data[role]
