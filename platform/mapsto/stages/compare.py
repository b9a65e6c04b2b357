"""Compare: several recipes' evaluations in one table, and what their models draw on one page. Nothing is trained that was
trained before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config.schema import Recipe
from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.page import Page
from ..core.picture import wall
from .evaluate import drawn
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
        compared.append(Compared(pipeline.recipe, model, evaluated.read_json("metrics.json"), _data(evaluated)))
    for text in unlike(compared):
        say(f"compare: {text}")
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
    if len({(each.found["split"], each.found["rows"]) for each in compared}) > 1:
        told.text(
            "They were measured on unlike splits or numbers of rows: distances between sets of images cannot be compared."
        )
    for text in unlike(compared):
        told.text(text)
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
