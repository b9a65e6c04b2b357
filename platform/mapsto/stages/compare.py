"""Compare: several recipes' evaluations in one table, and what their models draw on one page. Nothing is trained that was
trained before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..config.schema import Recipe
from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.page import Page
from ..core.picture import wall
from .evaluate import RESAMPLED, drawn, ends
from .pipeline import Pipeline

SHOWN = 64
"""Most pictures of a model."""


@dataclass(frozen=True)
class Compared:
    """A recipe, its trained model, and `metrics.json` of its evaluation."""

    recipe: Recipe
    model: Artifact
    found: dict[str, Any]
    data: Mapping[str, str] = field(default_factory=dict)
    """Role → fingerprint and content of the data set that it was measured on."""
    draws: Mapping[str, list[float]] = field(default_factory=dict)
    """With `evaluate.resamples`: metric → its value over each draw of the rows."""


def check(recipes: Sequence[Recipe]) -> None:
    """UserError for fewer than two recipes, and for two of one name, which the page could not tell apart."""
    names = [recipe.name for recipe in recipes]
    if len(names) < 2:
        raise UserError("compare: give two recipes at least")
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"compare: {names.count(name)} recipes are named '{name}'; set another `name` in one of them"
            )


def compare(recipes: Sequence[Recipe], output: str, say: Callable[[str], None] = print) -> None:
    """Evaluate each recipe's model, where that is not done, and write the page to `output`, a path or URI. UserError as
    `check` says."""
    check(recipes)
    compared = []
    for recipe in recipes:
        pipeline = Pipeline(recipe, say)
        evaluated = pipeline.produce("evaluate")
        model = pipeline.produce("train")
        found, data = evaluated.read_json("metrics.json"), _data(evaluated)
        drawn_anew = evaluated.storage.exists(evaluated.path(RESAMPLED))
        draws = evaluated.read_json(RESAMPLED) if drawn_anew else {}
        compared.append(Compared(pipeline.recipe, model, found, data, draws))
    for text in unlike(compared):
        say(f"compare: {text}")
    for one, other, metric, value, low, high in differences(compared):
        say(f"compare: {other} less {one}: {metric} {value:+.4f}, 95 % {low:+.4f} to {high:+.4f}")
    recipes[0].storage.open().write(output, page(compared).html().encode())
    say(f"compare: wrote {output}")


def _data(evaluated: Artifact) -> dict[str, str]:
    """Role → identity of the data sets that an evaluation read."""
    parents = evaluated.meta()["parents"]
    return {name: parents[name]["identity"] for name in sorted(parents) if name.startswith("data.")}


def unlike(compared: Sequence[Compared]) -> list[str]:
    """A sentence for each way in which recipes of one task were measured on other data, or in another way."""
    told = []
    for kind in dict.fromkeys(each.recipe.task.kind for each in compared):
        mine = [each for each in compared if each.recipe.task.kind == kind]
        if any(each.data != mine[0].data for each in mine):
            told.append(f"The recipes of {kind} were measured on unlike data sets: {_each(mine, _fingerprints)}.")
        if any(_measured_at(each) != _measured_at(mine[0]) for each in mine):
            told.append(
                f"The recipes of {kind} count unlike pixels (task.measure_at), whose numbers cannot be compared: "
                f"{_each(mine, _measured_at)}."
            )
    return told


def differences(compared: Sequence[Compared]) -> list[tuple[str, str, str, float, float, float]]:
    """(recipe, another one of its task, metric, how much larger the other's is, and between which two the middle 95 % of the
    draws have that difference), over the same draws of the same rows: the first recipe of a task beside each later one that was
    measured on the same data with as many `evaluate.resamples`. A metric that either has no value of is left out."""
    told = []
    for other in compared:
        one = next(each for each in compared if each.recipe.task.kind == other.recipe.task.kind)
        if one is other or (one.data, _rows(one), _measured_at(one)) != (other.data, _rows(other), _measured_at(other)):
            continue
        shared = [name for name, draws in one.draws.items() if len(draws) == len(other.draws.get(name, ()))]
        apart = {name: np.array(other.draws[name], float) - np.array(one.draws[name], float) for name in shared}
        for name, (low, high) in ends(apart).items():
            value, before = other.found["metrics"][name], one.found["metrics"][name]
            if value is not None and before is not None:
                told.append((one.recipe.name, other.recipe.name, name, value - before, low, high))
    return told


def _rows(each: Compared) -> tuple[str, int]:
    return each.found["split"], each.found["rows"]


def _each(compared: Sequence[Compared], what: Callable[[Compared], str]) -> str:
    return ", ".join(f"{each.recipe.name} {what(each)}" for each in compared)


def _fingerprints(each: Compared) -> str:
    return " and ".join(f"{role} {identity}" for role, identity in each.data.items()) or "none"


def _measured_at(each: Compared) -> str:
    return str(getattr(each.recipe.task, "measure_at", ""))


def page(compared: Sequence[Compared]) -> Page:
    """The metrics that any of them has, a column each, and of each that draws, its samples by the same seeds."""
    told = Page("Models side by side", ", ".join(each.recipe.name for each in compared))
    names = list(dict.fromkeys(name for each in compared for name in each.found["metrics"]))
    rows = []
    for each in compared:
        head = (each.recipe.name, each.recipe.task.kind, each.found["split"], each.found["rows"])
        rows.append((*head, *(each.found["metrics"].get(name) for name in names)))
    told.table(("recipe", "task", "split", "rows", *names), rows)
    if len({_rows(each) for each in compared}) > 1:
        told.text(
            "They were measured on unlike splits or numbers of rows: distances between sets of images cannot be compared."
        )
    for text in unlike(compared):
        told.text(text)
    if apart := differences(compared):
        told.heading("Differences on the same rows")
        told.text(
            "95 %, from draws of as many rows, the same for both: what other rows like these would give, these models as they are."
        )
        told.table(
            ("recipe", "less", "metric", "difference", "from", "to"),
            [(other, one, *figures) for one, other, *figures in apart],
        )
    samples = [(picture, each.recipe.name) for each in compared if (picture := _samples(each.model)) is not None]
    if samples:
        told.heading("Samples")
        told.pictures(samples, small=False)
    return told


def _samples(model: Artifact) -> Any:
    """A wall of what a generator draws from the seeds that its evaluation shows; None of another task."""
    from ..core.registry import load_task
    from ..serving.runtimes import open_runtime

    requests = next((asked for asked in load_task(model).showcase(()).values() if asked), ())
    return wall(drawn(open_runtime(model), requests[:SHOWN])) if requests else None
