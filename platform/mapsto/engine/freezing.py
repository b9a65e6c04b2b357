"""Parameters that are not trained, or not at first: `train.init.freeze`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.errors import UserError

if TYPE_CHECKING:
    from ..config.training import InitConfig


class Frozen:
    """What the patterns match in a model, and until when. `norms`: batch norms that keep their statistics: those whose
    running mean is matched, and those whose parameters all are."""

    def __init__(self, model: nn.Module, config: InitConfig | None) -> None:
        patterns = config.freeze if config else ()
        self.until = config.unfreeze_at if config else None
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        buffers = [name for name, _ in model.named_buffers()]
        for pattern in patterns:
            if not any(re.search(pattern, name) for name in (*trained, *buffers)):
                raise UserError(
                    f"train.init.freeze: '{pattern}' matches no trained parameter, such as {trained[0]} or {trained[-1]}"
                )

        def matched(name: str) -> bool:
            return any(re.search(pattern, name) for pattern in patterns)

        self.names = frozenset(name for name in trained if matched(name))
        if patterns and len(self.names) == len(trained):
            raise UserError("train.init.freeze matches every parameter: nothing is left to train")
        self.norms = [
            m for name, m in model.named_modules() if isinstance(m, _BatchNorm) and self._still(name, m, matched)
        ]

    def _still(self, name: str, norm: nn.Module, matched: Callable[[str], bool]) -> bool:
        own = [f"{name}.{inner}" for inner, parameter in norm.named_parameters() if parameter.requires_grad]
        return matched(f"{name}.running_mean") or (bool(own) and self.names.issuperset(own))

    def holds(self, epoch: int) -> bool:
        """Whether they are frozen in an epoch, from 0."""
        return bool(self.names or self.norms) and (self.until is None or epoch < self.until)

    def quiet(self, epoch: int) -> None:
        """After `model.train()`: the frozen norms in eval mode."""
        if self.holds(epoch):
            for norm in self.norms:
                norm.eval()
