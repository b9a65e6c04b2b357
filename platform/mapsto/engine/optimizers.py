"""The recipe's `train.optimizer` as a torch optimizer."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..core import heavy
from ..core.errors import UserError

if TYPE_CHECKING:
    from ..config.optimizing import OptimizerConfig


def check_groups(names: Iterable[str], config: OptimizerConfig) -> None:
    """Raises UserError for a group that matches none of the names."""
    known = list(names)
    for group in config.groups:
        if not any(re.search(group.match, name) for name in known):
            raise UserError(
                f"train.optimizer.groups: '{group.match}' matches no trained parameter, such as {known[0]} or {known[-1]}"
            )


def of_phase(config: OptimizerConfig, overrides: Mapping[str, Any] | None) -> OptimizerConfig:
    """The settings with a phase's own in place of the recipe's, by the names of OptimizerConfig."""
    return type(config)(**{**config.model_dump(), **(overrides or {})})


def optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimizerConfig,
    *,
    scales: Mapping[str, float] | None = None,
    undecayed: Collection[str] = (),
    apart: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """torch's own optimizer, or timm's of that name, over named parameters.

    `scales`: name → factor of the learning rate (layer-wise decay). Parameters of one dimension (biases, norm layers)
    and those in `undecayed` get no weight decay unless `decay_norms` (He et al., Bag of Tricks for Image
    Classification, arXiv 1812.01187, section 3.1) or their group says so. Those in `apart`, which have no gradient
    until an epoch, get groups of their own by that epoch. Raises UserError for arguments that the optimizer does not take.
    """
    # by kind, not by value: a population's member takes over moments whatever its own settings are
    found: dict[tuple[float, bool, int | None, float | None], tuple[float, float, list[nn.Parameter]]] = {}
    groups_of = dict(enumerate(config.groups))
    for name, parameter in parameters:
        number = next((k for k, g in groups_of.items() if re.search(g.match, name)), None)
        group = None if number is None else groups_of[number]
        decayed = config.decay_norms or (parameter.ndim > 1 and name not in undecayed)
        decay = config.weight_decay if decayed else 0.0
        if group is not None:
            decay = decay if group.weight_decay is None else group.weight_decay
        scale = (scales or {}).get(name, 1.0)
        lr = config.lr * (group.lr if group else 1.0) * scale
        found.setdefault((scale, decayed, number, (apart or {}).get(name)), (lr, decay, []))[2].append(parameter)
    groups = [{"params": group, "lr": lr, "weight_decay": decay} for lr, decay, group in found.values()]
    try:
        return _made(groups, config)
    except (TypeError, ValueError, ImportError, AssertionError) as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"train.optimizer: '{config.kind}' cannot be made with these settings: {line}") from error


def _made(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    options: dict[str, Any] = {**({"betas": config.betas} if config.betas else {}), **config.options}
    if config.kind == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(groups, config.lr, config.momentum, nesterov=nesterov, fused=True, **options)
    if config.kind == "rmsprop":
        return torch.optim.RMSprop(groups, config.lr, momentum=config.momentum, **options)
    if config.kind == "adagrad":
        return torch.optim.Adagrad(groups, config.lr, **options)
    if config.kind in ("adam", "adamw"):
        made = torch.optim.Adam if config.kind == "adam" else torch.optim.AdamW
        return made(groups, config.lr, fused=True, **options)
    return heavy.timm().optim.create_optimizer_v2(
        groups, config.kind, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum, **options
    )
