"""A recipe from YAML and `--set` overrides: all of its errors at once, each with the line where it stands."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ..core.errors import UserError
from ..core.storage import Storage, absolute
from . import document
from .document import Document, Path, dotted
from .paths import annotation_of, fields, is_mapping, items, kinds, missing, optional, sections, split
from .problems import explain, secret, truths
from .schema import Recipe, recipe_model
from .tuning import Branch, Choice, walk

SEARCHABLE = ("data", "task", "train")
"""Sections that `tune.space` may draw from: those that a train artifact is made of."""


def load(source: str | FilePath, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    `source`: a file's path or URI, or the YAML text itself (anything of several lines). `overrides`:
    `path.to.field=value`, the value as YAML. String values may hold `${env:NAME}`. Raises one UserError with a line per
    problem: `recipe.yaml:5: train.epocs: unknown field, did you mean 'epochs'?`.
    """
    return _load(*read(source), overrides)


def _load(text: str, name: str, overrides: Sequence[str], *, elsewhere: bool = False) -> Recipe:
    found = document.parse(text, name, elsewhere=elsewhere)
    if found.problems and not found.values:
        raise _failure(found)
    model = recipe_model()
    for override_ in overrides:
        _apply(found, model, override_)
    recipe = _validate(found, model)
    if recipe is None:
        raise _failure(found)
    return recipe


def override(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with values at dotted paths replaced, validated anew: a trial of a sweep.

    A section whose `kind` changes keeps only the fields that its new kind has too. Raises UserError.
    """
    model = type(recipe)
    name = ", ".join(f"{path}={value}" for path, value in values.items())
    found = Document(name, copy.deepcopy(recipe.model_dump(exclude_unset=True)))
    for text, value in values.items():
        wrong = missing(model, text)
        if wrong:
            found.problems.append((text, wrong))
            continue
        path = split(model, text, found.values)
        if path[-1] == "kind":
            _keep_shared(found.values, path[:-1], model, value)
        _put(found.values, path, value)
    changed = None if found.problems else _validate(found, model, search=False)
    if changed is None:
        raise _failure(found)
    return changed


def portable(source: str | FilePath, overrides: Sequence[str] = ()) -> tuple[str, list[str]]:
    """A recipe's text as written and the overrides to load it with elsewhere: plain paths in it made absolute.

    It is validated here; an environment name that only the other machine has is left to that machine.
    """
    text, name = read(source)
    recipe = _load(text, name, overrides, elsewhere=True)
    if written := _written_keys(text, overrides):
        raise UserError(
            f"{name}: {', '.join(written)}: a job's text is kept and listed by the cluster, so no key may be in it: "
            "write ${env:NAME}, and set NAME in the environment of the cluster's nodes"
        )
    paths = {"root": recipe.root, **{f"data.{role}.source": data.source for role, data in recipe.data.items()}}
    if recipe.train.init and recipe.train.init.weights:
        paths["train.init.weights"] = recipe.train.init.weights
    paths |= {f"task.{path}": uri for path, uri in recipe.task.artifacts().items()}
    relative = {path: uri for path, uri in paths.items() if absolute(uri) != uri and "${env:" not in uri}
    return text, [*overrides, *(f"{path}={absolute(uri)}" for path, uri in relative.items())]


def _written_keys(text: str, overrides: Sequence[str]) -> list[str]:
    """Paths of storage keys that are written out, not taken from the environment."""
    sides = [override_.partition("=") for override_ in overrides]
    given = [
        ((), document.parse_value(text)),
        *((tuple(s[0].strip().split(".")), document.parse_value(s[2])) for s in sides),
    ]
    return [dotted(path) for start, value in given for path in _keys(value, start)]


def _keys(value: Any, path: Path) -> Iterator[Path]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _keys(inner, (*path, name))
    elif "storage" in path[:-1] and secret(path) and value is not None and "${env:" not in str(value):
        yield path


def describe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default filled in, its secrets masked."""
    return document.dump(recipe.model_dump(mode="json", exclude_none=True))


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **recipe_model().model_json_schema()}


def read(source: str | FilePath) -> tuple[str, str]:
    """A recipe's text and its name in messages. Raises UserError where there is none."""
    name = str(source)
    if "\n" in name:
        return name, "recipe"
    try:
        if "://" in name:
            return Storage().read(name).decode(), name
        return FilePath(name).read_text(encoding="utf-8"), name
    except FileNotFoundError:
        raise UserError(f"{name}: no such recipe file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{name}: {error.strerror or error}") from None


def _apply(found: Document, model: type[BaseModel], text: str) -> None:
    """Put one `path=value` into the document; what is wrong with it becomes a problem."""
    origin = f"--set {text}"
    left, equals, right = text.partition("=")
    left = left.strip()
    if not equals or not left or ".." in f".{left}.":
        found.problems.append((origin, "write --set path.to.field=value"))
        return
    try:
        value = document.parse_value(right)
    except yaml.YAMLError:
        found.problems.append((origin, "the value is no valid YAML; quote it"))
        return
    path = split(model, left, found.values)
    if secret(tuple(path)) or "storage" in right:
        origin = f"--set {left}=..."
    if isinstance(value, str):
        value, wrong = document.environment(value, elsewhere=found.elsewhere)
        if wrong:
            found.problems.append((origin, wrong))
    wrong = missing(model, path, found.values)
    if wrong:
        found.problems.append((origin, wrong))
        return
    if not _put(found.values, path, value):
        found.problems.append((origin, "the recipe has no such list item; set the whole list"))
        return
    for other in [other for other in found.origins if other[: len(path)] == path]:
        del found.origins[other]
    found.origins[path] = origin


