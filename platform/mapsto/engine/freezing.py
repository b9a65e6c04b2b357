"""Parameters that are not trained, or not at first: `train.init.freeze`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.errors import UserError

if TYPE_CHECKING:
    from ..config.training import InitConfig


class Frozen:
    """What the patterns match in a model, and until when (`until`: name → the epoch from which it is trained). `norms`: batch norms
    that keep their statistics meanwhile: those whose running mean is matched, and those whose parameters all are."""

    def __init__(self, model: nn.Module, config: InitConfig | None) -> None:
        patterns = config.freeze if config else ()
        thaws = (config.thaws if config else ()) or (math.inf,) * len(patterns)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        buffers = [name for name, _ in model.named_buffers()]
        for pattern in patterns:
            if not any(re.search(pattern, name) for name in (*trained, *buffers)):
                raise UserError(
                    f"train.init.freeze: '{pattern}' matches no trained parameter, such as {trained[0]} or {trained[-1]}"
                )

        def until(name: str) -> float:
            """The epoch from which it is trained; 0 for what no pattern matches."""
            return max((at for at, each in zip(thaws, patterns, strict=True) if re.search(each, name)), default=0)

        self.until: Mapping[str, float] = {name: until(name) for name in trained if until(name)}
        if patterns and len(self.until) == len(trained):
            raise UserError("train.init.freeze matches every parameter: nothing is left to train")
        self._norms = [
            (m, max(until(f"{name}.running_mean"), self._whole(name, m)))
            for name, m in model.named_modules()
            if isinstance(m, _BatchNorm)
        ]

    def _whole(self, name: str, norm: nn.Module) -> float:
        """Until when all of a norm's parameters are frozen."""
        own = [f"{name}.{inner}" for inner, parameter in norm.named_parameters() if parameter.requires_grad]
        return min((self.until.get(each, 0) for each in own), default=0)

    def names(self, epoch: int = 0) -> frozenset[str]:
        """The parameters that are frozen in an epoch, from 0."""
        return frozenset(name for name, until in self.until.items() if epoch < until)

    def norms(self, epoch: int) -> list[nn.Module]:
        return [norm for norm, until in self._norms if epoch < until]

    def quiet(self, epoch: int) -> None:
        """After `model.train()`: the frozen norms in eval mode."""
        for norm in self.norms(epoch):
            norm.eval()
