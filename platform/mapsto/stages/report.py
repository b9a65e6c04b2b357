"""The recipe's report: one page over all its stages, at root/name/report.html."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from ..config.schema import Recipe
from ..core.artifact import Artifact
from ..core.page import Page
from ..core.storage import absolute, join


def write(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> str:
    """Gather the stages' pages into one, with the recipe and the lineage at its end; returns its URI."""
    page = Page(
        f"{recipe.name} ↦ {recipe.serve.name or recipe.name}",
        "From the bucket to the endpoint: what each stage made, newest run.",
    )
    rows = []
    for name, artifact in artifacts.items():
        meta = artifact.meta()
        scalars = {k: v for k, v in meta["metrics"].items() if isinstance(v, (int, float))}
        rows.append(
            (name, ", ".join(f"{k} {v:.4g}" for k, v in list(scalars.items())[:4]), meta["created"], artifact.uri)
        )
    page.table(("stage", "figures", "made (UTC)", "artifact"), rows)
    for name, artifact in artifacts.items():
        if artifact.storage.exists(artifact.path("report.html")):
            page.embed(name, artifact.read("report.html").decode())
    page.heading("The resolved recipe")
    page.code(yaml.safe_dump(recipe.public(), sort_keys=False, allow_unicode=True))
    uri = join(absolute(recipe.root), recipe.name, "report.html")
    recipe.storage.open().write(uri, page.html().encode())
    return uri