def _put(values: dict[str, Any], path: Path, value: Any) -> bool:
    """Set a value, with the sections above it made where absent; False where that cannot be."""
    here: Any = values
    for part, following in pairwise(path):
        if isinstance(here, dict) and here.get(part) is None:
            if not isinstance(following, str):
                return False  # a list that the recipe does not have
            here[part] = {}
        if not _holds(here, part):
            return False
        here = here[part]
    if not _holds(here, path[-1]):
        return False
    here[path[-1]] = value
    return True


def _holds(container: Any, part: str | int) -> bool:
    if isinstance(container, list):
        return isinstance(part, int) and part < len(container)
    return isinstance(container, dict) and isinstance(part, str)


def _keep_shared(values: dict[str, Any], path: Path, model: type[BaseModel], kind: Any) -> None:
    annotation: Any = model
    here: Any = values
    for part in path:
        infos = fields(sections(annotation, here)).get(str(part))
        annotation = annotation_of(infos) if infos else items(annotation)
        here = here.get(part) if isinstance(here, dict) else None
    if isinstance(here, dict) and here.get("kind") != kind:
        known = fields([m for m in sections(annotation) if kind in kinds(m) or not kinds(m)])
        for name in [name for name in here if name not in known]:
            del here[name]


def _validate(found: Document, model: type[Recipe], *, search: bool = True) -> Recipe | None:
    """The recipe, or None with the document's problems filled in."""
    _fill_defaults(model, found.values)
    for path, message in truths(model, found.values):
        _report(found, path, message)
    recipe = None
    try:
        recipe = model.model_validate(found.values)
    except ValidationError as error:
        for each in error.errors(include_url=False):
            _report(found, *explain(each, model, found.values))
    except UserError as error:  # from a task's own validator
        found.problems.append((found.name, str(error)))
    if search:
        _check_space(found, model, recipe)
    return None if found.problems else recipe


def _report(found: Document, path: Path, message: str) -> None:
    """A problem at a path; one that `--set` wrote names the path only where it differs from the one set."""
    origin = found.origin(path)
    at_set = origin.startswith("--set ") and found.origins.get(path) == origin
    found.problems.append((origin, message if at_set else f"{dotted(path)}: {message}"))


def _fill_defaults(annotation: Any, value: Any, default: Any = None) -> None:
    """Write out what may be left out: the `kind` that is a section's default, and a section left empty (`train:`)."""
    if not isinstance(value, dict):
        for item in value if isinstance(value, list) else ():
            _fill_defaults(items(annotation), item)
        return
    if isinstance(default, BaseModel) and len(sections(annotation)) > 1:
        value.setdefault("kind", getattr(default, "kind", None))
    known = fields(sections(annotation, value))
    for name, inner in value.items():
        infos = known.get(name)
        if infos and inner is None and isinstance(infos[0].default, BaseModel) and not optional(infos[0].annotation):
            value[name] = {}
        elif infos:
            _fill_defaults(annotation_of(infos), inner, infos[0].default)
        elif is_mapping(annotation):
            _fill_defaults(items(annotation), inner)


def _check_space(found: Document, model: type[BaseModel], recipe: Any) -> None:
    """Every path of `tune.space` is a field of the recipe, and every value drawn from it one that the field takes."""
    tune = found.values.get("tune")
    space = tune.get("space") if isinstance(tune, dict) else None
    if not isinstance(space, dict):
        return
    drawn = list(walk(recipe.tune.space)) if recipe is not None else [((n,), n, None, {}) for n in space]
    kinds_vary = any(name.endswith(".kind") for _, name, _, _ in drawn)
    for keys, name, each, given in drawn:
        path: Path = ("tune", "space", *keys)
        wrong = missing(model, name, None if kinds_vary else found.values)
        if wrong:
            _report(found, path, wrong)
        elif name.split(".")[0] not in SEARCHABLE:
            _report(found, path, f"a trial trains; only {', '.join(SEARCHABLE)} can be searched")
        elif each is not None:
            for value in _values(each):
                reason = _refused(recipe, name, value, given)
                if reason:
                    _report(found, path, reason)
                    break


def _values(space: Any) -> list[Any]:
    """What a field must take, to take all that is drawn from the space."""
    if isinstance(space, Branch):
        return [value for value, _ in space.options()]
    return space.values if isinstance(space, Choice) else [space.low, space.high]


def _refused(recipe: Recipe, name: str, value: Any, given: Mapping[str, Any]) -> str | None:
    try:
        override(recipe, {**given, name: value})
    except UserError as error:
        lines = [line for line in str(error).splitlines() if f"{name}: " in line]
        return lines[0].split(f"{name}: ", 1)[1] if lines else None  # what depends on other fields shows in the trial
    return None


def _failure(found: Document) -> UserError:
    """All problems, in the order of the file, then of the command line."""

    def order(problem: tuple[str, str]) -> tuple[bool, int]:
        line = problem[0].rsplit(":", 1)[-1]
        return problem[0].startswith("--set "), int(line) if line.isdecimal() else 0

    lines = [f"{origin}: {message}" for origin, message in sorted(dict.fromkeys(found.problems), key=order)]
    return UserError("\n".join(lines))
