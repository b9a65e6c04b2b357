"""The recipe that a sweep found, written as a recipe file again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.document import parse, parse_value
from ..config.edit import rewrite
from ..config.load import override, read
from ..config.paths import split
from ..core.errors import UserError
from ..core.storage import Storage
from .tune import chosen_settings
from .tune_trials import Trial

if TYPE_CHECKING:
    from ..config.schema import Recipe
    from ..core.artifact import Artifact


def settings(artifact: Artifact, recipe: Recipe, number: int | None = None) -> dict[str, Any]:
    """What the sweep goes on with, or one of its trials. Raises UserError for a number that it has not."""
    if number is None:
        return dict(artifact.read_json("best.json")["overrides"])
    rows = {row["number"]: row for row in artifact.read_json("trials.json")}
    if number not in rows:
        raise UserError(f"--trial {number}: the sweep has trials 1 to {max(rows)}")
    if rows[number]["failed"]:
        raise UserError(f"--trial {number}: it failed ({rows[number]['failed']}); take another")
    fields = {name: rows[number][name] for name in Trial.__dataclass_fields__}
    assert recipe.tune is not None
    return chosen_settings(Trial(**fields), population=recipe.tune.scheduler.kind == "pbt")


def apply(source: str, given: Sequence[str], recipe: Recipe, found: dict[str, Any], target: str | None = None) -> str:
    """Write the recipe with the sweep's settings and without its `tune` section; returns where.

    `source`, `given`: the recipe's file and its `--set` values, which are written too. `target`: a file or a URI; default:
    `<recipe>-best.yaml` in the current directory.
    """
    text, _ = read(source)
    values = parse(text, source).values
    model = type(recipe)
    changes = {}
    for each in given:
        path, _, value = each.partition("=")
        changes[split(model, path.strip(), values)] = parse_value(value)
    changes |= {split(model, path, values): value for path, value in found.items()}
    target = target or f"{Path(source).stem}-best.yaml"
    written = rewrite(text, override(recipe, {**found, "tune": None}), changes, "tune")
    if "://" in target:
        Storage().write(target, written.encode())
    else:
        Path(target).write_text(written, encoding="utf-8")
    return target
