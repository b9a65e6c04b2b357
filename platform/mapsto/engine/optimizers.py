"""The recipe's `train.optimizer` as a torch optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from ..config.schema import OptimizerConfig


def optimizer(
    parameters: Iterable[nn.Parameter],
    config: OptimizerConfig,
    overrides: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """SGD or AdamW. `overrides`: a phase's own settings, by the names of OptimizerConfig.

    Parameters of one dimension (biases, norm layers) get no weight decay unless `decay_norms` (He et al., Bag of
    Tricks for Image Classification, arXiv 1812.01187, section 3.1).
    """
    config = type(config)(**{**config.model_dump(), **(overrides or {})})
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in parameters:
        (decayed if parameter.ndim > 1 or config.decay_norms else free).append(parameter)
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((decayed, config.weight_decay), (free, 0.0))
        if group
    ]
    if config.kind == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov and config.momentum > 0,
        fused=True,
    )
