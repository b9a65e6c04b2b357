"""An image's vector from a network that was made for something else: what its last layer looks at."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..core.errors import UserError
from .backbones import classifier
from .normalize import Normalized
from .scaled import Scaled
from .views import Views


def pooled(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """N×H×W×3 uint8 → N×D float: the `embedding` of a model that has one; the pooled features of a timm model
    (`forward_head` with `pre_logits`); what enters the last linear layer, where that gives the logits; else the logits
    themselves, over an image's pixels their mean. Raises UserError for a model that answers with none of these."""
    net: Any = model.net if isinstance(model, Scaled) else model
    x = image
    if isinstance(net, Normalized):
        x, net = net.normalize(image), net.net
    if isinstance(net, Views):
        net = net.net
    if hasattr(net, "forward_features") and hasattr(net, "forward_head"):
        return net.forward_head(net.forward_features(x), pre_logits=True).flatten(1)
    linear = next((m for m in reversed(list(net.modules())) if isinstance(m, nn.Linear)), None)
    seen: list[torch.Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _, given: seen.append(given[0])) if linear else None
    try:
        out = net(x)
    finally:
        if handle:
            handle.remove()
    if isinstance(out, dict):
        if "embedding" in out:
            return out["embedding"]
        out = out.get("logits")
    if not isinstance(out, torch.Tensor) or out.ndim not in (2, 4):  # logits of every anchor are no image's
        raise UserError(
            "index.features: this task's model gives no vector for an image; name a timm model in `index.backbone`, "
            "or use colour, hog or lbp"
        )
    if linear and seen and out.ndim == 2 and seen[-1].ndim == 2 and linear.out_features == out.shape[1]:
        return seen[-1]
    return out.mean((2, 3)) if out.ndim == 4 else out


def backbone(name: str, pretrained: bool, image_size: int) -> nn.Module:
    """uint8 N×H×W×3 → a timm model to be `pooled`, in evaluation; untrained weights are the same in every process.

    Raises UserError for an unknown name and where pretrained weights cannot be had.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            net = classifier(name, 2, image_size=image_size, pretrained=pretrained)
        except UserError as error:
            told = str(error).replace("task.model.name", "index.backbone")
            raise UserError(told.replace("task.model.pretrained", "index.pretrained")) from error
    known: Any = getattr(net, "default_cfg", None) or {}
    mean, std = known.get("mean", (0.485, 0.456, 0.406)), known.get("std", (0.229, 0.224, 0.225))
    return Normalized(net, mean, std).eval()
