"""The Stage seam: (recipe section, parent artifacts) → artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from .artifact import Artifact
from .storage import Storage


@dataclass(frozen=True)
class Job:
    """What a stage is handed: the validated recipe, its parents (complete), and the directory to fill."""

    recipe: Any
    """mapsto.config.schema.Recipe."""
    section: Mapping[str, Any]
    """The resolved part of the recipe that the artifact's fingerprint covers, JSON-able, without secrets."""
    parents: Mapping[str, Artifact]
    artifact: Artifact
    storage: Storage
    resume: bool
    """True when an earlier run of the same address was interrupted: reuse what it left."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the command line adds to this one run (predict's inputs, a report's path)."""
    say: Callable[[str], None] = print
    """One line for the person who waits."""


@dataclass(frozen=True)
class Done:
    """What a stage returns once its payload is written."""

    metrics: Mapping[str, Any]
    """JSON-able; shown at the end of the stage and kept in artifact.json."""
    digest: str
    """Hash of the payload's content."""


class Stage(Protocol):
    """One verb, one file in `stages/`, one line in the stage table."""

    name: ClassVar[str]
    about: ClassVar[str]

    def section(self, recipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """The part of the recipe that decides this artifact, JSON-able."""
        ...

    def needs(self, recipe: Any, options: Mapping[str, Any]) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        """Parent name → (stage, its options): made first when they are not there."""
        ...

    def run(self, job: Job) -> Done: ...

    # A stage whose result depends on how a model answers (TaskConfig.answers) has `answers = True`: they join its section.
    # A stage may have `ready(recipe, options)`, too: asked before anything is made, it raises UserError for what could not be
    # done in the end.


def datasets_of(recipe: Any) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """`data.<role>` → the stage that gives a recipe's data set: `clean` where the recipe has that section, else `ingest`."""
    stage = "ingest" if recipe.clean is None else "clean"
    return {f"data.{role}": (stage, {"role": role}) for role in recipe.data}
