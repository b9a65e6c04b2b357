"""Compare: several recipes' evaluations in one table, and what their models draw on one page. Nothing is trained that was
trained before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
        compared.append(Compared(pipeline.recipe, model, evaluated.read_json("metrics.json")))
    recipes[0].storage.open().write(output, page(compared).html().encode())
    say(f"compare: wrote {output}")


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
