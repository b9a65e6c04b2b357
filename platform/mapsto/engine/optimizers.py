"""The recipe's `train.optimizer` as a torch optimizer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..core.errors import UserError

if TYPE_CHECKING:
    from ..config.schema import OptimizerConfig


def check_groups(names: Iterable[str], config: OptimizerConfig) -> None:
    """Raises UserError for a group that matches none of the names."""
    known = list(names)
    for group in config.groups:
        if not any(re.search(group.match, name) for name in known):
            raise UserError(
                f"train.optimizer.groups: '{group.match}' matches no trained parameter, such as {known[0]} or {known[-1]}"
            )


def optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimizerConfig,
    overrides: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """SGD or AdamW over named parameters. `overrides`: a phase's own settings, by the names of OptimizerConfig.

    Parameters of one dimension (biases, norm layers) get no weight decay unless `decay_norms` (He et al., Bag of
    Tricks for Image Classification, arXiv 1812.01187, section 3.1) or their group says so.
    """
    config = type(config)(**{**config.model_dump(), **(overrides or {})})
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        group = next((g for g in config.groups if re.search(g.match, name)), None)
        decay = config.weight_decay if parameter.ndim > 1 or config.decay_norms else 0.0
        if group is not None:
            decay = decay if group.weight_decay is None else group.weight_decay
        found.setdefault((config.lr * (group.lr if group else 1.0), decay), []).append(parameter)
    groups = [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay), group in found.items()]
    if config.kind == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov and config.momentum > 0,
        fused=True,
    )
