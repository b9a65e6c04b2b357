"""Classifiers by name: timm's, and the few of our own that timm lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..core.errors import UserError, nearest

AIRBENCH = {"airbench": (64, 256, 256), "airbench_small": (64, 128, 256), "airbench_tiny": (32, 64, 128)}
"""Name → widths of an AirBench."""
CIFAR = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}
"""Name → depth of a CifarResNet."""
PLAIN = ("mlp", "cnn", "lstm")
OWN = (*AIRBENCH, *CIFAR, *PLAIN)


def classifier(
    name: str,
    classes: int,
    *,
    image_size: int,
    pretrained: bool = False,
    drop_rate: float = 0.0,
    drop_path: float = 0.0,
    small_input: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> nn.Module:
    """N×3×H×W float → N×classes logits.

    `small_input`: for images of at most 64 pixels, the stem keeps the resolution (3×3 stride 1, no max pool) where
    the model has torchvision's ResNet stem. `settings`: those of a plain net (widths, kernel, ...) by their names.
    Raises UserError for an unknown name, with the nearest known one, for settings that the model cannot have, and where
    pretrained weights cannot be had.
    """
    if name in OWN:
        if pretrained:
            raise UserError(f"task.model.pretrained: there are no weights of '{name}' to fetch; set it to false")
        try:
            return _own(name, classes, image_size, drop_rate, settings or {})
        except ValueError as error:
            raise UserError(f"task.model: {name}: {error}") from error
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise UserError(
            f"task.model.name: '{name}' is no timm model and none of our own{nearest(name, [*OWN, *timm.list_models()])}"
        )
    if pretrained and name not in timm.list_models(pretrained=True) and name not in timm.list_pretrained():
        raise UserError(f"task.model.pretrained: timm has no pretrained weights for '{name}'; set it to false")
    cfg = timm.models.get_pretrained_cfg(name)
    size: dict[str, Any] = {"img_size": image_size} if cfg is not None and cfg.fixed_input_size else {}
    try:
        path = {"drop_path_rate": drop_path} if drop_path else {}
        model = timm.create_model(name, pretrained=pretrained, num_classes=classes, drop_rate=drop_rate, **size, **path)
    except TypeError as error:
        raise UserError(
            f"task.model: '{name}' does not take {', '.join(['drop_rate', *path])} ({error}); leave it at 0"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        if not pretrained:
            raise
        line = str(error).splitlines()[0]
        raise UserError(
            f"task.model.pretrained: the weights of '{name}' cannot be fetched here ({line}); set it to false"
        ) from error
    if small_input and hasattr(model, "conv1") and hasattr(model, "maxpool"):
        old = model.conv1
        if isinstance(old, nn.Conv2d):
            model.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, 1, 1, bias=old.bias is not None)
        model.maxpool = nn.Identity()
    return model


def _own(name: str, classes: int, size: int, drop_rate: float, settings: Mapping[str, Any]) -> nn.Module:
    if name in AIRBENCH:
        from .airbench import AirBench

        return AirBench(classes, AIRBENCH[name])
    if name in CIFAR:
        from .cifar_resnet import CifarResNet

        return CifarResNet(classes, CIFAR[name])
    from .plain import Cnn, Lstm, Mlp

    made: dict[str, Callable[..., nn.Module]] = {"mlp": Mlp, "cnn": Cnn, "lstm": Lstm}
    return made[name](classes, size, drop_rate=drop_rate, **settings)
