"""From a recipe to artifacts: finds or makes what a stage needs, then the stage itself.

Complete means reuse, interrupted means resume, `force` makes anew; each is said in one line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..config.load import override
from ..config.schema import Recipe
from ..core.artifact import Artifact, fingerprint
from ..core.errors import UserError, nearest
from ..core.page import show
from ..core.registry import stage, task_class
from ..core.stage import Job, Stage
from ..core.storage import absolute, join
from .given import GIVEN, open_given

ORDER = ("ingest", "clean", "tune", "train", "evaluate", "compress", "serve")
"""The stages of `run`, in their order."""
MODELS = ("train", "compress")
"""Stages whose artifact is a model, which answers as the recipe says now."""


@dataclass
class Pipeline:
    """One recipe's stages. `made` remembers what this run has produced, so that nothing is looked up twice."""

    recipe: Recipe
    say: Callable[[str], None] = print
    force: bool = False
    """Make the asked stage anew; its parents are still reused."""
    made: dict[str, Artifact] = field(default_factory=dict)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Stage and options → its section, which may take the reading of files (what people have corrected)."""

    def produce(self, name: str, options: Mapping[str, Any] | None = None, *, force: bool | None = None) -> Artifact:
        """The complete artifact of a stage; its parents are made first where they are missing.

        Raises UserError where the task does not support the stage.
        """
        options = dict(options or {})
        if name == GIVEN:
            return open_given(options["uri"], self.recipe.storage.open())
        if self.recipe.tune is not None and self._trains(name, options):
            self.tuned()
        if reason := task_class(self.recipe.task.kind).unsupported.get(name):
            raise UserError(f"{name} is not supported for {self.recipe.task.kind}: {reason}")
        parents = self.parents(name, options)
        artifact, what, section = self._placed(name, options, parents)
        force = self.force if force is None else force
        if artifact.uri not in self.made or force:
            self._make(what, artifact, section, parents, options, force)
            self.made[artifact.uri] = artifact
        return replace(artifact, answers=self.recipe.task.answers()) if name in MODELS else artifact

    def ready(self, name: str, options: Mapping[str, Any] | None = None) -> None:
        """Let a stage, and the one whose model it works with, refuse what it will not be able to do, before hours go into
        what it needs. Raises UserError."""
        what, options = stage(name), dict(options or {})
        if name in task_class(self.recipe.task.kind).unsupported:
            return
        if check := getattr(what, "ready", None):
            check(self.recipe, options)
        if self._trains(name, options) and (model := what.needs(self.recipe, options).get("model")):
            self.ready(*model)

    def parents(self, name: str, options: Mapping[str, Any]) -> dict[str, Artifact]:
        """What a stage needs, made where it is missing."""
        wanted = stage(name).needs(self.recipe, options)
        return {parent: self.produce(*need, force=False) for parent, need in wanted.items()}

    def planned(self, name: str, options: Mapping[str, Any]) -> Artifact:
        """Where a stage's artifact is, or will be; its parents are made first where they are missing."""
        return self._placed(name, options, self.parents(name, options))[0]

    def _placed(
        self, name: str, options: Mapping[str, Any], parents: Mapping[str, Artifact]
    ) -> tuple[Artifact, Stage, dict[str, Any]]:
        what = stage(name)
        key = f"{name} {sorted(options.items())!r}"
        if key not in self.sections:
            self.sections[key] = what.section(self.recipe, options)
        section = self.sections[key]
        if getattr(what, "answers", False) and any(parent.answers for parent in parents.values()):
            section = section | {"answers": self.recipe.task.answers()}
        address = fingerprint(section, {k: v.identity() for k, v in parents.items()})
        uri = join(absolute(self.recipe.root), self.recipe.name, name, address)
        return Artifact(uri, self.recipe.storage.open()), what, section

    def _trains(self, name: str, options: Mapping[str, Any]) -> bool:
        """Whether a stage works with this recipe's trained model."""
        if name == "index":
            return self.recipe.index is not None and self.recipe.index.trained
        elsewhere = name == "predict" and options.get("endpoint")
        return name in ("train", "evaluate", "compress", "serve", "predict") and not elsewhere

    def _make(
        self,
        what: Stage,
        artifact: Artifact,
        section: dict[str, Any],
        parents: dict[str, Artifact],
        options: dict[str, Any],
        force: bool,
    ) -> None:
        label = " ".join([what.name, *(str(v) for k, v in options.items() if k == "role")])
        always = getattr(what, "always", False)
        if artifact.complete() and not force and not always:
            self.say(f"{label}: reused {artifact.uri}{_shown(artifact.meta()['metrics'])}")
            return
        resume = artifact.started() and not artifact.complete() and not force
        if force and artifact.started():
            artifact.remove()
        self.say(f"{label}: {'resuming' if resume else 'making'} {artifact.uri}")
        start = time.monotonic()
        artifact.begin(self.recipe.public(), section, parents)
        done = what.run(Job(self.recipe, section, parents, artifact, artifact.storage, resume, options, self.say))
        artifact.finish(section=section, parents=parents, metrics=done.metrics, digest=done.digest)
        self.say(f"{label}: done in {time.monotonic() - start:.1f} s{_shown(done.metrics)}")

    def tuned(self) -> Artifact:
        """Run the sweep, or find it done, and go on with the best setting it found."""
        assert self.recipe.tune is not None
        artifact = self.produce("tune")
        best = artifact.read_json("best.json")["overrides"]
        self.say(f"tune: going on with {', '.join(f'{k}={show(v)}' for k, v in best.items())}")
        self.recipe = override(self.recipe, {**best, "tune": None})
        self.sections.clear()
        return artifact

    def run(self, until: str | None = None) -> dict[str, Artifact]:
        """Every stage of the recipe up to `until`, then the report page over them; returns the artifact of each.

        Raises UserError for a stage that is none of `ORDER`.
        """
        from .report import write

        if until is not None and until not in ORDER:
            raise UserError(f"--until {until}: no stage of a run{nearest(until, ORDER)}")
        asked = ORDER[: ORDER.index(until) + 1] if until else ORDER
        for name in asked:
            if name != "compress" or self.recipe.compress is not None:
                self.ready(name)
        found: dict[str, Artifact] = {}
        for name in asked:
            if name == "ingest" or (name == "clean" and self.recipe.clean is not None):
                for role in self.recipe.data:
                    found[f"{name} {role}"] = self.produce(name, {"role": role})
            elif name == "clean":
                continue
            elif name == "tune":
                if self.recipe.tune is not None:
                    found["tune"] = self.tuned()
            elif name == "compress" and self.recipe.compress is None:
                self.say("compress: the recipe says null; the float model is served")
            elif reason := task_class(self.recipe.task.kind).unsupported.get(name):
                self.say(f"{name}: not supported for {self.recipe.task.kind}: {reason}")
            else:
                found[name] = self.produce(name)
        self.say(f"report: {write(self.recipe, found)}")
        return found


def produce(
    recipe: Recipe,
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> Artifact:
    """One stage of a recipe, with what it needs."""
    pipeline = Pipeline(recipe, say, force)
    pipeline.ready(name, options)
    return pipeline.produce(name, options)


def run_all(
    recipe: Recipe, until: str | None = None, *, force: bool = False, say: Callable[[str], None] = print
) -> dict[str, Artifact]:
    """Every stage of a recipe, up to `until`."""
    return Pipeline(recipe, say, force).run(until)


def _shown(metrics: Mapping[str, Any]) -> str:
    scalars = {k: v for k, v in metrics.items() if isinstance(v, (int, float, str)) and v != ""}
    return "".join(f"{', ' if i else ': '}{k} {show(v)}" for i, (k, v) in enumerate(scalars.items()))
