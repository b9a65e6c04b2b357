"""Segmentation networks by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from . import deeplab, segformer, segnet, unet


def segmenter(
    name: str,
    classes: int,
    *,
    widths: Sequence[int] | None = None,
    backbone: str | None = None,
    pretrained: bool = False,
    output_stride: int | None = None,
    decoder: int | None = None,
) -> nn.Module:
    """N×3×H×W float → N×classes×H×W logits. None: the network's own default; see each one's `build`."""
    if name == "unet":
        return unet.build(classes, widths)
    if name == "segnet":
        return segnet.build(classes, widths)
    if name == "segformer":
        return segformer.build(classes, widths, width=decoder or 128)
    assert name == "deeplabv3plus", name
    return deeplab.build(
        classes,
        backbone or "resnet18",
        pretrained=pretrained,
        output_stride=output_stride or 16,
        width=decoder or 128,
    )
