"""Feature maps of a timm backbone, and the feature pyramid over them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from ..core import heavy
from ..core.errors import UserError, nearest
from .backbones import weights_exist
from .fetched import mark


class Maps(nn.Module):
    """forward(N×3×H×W float) → the backbone's feature maps at the given strides, from fine to coarse."""

    def __init__(self, name: str, strides: Sequence[int], pretrained: bool = False) -> None:
        """Raises UserError for a model that timm does not have or that has no map at a stride, and for pretrained
        weights that cannot be had."""
        super().__init__()
        timm = heavy.timm()
        if not timm.is_model(name.split(".")[0]):
            raise UserError(f"task.model.backbone: '{name}' is no timm model{nearest(name, timm.list_models())}")
        weights_exist(name, pretrained)
        self.body = _features(name, pretrained)
        have = list(self.body.feature_info.reduction())
        missing = [stride for stride in strides if stride not in have]
        if missing:
            raise UserError(f"task.model.backbone: '{name}' has no map at stride {missing[0]}; it has {have}")
        self.at = [have.index(stride) for stride in strides]
        if self.at[-1] + 1 < len(have):  # no layer stays untrained
            self.body = _features(name, pretrained, tuple(range(self.at[-1] + 1)))
        self.channels = [self.body.feature_info.channels()[k] for k in self.at]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = self.body(x)
        return [maps[k] for k in self.at]


def _features(name: str, pretrained: bool, at: tuple[int, ...] | None = None) -> Any:
    timm = heavy.timm()
    some: dict[str, Any] = {} if at is None else {"out_indices": at}
    try:
        net = timm.create_model(name, features_only=True, pretrained=pretrained, **some)
    except (OSError, RuntimeError, ValueError, AttributeError, AssertionError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        if pretrained:
            raise UserError(
                f"task.model.pretrained: the weights of '{name}' cannot be fetched here ({line}); set it to false"
            ) from error
        raise UserError(
            f"task.model.backbone: '{name}' gives no feature maps ({line}); take a ResNet, a RegNet, ..."
        ) from error
    mark(net, pretrained)
    return net


class Pyramid(nn.Module):
    """forward(N×3×H×W float) → name → map, all of `out_channels`: a feature pyramid (Lin et al., arXiv 1612.03144)
    with the levels that `extra` adds."""

    def __init__(self, maps: Maps, channels: int, extra: ExtraFPNBlock) -> None:
        super().__init__()
        self.maps, self.out_channels = maps, channels
        self.fpn = FeaturePyramidNetwork(maps.channels, channels, extra)

    def forward(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        return self.fpn(OrderedDict((str(k), value) for k, value in enumerate(self.maps(x))))
