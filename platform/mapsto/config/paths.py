"""What the schema knows of a dotted path: which fields a section has, whether a path exists, what was probably meant."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..core.errors import nearest

ANY_DEPTH = 6  # of fields below a section that a hint is looked for in


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """A type without its Annotated and Union wrappers: the types that a value may have, None left out."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin is Union or origin is types.UnionType:
        return tuple(inner for arg in get_args(annotation) for inner in alternatives(arg))
    return () if annotation is type(None) else (annotation,)


def optional(annotation: Any) -> bool:
    """Whether null is a value."""
    return type(None) in get_args(annotation)


def sections(annotation: Any, value: Any = None) -> tuple[type[BaseModel], ...]:
    """The section models that a value may be: of a union on `kind`, only the one that the value names, when it does."""
    models = tuple(a for a in alternatives(annotation) if isinstance(a, type) and issubclass(a, BaseModel))
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    named = tuple(model for model in models if kind is not None and kind in kinds(model))
    return named or models


def kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    """The literals of a model's `kind`."""
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()


def fields(models: Sequence[type[BaseModel]]) -> dict[str, list[FieldInfo]]:
    found: dict[str, list[FieldInfo]] = {}
    for model in models:
        for name, info in model.model_fields.items():
            found.setdefault(name, []).append(info)
    return found


def items(annotation: Any) -> Any | None:
    """The value type of a mapping, or the item type of a list; None for other types."""
    for inner in alternatives(annotation):
        origin, args = get_origin(inner), get_args(inner)
        if origin is dict:
            return args[1]
        if origin in (list, tuple):
            return args[0]
    return None


def is_mapping(annotation: Any) -> bool:
    return any(get_origin(inner) is dict or inner is dict for inner in alternatives(annotation))


def annotation_of(infos: Sequence[FieldInfo]) -> Any:
    """One type for a field that several members of a union have."""
    return infos[0].annotation if len(infos) == 1 else Union[tuple(info.annotation for info in infos)]  # noqa: UP007


def split(model: type[BaseModel], text: str, value: Any = None) -> tuple[str | int, ...]:
    """`a.b.c` to its parts. A key of `tune.space` is a dotted path itself, and stays whole."""
    annotation: Any = model
    parts = text.split(".")
    path: list[str | int] = []
    while parts:
        if is_mapping(annotation):
            part = _longest_key(model, parts, value, tuple(path))
        else:
            part = parts[0]
        del parts[: part.count(".") + 1]
        index = _index(annotation, part, value)
        path.append(part if index is None else index)
        annotation, value = _below(annotation, path[-1], value)
    return tuple(path)


def _longest_key(model: type[BaseModel], parts: Sequence[str], value: Any, path: tuple[str | int, ...]) -> str:
    if path[:2] != ("tune", "space"):
        return parts[0]
    for length in range(len(parts), 0, -1):
        key = ".".join(parts[:length])
        if (isinstance(value, Mapping) and key in value) or missing(model, key) is None:
            return key
    return parts[0]


def _index(annotation: Any, part: str, value: Any) -> int | None:
    isa_list = any(get_origin(inner) in (list, tuple) for inner in alternatives(annotation)) or isinstance(value, list)
    return int(part) if isa_list and part.isdecimal() else None


def _below(annotation: Any, part: str | int, value: Any) -> tuple[Any, Any]:
    inner = None
    if isinstance(value, Mapping):
        inner = value.get(part)
    elif isinstance(value, list) and isinstance(part, int) and part < len(value):
        inner = value[part]
    infos = fields(sections(annotation, value)).get(str(part))
    return (annotation_of(infos) if infos else items(annotation)), inner


def missing(model: type[BaseModel], path: str | Sequence[str | int], value: Any = None) -> str | None:
    """None when the path exists in the schema (given the kinds that `value` names), else what to say of it:
    `unknown field, did you mean 'epochs'?`."""
    parts = path.split(".") if isinstance(path, str) else list(path)
    annotation: Any = model
    for i, part in enumerate(parts):
        models = sections(annotation, value)
        if models:
            infos = fields(models).get(str(part))
            if not infos:
                return f"unknown field{hint(models, str(part), '.'.join(str(p) for p in parts[:i]))}"
            annotation, value = annotation_of(infos), value.get(part) if isinstance(value, Mapping) else None
        elif items(annotation) is not None and (is_mapping(annotation) or isinstance(part, int) or part.isdecimal()):
            annotation, value = _below(annotation, part, value)
        elif Any in alternatives(annotation) or annotation is None:
            return None
        else:
            return "unknown field; the section above it is a plain value"
    return None


def hint(models: Sequence[type[BaseModel]], name: str, above: str = "") -> str:
    """`, did you mean 'epochs'?`: the nearest field of the section at `above`, or one of that very name further down."""
    near = nearest(name, fields(models))
    if "did you mean" in near:
        return near
    deeper = [path for path in _descend(models, ANY_DEPTH) if path.endswith(f".{name}")]
    if not deeper:
        return near
    return f", did you mean '{above}.{deeper[0]}'?" if above else f", did you mean '{deeper[0]}'?"


def _descend(models: Sequence[type[BaseModel]], depth: int) -> Iterator[str]:
    if not depth:
        return
    for name, infos in fields(models).items():
        yield name
        for path in _descend(sections(annotation_of(infos)), depth - 1):
            yield f"{name}.{path}"
