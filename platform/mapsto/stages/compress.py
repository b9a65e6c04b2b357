"""compress: a trained model → its variants (ONNX, int8), measured, and the one that the recipe's constraint chooses."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..compress.choose import Choice, Row, choose, drop
from ..compress.measure import latencies
from ..core.artifact import Artifact, digest
from ..core.errors import UserError
from ..core.page import Page
from ..core.registry import save_task
from ..core.sample import Batch, Split
from ..core.stage import Done, Job, datasets_of
from ..core.task import ExportSpec, Task, Unsupported, direct
from ..data.dataset import Dataset
from ..data.feed import Feed
from ..serving.runtimes import Runtime, open_runtime, open_variant, threads_kept
from .states import batches, unpadded

FLOAT = "float"
ROWS_AT_ONCE = 64


class Compress:
    name: ClassVar[str] = "compress"
    about: ClassVar[str] = "export to ONNX, quantize to int8, measure each variant, choose one"
    answers: ClassVar[bool] = True

    def section(self, recipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        _given(recipe)
        return {"compress": recipe.compress.model_dump(mode="json")}

    def needs(self, recipe: Any, options: Mapping[str, Any]) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        roles = datasets_of(recipe)
        return {"model": ("train", {}), **roles}

    def ready(self, recipe: Any, options: Mapping[str, Any]) -> None:
        """UserError without a section, and for a model that its settings alone say cannot be exported."""
        _given(recipe)
        if reason := recipe.task.unexported():
            raise UserError(f"compress is not supported for {recipe.task.kind}: {reason}")

    def run(self, job: Job) -> Done:
        with threads_kept():
            return self._run(job)

    def _run(self, job: Job) -> Done:
        config, parent = job.recipe.compress, job.parents["model"]
        base = open_runtime(parent, config.threads)
        spec = base.task.export()
        if isinstance(spec, Unsupported):
            raise UserError(f"compress is not supported for {base.task.config.kind}: {spec.reason}")
        datasets = {
            name.removeprefix("data."): Dataset.open(a) for name, a in job.parents.items() if name.startswith("data.")
        }
        files: dict[str, bytes] = {FLOAT: parent.read(base.variant["file"])}
        runtimes: dict[str, Runtime] = {FLOAT: base}
        notes = _make(job, base, spec, datasets, files, runtimes)

        split, counted = _split(base.task, datasets)
        if split != "val":
            job.say(
                "compress: the data set has no val rows; the variants are compared on training rows, which flatters them"
            )
        scores = evaluate(runtimes, batches(Feed.evaluating(base.task, datasets, split), split, ROWS_AT_ONCE))
        example = {name: np.repeat(value[:1], config.target.batch_size, axis=0) for name, value in spec.inputs.items()}
        timings = latencies(runtimes, example, config.repeats)

        metrics = base.task.metrics()
        rows = [
            Row(
                name,
                scores[name][metrics.primary],
                timings[name].latency_p50_ms,
                len(files[name]) / 1e6,
                timings[name].throughput,
            )
            for name in runtimes
        ]
        chosen = choose(
            rows, primary=metrics.primary, mode=metrics.mode, max_drop=config.max_drop, target=config.target.metric
        )
        job.say(f"compress: {chosen.reason}")
        table = {
            "task": base.task.config.kind, "primary": metrics.primary, "mode": metrics.mode, "split": split, "rows": counted,
            "chosen": chosen.name, "reason": chosen.reason, "machine": machine(config.threads), "batch_size": config.target.batch_size,
            "variants": [
                {**asdict(row), **asdict(timings[row.name]), "drop": drop(rows[0].score, row.score, metrics.mode),
                 "precision": runtimes[row.name].variant["precision"], "metrics": scores[row.name], "note": notes.get(row.name, "")}
                for row in rows
            ],
        }  # fmt: skip
        return _write(job, parent, runtimes[chosen.name], files[chosen.name], table, rows, chosen)


def _given(recipe: Any) -> None:
    if recipe.compress is None:
        raise UserError("compress: the recipe says null; give it a section, or leave the stage out")


def _make(
    job: Job,
    base: Runtime,
    spec: ExportSpec,
    datasets: Mapping[str, Dataset],
    files: dict[str, bytes],
    runtimes: dict[str, Runtime],
) -> dict[str, str]:
    """Add each step's variant to `files` and `runtimes`; returns what is to be said of some."""
    from ..compress.export import difference, random_inputs, to_onnx

    config, task, notes = job.recipe.compress, base.task, {}
    wanted = {step.kind: step for step in config.steps}
    if "quantize" in wanted and not spec.quantize:
        job.say(f"compress: int8 makes no sense for {task.config.kind} (its outputs are pixels); that step is skipped")
        del wanted["quantize"]
    if not wanted:
        return notes
    opset = wanted["export"].opset if "export" in wanted else 18
    exported = _exported(task, lambda: to_onnx(direct(task).forward, base.model, spec, opset))  # ty: ignore[missing-attribute]  # a TorchRuntime
    if "export" in wanted:
        files["onnx"], variant = exported, {"kind": "onnx", "file": "model.onnx", "precision": "fp32"}
        runtimes["onnx"] = open_variant(task, variant, exported, config.threads)
        probe = random_inputs(spec, 4)
        notes["onnx"] = (
            f"differs from {FLOAT} by at most {difference(base.run(probe), runtimes['onnx'].run(probe)):.2g} on random inputs"
        )
        job.say(f"compress: ONNX {notes['onnx']}")
    if "quantize" in wanted:
        from ..compress.quantize import to_int8

        step = wanted["quantize"]
        job.say(f"compress: calibrating int8 on up to {step.calibration} training rows ({step.method})")
        calibration = calibration_inputs(task, datasets, step.calibration)
        files["int8"] = to_int8(exported, calibration, per_channel=step.per_channel, method=step.method)
        variant = {"kind": "onnx", "file": "model.onnx", "precision": "int8"}
        runtimes["int8"] = open_variant(task, variant, files["int8"], config.threads)
        notes["int8"] = f"{step.method} calibration"
    return notes


