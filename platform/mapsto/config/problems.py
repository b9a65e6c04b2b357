"""Pydantic's errors in plain words, each at the path where the user wrote it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from ..core.errors import nearest
from .document import Path, dotted
from .paths import alternatives, annotation_of, fields, hint, items, kinds, sections
from .schema import SECRETS


def secret(path: Path) -> bool:
    """Whether what is written at a path is, holds or is in a storage's key."""
    at = path.index("storage") if "storage" in path else len(path)
    return at == len(path) - 1 or (at < len(path) and path[at + 1] in SECRETS)


WORDS = {
    "int_parsing": "{value} is not a whole number",
    "int_type": "{value} is not a whole number",
    "int_from_float": "{value} is not a whole number",
    "int_parsing_size": "{value} is too large",
    "float_parsing": "{value} is not a number",
    "float_type": "{value} is not a number",
    "finite_number": "{value} is not a finite number",
    "bool_parsing": "{value} is neither true nor false",
    "bool_type": "{value} is neither true nor false",
    "string_type": "{value} is not text; put it in quotes if it is meant as text",
    "string_pattern_mismatch": "{value} must match {pattern}",
    "dict_type": "{value} is not a mapping of names to values",
    "model_type": "{value} is not a section of fields ({fields})",
    "model_attributes_type": "{value} is not a section of fields ({fields})",
    "list_type": "{value} is not a list",
    "tuple_type": "{value} is not a list",
    "too_short": "holds {actual_length} values, at least {min_length} needed",
    "too_long": "holds {actual_length} values, at most {max_length} allowed",
    "greater_than": "{value} is too small, must be greater than {gt}",
    "greater_than_equal": "{value} is too small, must be at least {ge}",
    "less_than": "{value} is too large, must be less than {lt}",
    "less_than_equal": "{value} is too large, must be at most {le}",
}


def explain(error: Mapping[str, Any], model: type[BaseModel], values: Mapping[str, Any]) -> tuple[Path, str]:
    """One of `ValidationError.errors()` to the path in the document and what to say of it."""
    kind, context = error["type"], dict(error.get("ctx") or {})
    path, annotation, value = _locate(error["loc"], model, values)
    if kind == "extra_forbidden":
        above, inner = _annotation(path[:-1], model, values)
        return path, f"unknown field{hint(sections(above, inner), str(path[-1]), dotted(path[:-1]))}"
    if kind == "missing":
        return path, "missing, and it has no default"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        known = [str(name) for member in sections(annotation) for name in kinds(member)]
        given = value.get("kind") if isinstance(value, Mapping) else None
        if given is None:
            return (*path, "kind"), f"missing; one of: {', '.join(sorted(known))}"
        return (*path, "kind"), f"{quote(given)} is unknown{nearest(str(given), known)}"
    if kind == "literal_error":
        known = [name.strip("'") for name in re.split(r", | or ", context["expected"])]
        given = error["input"]
        near = nearest(str(given), known) if isinstance(given, str) else f"; known: {', '.join(known)}"
        return path, f"{quote(given)} is unknown{near}"
    if kind == "value_error":
        return path, str(context["error"])
    text = WORDS.get(kind)
    if text is None:
        return path, str(error["msg"])[0].lower() + str(error["msg"])[1:]
    shown = "the value" if secret(path) else quote(error["input"])
    known_fields = ", ".join(fields(sections(annotation)))
    return path, text.format(value=shown, fields=known_fields, **_plain(context))


def _plain(context: Mapping[str, Any]) -> dict[str, Any]:
    return {k: f"{v:g}" if isinstance(v, float) else v for k, v in context.items() if k not in ("value", "fields")}


def quote(value: Any) -> str:
    """A value as the user wrote it, short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= 60 else f"'{value[:57]}...'"
    if isinstance(value, Mapping):
        return "a section"
    return "a list" if isinstance(value, list | tuple) else str(value)


def truths(annotation: Any, value: Any, path: Path = ()) -> list[tuple[Path, str]]:
    """`true` and `false` where a number is wanted: pydantic, like Python, takes them for 1 and 0."""
    if isinstance(value, bool):
        plain = alternatives(annotation)
        return [(path, f"{quote(value)} is not a number")] if plain and set(plain) <= {int, float} else []
    found: list[tuple[Path, str]] = []
    if isinstance(value, Mapping | list):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            below = _step(annotation, key, value)
            found += truths(below, inner, (*path, key)) if below is not None else []
    return found


def _locate(loc: Sequence[str | int], model: type[BaseModel], values: Any) -> tuple[Path, Any, Any]:
    """Pydantic's location without its union tags and key marks; the schema's type and the document's value there."""
    path: list[str | int] = []
    annotation: Any = model
    for part in loc:
        if part == "[key]":
            break
        here = isinstance(values, Mapping) and part in values
        if not here and isinstance(values, Mapping) and len(sections(annotation)) > 1 and values.get("kind") == part:
            continue  # the tag of a union's member
        annotation = _step(annotation, part, values)
        values = _inner(values, part)
        path.append(part)
    return tuple(path), annotation, values


def _annotation(path: Path, model: type[BaseModel], values: Any) -> tuple[Any, Any]:
    annotation: Any = model
    for part in path:
        annotation, values = _step(annotation, part, values), _inner(values, part)
    return annotation, values


def _step(annotation: Any, part: str | int, value: Any) -> Any:
    infos = fields(sections(annotation, value)).get(str(part))
    return annotation_of(infos) if infos else items(annotation)


def _inner(value: Any, part: str | int) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    return value[part] if isinstance(value, list | tuple) and isinstance(part, int) and part < len(value) else None
