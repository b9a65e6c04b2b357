"""Libraries that take seconds to import: imported where they are used, and without what they take along for nothing."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .errors import UserError


def timm() -> Any:
    """The timm package, its optimizers with it. Where W&B is installed, timm imports it for its own scripts' log, which takes as
    long as all the rest; it is kept away meanwhile."""
    if "timm" in sys.modules or "wandb" in sys.modules:
        return _with_optimizers()
    sys.modules["wandb"] = None  # ty: ignore[invalid-assignment]  # the import system's own way to say: not here
    try:
        return _with_optimizers()
    finally:
        del sys.modules["wandb"]


def need_transformers() -> None:
    """UserError where the extra is not installed; imports nothing."""
    if find_spec("transformers") is None:
        raise UserError(
            "task.model.name: rtdetr is transformers', which is not installed: pip install 'mapsto[rtdetr]', on the cluster's nodes too"
        )


def transformers() -> Any:
    """The transformers package. UserError where it is not installed."""
    need_transformers()
    return import_module("transformers")


def _with_optimizers() -> Any:
    import_module("timm.optim")  # timm itself imports its models alone
    return import_module("timm")
