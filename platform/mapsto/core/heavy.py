"""Libraries that take seconds to import: imported where they are used, and without what they take along for nothing."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any


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


def _with_optimizers() -> Any:
    import_module("timm.optim")  # timm itself imports its models alone
    return import_module("timm")
