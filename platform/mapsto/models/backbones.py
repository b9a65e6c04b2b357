"""Classifiers by name: timm's, and the few of our own that timm lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ..core import heavy
from ..core.errors import UserError, nearest
from .fetched import mark

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
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """N×3×H×W float → N×classes logits.

    `small_input`: for images of at most 64 pixels, the stem keeps the resolution (3×3 stride 1, no max pool) where
    the model has torchvision's ResNet stem. `settings`: those of a plain net (widths, kernel, ...) by their names; `options`: further
    arguments of a timm model.
    Raises UserError for an unknown name, with the nearest known one, for settings that the model cannot have, and where
    pretrained weights cannot be had.
    """
    if name in OWN:
        if pretrained:
            raise UserError(f"task.model.pretrained: there are no weights of '{name}' to fetch; set it to false")
        if options:
            raise UserError(f"task.model.options: they are a timm model's; '{name}' is mapsto's own")
        try:
            return _own(name, classes, image_size, drop_rate, settings or {})
        except ValueError as error:
            raise UserError(f"task.model: {name}: {error}") from error
    timm = heavy.timm()
    if not timm.is_model(name.split(".")[0]):
        raise UserError(
            f"task.model.name: '{name}' is no timm model and none of our own{nearest(name, [*OWN, *timm.list_models()])}"
        )
    weights_exist(name, pretrained)
    cfg = timm.models.get_pretrained_cfg(name)
    size: dict[str, Any] = {"img_size": image_size} if cfg is not None and cfg.fixed_input_size else {}
    if options:
        _buildable(name, classes, image_size, {**size, **options})
    try:
        more = ({"drop_path_rate": drop_path} if drop_path else {}) | dict(options or {})
        model = timm.create_model(
            name, **{"pretrained": pretrained, "num_classes": classes, "drop_rate": drop_rate, **size, **more}
        )
    except TypeError as error:
        raise UserError(
            f"task.model: '{name}' does not take {', '.join(['drop_rate', *more])} ({error}); leave out what it has not"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        if not pretrained:
            raise
        raise _not_fetched(name, error) from error
    mark(model, pretrained)
    if small_input and hasattr(model, "conv1") and hasattr(model, "maxpool"):
        old = model.conv1
        if isinstance(old, nn.Conv2d):
            model.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, 1, 1, bias=old.bias is not None)
        model.maxpool = nn.Identity()
    return model


def _buildable(name: str, classes: int, image_size: int, options: Mapping[str, Any]) -> None:
    """Raises UserError where a timm model cannot be built with these arguments, or gives something else than logits then."""
    import torch

    try:
        model = heavy.timm().create_model(name, num_classes=classes, **options).eval()
        with torch.inference_mode():
            shape = tuple(model(torch.zeros(1, 3, image_size, image_size)).shape)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        raise UserError(f"task.model.options: '{name}' does not work with {dict(options)} ({what})") from error
    if shape != (1, classes):
        raise UserError(f"task.model.options: '{name}' gives no logits with {dict(options)}, but {shape}")


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


def features(
    name: str, *, pretrained: bool = False, output_stride: int = 32, reductions: Sequence[int]
) -> tuple[nn.Module, tuple[int, ...]]:
    """A timm backbone of feature maps: N×3×H×W float → a list of maps at the given `reductions` of the resolution (the
    deepest at each), and their channels.

    `output_stride`: where the deepest map ends; beyond it strides become dilations (8, 16; 32: as it is). Raises
    UserError for an unknown name, a model without feature maps, and one that cannot be dilated.
    """
    timm = heavy.timm()
    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"task.model.backbone: '{name}' is no timm model{nearest(name, timm.list_models())}")
    weights_exist(name, pretrained)
    dilated: dict[str, Any] = {"output_stride": output_stride} if output_stride < 32 else {}
    try:
        plan = _levels(timm.create_model(name, features_only=True, **dilated)).reduction()
        places = tuple(max(k for k, found in enumerate(plan) if found == wanted) for wanted in reductions)
        net = timm.create_model(name, features_only=True, pretrained=pretrained, out_indices=places, **dilated)
    except OSError as error:
        raise _not_fetched(name, error) from error
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"task.model.backbone: '{name}' gives no feature maps at strides {list(reductions)}"
            f" with task.model.output_stride {output_stride}; try 32, or a convolutional model such as resnet18"
        ) from error
    mark(net, pretrained)
    return net, tuple(_levels(net).channels())


def _levels(net: Any) -> Any:
    """timm's account of a backbone's feature maps."""
    return net.feature_info


def weights_exist(name: str, pretrained: bool) -> None:
    """Raises UserError where pretrained weights are asked for, of a model (`resnet50`) or of a tag (`resnet50.a1_in1k`), that timm
    does not have."""
    timm = heavy.timm()
    if pretrained and not timm.models.is_model_pretrained(name):
        tags = timm.list_pretrained(f"{name.split('.')[0]}.*")
        has = f"has {', '.join(tags)}" if tags else "has none of this model"
        raise UserError(
            f"task.model.pretrained: timm has no pretrained weights for '{name}'; it {has}; or set it to false"
        )


def _not_fetched(name: str, error: Exception) -> UserError:
    line = str(error).splitlines()[0]
    return UserError(f"task.model.pretrained: the weights of '{name}' cannot be fetched here ({line}); set it to false")