def _exported(task: Task, export: Any) -> bytes:
    import torch

    try:
        return export()
    except torch.onnx.OnnxExporterError as error:
        line = next((text for text in reversed(str(error).splitlines()) if text.strip()), type(error).__name__)
        raise UserError(
            f"compress: this {task.config.kind} model cannot be exported to ONNX ({line.strip()[:200]}); set compress to null"
        ) from error


def evaluate(runtimes: Mapping[str, Runtime], rows: Iterator[Batch]) -> dict[str, dict[str, float]]:
    """Every runtime's metrics over the same batches: each batch is read and decoded once."""
    task = next(iter(runtimes.values())).task
    metrics = task.metrics()
    states: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in runtimes}
    for batch in rows:
        inputs = task.inputs(batch)
        for name, runtime in runtimes.items():
            states[name].append(metrics.state(runtime.run(inputs), batch))
    return {
        name: metrics.compute({key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
        for name, parts in states.items()
    }


def calibration_inputs(
    task: Task, datasets: Mapping[str, Dataset], rows: int, size: int = 8
) -> Iterator[dict[str, np.ndarray]]:
    """The model's inputs for about `rows` training rows, as evaluation prepares them: batches drawn from all over the
    split (seed 0), because its rows may lie sorted by class."""
    feed = Feed.evaluating(task, datasets, "train").over("train", size)
    assert feed.plan is not None
    count = min(len(feed.plan), -(-rows // size))
    for number in np.random.default_rng(0).choice(len(feed.plan), count, replace=False):
        yield task.inputs(unpadded(feed.batch(int(number))))


def _split(task: Task, datasets: Mapping[str, Dataset]) -> tuple[Split, int]:
    """The split to compare on, and its rows: `val`, or `train` where there is none."""
    held = datasets[next(iter(task.streams("val").values())).role].info().rows
    split: Split = "val" if held.get("val") else "train"
    return split, int(held[split])


def machine(threads: int) -> str:
    """The processor that the figures were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {threads} of {os.cpu_count()} CPUs"


def _write(
    job: Job, parent: Artifact, runtime: Runtime, model: bytes, table: dict[str, Any], rows: list[Row], chosen: Choice
) -> Done:
    artifact, primary = job.artifact, table["primary"]
    artifact.write(model, runtime.variant["file"])
    save_task(runtime.task, artifact)
    artifact.write_json(runtime.variant, "variant.json")
    artifact.write_json(table, "variants.json")
    artifact.write(_page(job, table).html().encode(), "report.html")
    base, best = rows[0], next(row for row in rows if row.name == chosen.name)
    return Done(
        {
            "chosen": best.name,
            primary: best.score,
            f"{FLOAT}_{primary}": base.score,
            "latency_p50_ms": best.latency_p50_ms,
            "speedup": base.latency_p50_ms / best.latency_p50_ms,
            "size_mb": best.size_mb,
        },
        digest(model),
    )


def _page(job: Job, table: dict[str, Any]) -> Page:
    primary, variants = table["primary"], table["variants"]
    page = Page(f"{job.recipe.name}: compress", f"{table['rows']} {table['split']} rows; {table['machine']}")
    page.text(table["reason"])
    header = (
        "variant",
        "precision",
        primary,
        "points lost",
        f"p50 ms, batch {table['batch_size']}",
        "p95 ms",
        "rows/s",
        "MB",
        "",
    )
    body = [
        (
            v["name"],
            v["precision"],
            v["score"],
            round(v["drop"], 3),
            v["latency_p50_ms"],
            v["latency_p95_ms"],
            v["throughput"],
            v["size_mb"],
            v["note"],
        )
        for v in variants
    ]
    page.table(header, body, chosen=next(i for i, v in enumerate(variants) if v["name"] == table["chosen"]))
    return page
