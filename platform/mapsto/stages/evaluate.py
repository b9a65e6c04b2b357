"""Evaluate: a model's metrics on a split, each row counted once, and a page of what it gets wrong."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.artifact import digest
from ..core.errors import UserError
from ..core.page import Page
from ..core.picture import banner, wall
from ..core.registry import load_task
from ..core.stage import Done, Job, datasets_of
from ..core.task import Metrics, Task
from ..data.dataset import Dataset
from ..data.rows import Rows
from ..serving.runtimes import Runtime
from .states import collect

SHOWN = 16
"""Images of the split that a task's showcase may use."""
ROWS_AT_ONCE = 32
RESAMPLED = "resampled.json"
"""In an evaluation's artifact, with `evaluate.resamples`: metric → its value in each draw."""


class Evaluate:
    name = "evaluate"
    about = "metrics on a split, and a page of the worst mistakes"
    answers = True

    def section(self, recipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        given = recipe.evaluate
        return {"split": given.split, "worst": given.worst} | (
            {"resamples": given.resamples} if given.resamples else {}
        )

    def needs(self, recipe: Any, options: Mapping[str, Any]) -> dict[str, tuple[str, Mapping[str, Any]]]:
        """`model` of the options: `train` (the default) or `compress`."""
        data = datasets_of(recipe)
        return {"model": (options.get("model", "train"), {}), **data}

    def run(self, job: Job) -> Done:
        model, split = job.parents["model"], job.section["split"]
        task = load_task(model)
        datasets = {
            name.removeprefix("data."): Dataset.open(a) for name, a in job.parents.items() if name.startswith("data.")
        }
        task_split = "test" if split == "train" else split
        for stream in task.streams(task_split).values():
            rows = datasets[stream.role].info().rows
            wanted = (
                split if stream.split == task_split else stream.split
            )  # some streams read one split whatever is asked
            if not rows.get(wanted):
                have = ", ".join(f"{name} ({count})" for name, count in rows.items() if count)
                raise UserError(
                    f"evaluate.split: the data set of role '{stream.role}' has no rows in '{wanted}'; it has {have}"
                )
        metrics, resamples = task.metrics(), job.section.get("resamples", 0)
        if resamples and getattr(metrics, "pairwise", False):
            raise UserError(
                f"evaluate.resamples: the metrics of {job.recipe.task.kind} compare rows with each other, and a row drawn twice "
                "would be its own likeness; leave it out"
            )
        states = collect(model, task, datasets, split, job.recipe.evaluate)
        values = {name: float(value) for name, value in metrics.compute(states).items()}
        tables = metrics.tables(states)
        rows = len(states["row_id"])
        found: dict[str, Any] = {"split": split, "rows": rows, "metrics": values, "tables": tables}
        if resamples:
            draws = resampled(metrics, states, resamples)
            job.artifact.write_json(draws, RESAMPLED)
            found["intervals"] = ends(draws)
        job.artifact.write_json(found, "metrics.json")
        page = Page(f"Evaluation on {split}", f"{rows:,} rows, each counted once; the model: {model.uri}")
        page.cards(values)
        if resamples:
            page.heading("Intervals")
            page.text(
                f"95 %, from {resamples:,} draws of as many rows: what other rows like these would give, this model as it is."
            )
            page.table(
                ("metric", "value", "from", "to"), [(k, values[k], *ends) for k, ends in found["intervals"].items()]
            )
        metrics.draw(page, tables)
        self._mistakes(page, job, task, datasets, states)
        self._showcase(page, job, task, datasets, states)
        job.artifact.write(page.html().encode(), "report.html")
        return Done(
            {**values, "rows": rows, "split": split}, digest(json.dumps([values, tables], sort_keys=True).encode())
        )

    def _mistakes(
        self, page: Page, job: Job, task: Task, datasets: Mapping[str, Dataset], states: Mapping[str, np.ndarray]
    ) -> None:
        """The rows that are most wrong, as the task draws them; where rows are compared, beside those likest to each."""
        metrics = task.metrics()
        badness = metrics.badness(states)
        order = [i for i in np.argsort(-badness, kind="stable")[: job.section["worst"]] if badness[i] > 0]
        if not order or task.preprocess is None:
            return
        from ..serving.runtimes import open_runtime

        stream = next(iter(task.streams(job.section["split"]).values()))
        columns = [c for c in stream.columns if c in datasets[stream.role].info().columns]
        rows = Rows([datasets[stream.role].split(job.section["split"])])
        samples = rows.samples(states["row_id"][order].tolist(), columns)
        runtime = open_runtime(job.parents["model"])
        page.heading("Worst mistakes")
        pictures = []
        for number, sample in zip(order, samples, strict=True):
            (picture,) = drawn(runtime, [{"image": sample["image"]}])
            truth = task.truth(sample)
            if near := getattr(metrics, "nearest", None):
                found = near(states, int(number))
                others = rows.samples([int(states["row_id"][k]) for k, _ in found], columns)
                texts = [f"{like:.2f} {task.truth(other)}" for other, (_, like) in zip(others, found, strict=True)]
                inputs = [task.prepare({"image": other["image"]})[0]["image"] for other in others]
                beside = [banner(image, text) for image, text in zip(inputs, texts, strict=True)]
                picture = np.concatenate([banner(picture, truth), *beside], axis=1)
            pictures.append((picture, f"row {sample['row_id']}" + (f", in truth {truth}" if truth else "")))
        page.pictures(pictures, small=not hasattr(metrics, "nearest"))

    def _showcase(
        self, page: Page, job: Job, task: Task, datasets: Mapping[str, Dataset], states: Mapping[str, np.ndarray]
    ) -> None:
        """What the task itself wants shown: a generator's images."""
        if not task.showcase(()):
            return
        from ..serving.runtimes import open_runtime

        stream = next(iter(task.streams(job.section["split"]).values()))
        ids = states["row_id"][:SHOWN].tolist()
        samples = Rows([datasets[stream.role].split(job.section["split"])]).samples(ids, ["image"])
        runtime = open_runtime(job.parents["model"])
        for heading, requests in task.showcase([sample["image"] for sample in samples]).items():
            if requests:
                page.heading(heading)
                page.picture(wall(drawn(runtime, requests)))


def resampled(
    metrics: Metrics, states: Mapping[str, np.ndarray], resamples: int, seed: int = 0
) -> dict[str, list[float]]:
    """Metric → its values over rows drawn anew with replacement, so many times. The draws depend on the seed and the number of
    rows alone, so that two models on one split are measured on the same ones."""
    rows, rng, seen = len(states["row_id"]), np.random.default_rng(seed), defaultdict(list)
    for _ in range(resamples):
        pick = np.sort(rng.integers(0, rows, rows))
        for name, value in metrics.compute({column: values[pick] for column, values in states.items()}).items():
            seen[name].append(float(value))
    return dict(seen)


def ends(draws: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Metric → [low, high], the 2.5th and the 97.5th percentile of its values (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, 13.3). A metric that has none is left out."""
    held = {name: np.array(values, np.float64) for name, values in draws.items()}
    return {
        name: np.nanpercentile(values, (2.5, 97.5)).tolist()
        for name, values in held.items()
        if not np.isnan(values).all()
    }


def drawn(runtime: Runtime, requests: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """The answers to a task's requests, as it draws them."""
    from ..serving.runtimes import answers

    task, pictures = runtime.task, []
    for start in range(0, len(requests), ROWS_AT_ONCE):
        prepared = [task.prepare(request) for request in requests[start : start + ROWS_AT_ONCE]]
        found = answers(runtime, prepared)
        pictures += [task.render(sample, answer) for (sample, _), answer in zip(prepared, found, strict=True)]
    return pictures
