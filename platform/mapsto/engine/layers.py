"""A model's parameters by layer: what a layer-wise learning rate and weight decay need to know."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from ..core import heavy


def layer_scales(model: nn.Module, names: Collection[str], decay: float) -> dict[str, float]:
    """Parameter name → `decay` to the power of its layer's distance from the top (Bao et al., BEiT, arXiv 2106.08254).

    A timm model's `group_matcher` says what a layer is, as in timm.optim.param_groups_layer_decay. Elsewhere each
    weight matrix or kernel among `names` begins one, and the biases and norm layers after it belong to it.
    """
    for prefix, module in model.named_modules():
        matcher = getattr(module, "group_matcher", None)
        if matcher is not None:
            group_parameters = heavy.timm().models.group_parameters
            layers: dict[str, int] = group_parameters(module, matcher(coarse=False), reverse=True)
            top = max(layers.values())
            inner = {_under(prefix, name): layer for name, layer in layers.items()}
            return {name: decay ** (top - inner.get(name, top)) for name in names}
    depth, depths = -1, dict[str, int]()
    for name, parameter in model.named_parameters():
        if name in names:
            depth += parameter.ndim > 1
            depths[name] = max(depth, 0)
    top = max(depths.values(), default=0)
    return {name: decay ** (top - layer) for name, layer in depths.items()}


def undecayed(model: nn.Module) -> set[str]:
    """Names of the parameters that a timm model's `no_weight_decay` lists: position embeddings, class tokens."""
    found = set[str]()
    for prefix, module in model.named_modules():
        listed = getattr(module, "no_weight_decay", None)
        if callable(listed):
            found |= {_under(prefix, name) for name in listed()}
    return found


def _under(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
