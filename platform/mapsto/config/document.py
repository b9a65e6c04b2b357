"""YAML text ↔ plain values, and where each value was written.

Scalars are read by YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema): `no` and `12:30` are text and
`1e-3` is a number, unlike in PyYAML's YAML 1.1.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]
"""Keys and list positions from the top of the document to a value."""

MAX_DEPTH, MAX_VALUES = 50, 100_000  # far above any recipe; a document of nested aliases would fill the memory
_ENV = re.compile(r"\$\{env:([^}]*)\}?")


class _Loader(yaml.SafeLoader):
    """SafeLoader whose plain scalars follow YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
        (
            "float",
            r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
            list("-+.0123456789"),
        ),
    ):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


@dataclass
class Document:
    """A recipe's plain values, the origin of each (`recipe.yaml:5`), and what was wrong with it so far."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Path, str] = field(default_factory=dict)
    elsewhere: bool = False
    """Environment names that are not set here are left as they are written, for another machine to fill in."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """(origin, message)."""

    def origin(self, path: Path) -> str:
        """Where a path, or the nearest section above it that was written, stands."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return self.name

    def report(self, path: Path, message: str) -> None:
        self.problems.append((self.origin(path), f"{dotted(path)}: {message}" if path else message))


def dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)


def parse(text: str, name: str, *, elsewhere: bool = False) -> Document:
    """Read one YAML mapping. Syntax errors, duplicate keys and unset environment names are problems of the result."""
    document = Document(name, elsewhere=elsewhere)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except RecursionError:
        document.problems.append((name, "nested too deeply"))
        return document
    except yaml.YAMLError as error:
        document.problems.append(_syntax(error, text, name))
        return document
    if node is None:
        document.problems.append((name, "the recipe is empty"))
    elif not isinstance(node, yaml.MappingNode):
        document.problems.append((f"{name}:{_line(node)}", "a recipe is a mapping of sections, `name: ...` and so on"))
    else:
        _Reader(document).read(node, (), 0)
    return document


def parse_value(text: str) -> Any:
    """A value as one would write it in the recipe; raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def dump(values: Any) -> str:
    """Plain values as YAML, in their own order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def environment(text: str, *, elsewhere: bool = False) -> tuple[str, str | None]:
    """Replace each `${env:NAME}`; returns the text and, when something is wrong, what."""
    wrong: list[str] = []

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if not match[0].endswith("}") or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            wrong.append(f"'{match[0]}' is no environment reference; write ${{env:NAME}}")
        elif name not in os.environ and elsewhere:
            return match[0]
        elif name not in os.environ:
            wrong.append(f"the environment variable {name} is not set")
        return os.environ.get(name, "")

    return _ENV.sub(value, text), "; ".join(wrong) or None


class _Reader:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.count = 0

    def read(self, node: yaml.Node, path: Path, depth: int) -> Any:
        """The node's plain value; notes its line in the document's origins."""
        document = self.document
        document.origins.setdefault(path, f"{document.name}:{_line(node)}")
        self.count += 1
        if depth > MAX_DEPTH or self.count > MAX_VALUES:
            if self.count <= MAX_VALUES + 1:
                document.report(path[:1], "nested too deeply, or an alias that contains itself")
            self.count = MAX_VALUES + 1
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, i), depth + 1) for i, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[str, Any]:
        document = self.document
        values = document.values if not path else {}
        for key, value in node.value:
            where = f"{document.name}:{_line(key)}"
            if not isinstance(key, yaml.ScalarNode):
                document.problems.append((where, f"{dotted(path)}: a field's name is text"))
                continue
            inner = (*path, key.value)
            if key.value in values:
                first = document.origins[inner].rsplit(":", 1)[-1]
                document.problems.append((where, f"{dotted(inner)}: given twice, first in line {first}"))
                continue
            document.origins[inner] = where
            values[key.value] = self.read(value, inner, depth + 1)
        return values

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        try:
            value = _construct(node)
        except (yaml.YAMLError, ValueError) as error:
            self.document.report(path, f"cannot be read: {str(error).splitlines()[0]}")
            return None
        if isinstance(value, str) and "${env:" in value:
            value, wrong = environment(value, elsewhere=self.document.elsewhere)
            if wrong:
                self.document.report(path, wrong)
        return value


def _construct(node: yaml.Node) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _syntax(error: yaml.YAMLError, text: str, name: str) -> tuple[str, str]:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
    if mark is None:
        return name, f"no valid YAML: {what}"
    lines = text.splitlines()
    written = lines[mark.line] if mark.line < len(lines) else ""
    if "'\\t'" in what or written[: mark.column + 1].strip(" ").startswith("\t"):
        what = "a tab; YAML is indented with spaces"
    elif "single document" in (getattr(error, "context", "") or "") + what:
        what = "a second document (---); a recipe is one"
    return f"{name}:{mark.line + 1}", f"no valid YAML: {what}"
