"""Values changed in a recipe's text, with everything else, comments too, left as it was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from ..core.errors import UserError
from . import document
from .document import Path
from .load import Recipe, load


def rewrite(text: str, recipe: Recipe, changes: Mapping[Path, Any], removed: str | None = None) -> str:
    """The text with the values at the paths set, and a top-level section removed, so that it loads as `recipe`.

    Where it cannot be edited to that (aliases, settings that only the command line gave, a section whose kind changes), the
    whole recipe as clean YAML, without its secrets and comments.
    """
    try:
        for path, value in changes.items():
            text = _set(text, path, value)
        if removed is not None:
            text = _remove(text, removed)
        edited = load(text if "\n" in text else f"{text}\n") == recipe
    except (UserError, yaml.YAMLError):
        edited = False
    return text if edited else document.dump(recipe.public())


def _set(text: str, path: Path, value: Any) -> str:
    node, left = _compose(text), list(path)
    while isinstance(node, yaml.MappingNode) and left:
        below = _value(node, str(left[0]))
        if below is None:
            return _insert(text, node, left, value)
        node = below
        left.pop(0)
    if left:
        return _replace(text, node, _nested(left, value))  # `train:` left empty
    return _replace(text, node, value)


def _replace(text: str, node: yaml.Node, value: Any) -> str:
    start, end = node.start_mark.index, node.end_mark.index
    old = text[start:end]
    gap = "" if start and text[start - 1 : start].isspace() else " "  # `train:` and nothing after it
    return text[:start] + gap + _inline(value) + old[len(old.rstrip()) :] + text[end:]


def _insert(text: str, node: yaml.MappingNode, left: list[Any], value: Any) -> str:
    """A new key: first in `{...}`, or a line before a block's first key."""
    inner = _inline(_nested(left[1:], value))
    if node.flow_style:
        assert node.start_mark is not None
        at = node.start_mark.index + 1
        return f"{text[:at]}{left[0]}: {inner}{', ' if node.value else ''}{text[at:]}"
    key = node.value[0][0].start_mark
    line = text.rfind("\n", 0, key.index) + 1
    return f"{text[:line]}{' ' * key.column}{left[0]}: {inner}\n{text[line:]}"


def _remove(text: str, name: str) -> str:
    """Without a top-level section of a block; comments after it stay."""
    node = _compose(text)
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        return text
    for key, value in node.value:
        if key.value == name:
            lines = text[: value.end_mark.index].splitlines(keepends=True)
            first = key.start_mark.line
            body = lines[first:]
            while len(body) > 1 and (not body[-1].strip() or body[-1].startswith("#")):
                body.pop()  # the end of a block is where the next token begins
            after = text.splitlines(keepends=True)[first + len(body) :]
            return "".join([*lines[:first], *after])
    return text


def _compose(text: str) -> yaml.Node:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert node is not None
    return node


def _value(node: yaml.MappingNode, name: str) -> yaml.Node | None:
    return next((value for key, value in node.value if key.value == name), None)


def _nested(path: list[Any], value: Any) -> Any:
    for part in reversed(path):
        value = {part: value}
    return value


def _inline(value: Any) -> str:
    """A value on one line, as YAML 1.2 reads it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, str):
        return value if _plain(value) else json.dumps(value, ensure_ascii=not value.isprintable())
    return json.dumps(value)


def _plain(text: str) -> bool:
    known = text.replace("_", "").replace("-", "").replace(".", "").replace("/", "")
    return known.isalnum() and document.parse_value(text) == text
