"""The rooms' order: who may import whom, where Ray may be imported, and how long a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "platform" / "mapsto"
LONGEST = 400

CORE = {"core"}
SEES: dict[str, set[str]] = {
    "core": set(),
    "config": CORE,
    "data": CORE,
    "models": CORE,
    "tasks": CORE | {"config", "data", "models"},
    "engine": CORE,
    "compress": CORE,
    "curate": CORE,
    "serving": CORE,
    "trust": CORE,
    "runtime": CORE,
    "stages": CORE
    | {"config", "data", "models", "tasks", "engine", "compress", "curate", "serving", "trust", "runtime"},
    "cli": CORE | {"config", "stages", "runtime", "cli_data", "cli_compare"},
    "cli_data": CORE | {"stages"},
    "cli_compare": CORE | {"config", "stages", "runtime"},
    "__main__": {"cli"},
    "__init__": set(),
}
RAY = {"data", "curate", "runtime", "stages", "serving"}
LIGHT = {"core", "config", "data", "tasks", "cli", "cli_data", "cli_compare", "runtime"}
"""No torch, timm or Ray when a module of these is imported; only inside functions, or for the type checker."""


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, lazy: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of each import but those under TYPE_CHECKING; with `lazy`, inside functions, too."""
    here = ("mapsto", *path.relative_to(PACKAGE).with_suffix("").parts)
    package = here if path.name == "__init__.py" else here[:-1]
    package = package[:-1] if path.name == "__init__.py" else package
    yield from _walk(ast.parse(path.read_text()), package, lazy)


def _walk(node: ast.AST, package: tuple[str, ...], lazy: bool) -> Iterator[tuple[int, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield child.lineno, alias.name
        elif isinstance(child, ast.ImportFrom):
            base = package[: len(package) - child.level + 1] if child.level else ()
            module = ".".join([*base, *(child.module or "").split(".")]).strip(".")
            for alias in child.names:
                yield child.lineno, f"{module}.{alias.name}"
        elif lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _walk(child, package, lazy)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_direction(path: Path) -> None:
    mine = room(path)
    assert mine in SEES, f"{path}: a room that the architecture does not know; say in SEES what it may import"
    wrong = [
        f"{path}:{line}: {mine} may not import {module} (it sees {', '.join(sorted(SEES[mine])) or 'nothing'})"
        for line, module in imports(path, lazy=True)
        if module.startswith("mapsto.") and module.split(".")[1] not in SEES[mine] | {mine}
    ]
    wrong += [
        f"{path}:{line}: Ray is imported in {', '.join(sorted(RAY))} only"
        for line, module in imports(path, lazy=True)
        if module.split(".")[0] == "ray" and mine not in RAY
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", [p for p in files() if room(p) in LIGHT], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_light(path: Path) -> None:
    heavy = {"torch", "torchvision", "timm"} | (set() if room(path) == "data" else {"ray"})
    wrong = [f"{path}:{line}: {m}, at import" for line, m in imports(path, lazy=False) if m.split(".")[0] in heavy]
    assert not wrong, "\n".join(wrong)


def test_length() -> None:
    long = {str(p.relative_to(ROOT)): n for p in files() if (n := len(p.read_text().splitlines())) > LONGEST}
    assert not long, f"over {LONGEST} lines: {long}"


def test_no_package_hides_platform() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_the_walk_sees_lazy_and_relative_imports(tmp_path: Path) -> None:
    tree = ast.parse(
        "from ..core import errors\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import ray.data\n    from .app import x\n"
    )
    package = ("mapsto", "serving")
    assert [m for _, m in _walk(tree, package, True)] == ["mapsto.core.errors", "ray.data", "mapsto.serving.app.x"]
    assert [m for _, m in _walk(tree, package, False)] == ["mapsto.core.errors"]
