"""Settings of a segmentation's network and of its loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field as Setting
from pydantic import field_validator, model_validator

from ..core.section import Section
from .looks import Looks

SETTINGS: dict[str, tuple[str, ...]] = {
    "unet": ("widths",),
    "segnet": ("widths",),
    "deeplabv3plus": ("backbone", "pretrained", "output_stride", "decoder"),
    "segformer": ("widths", "decoder"),
}
"""Network → the settings that it has of its own."""


class CrfModel(Section):
    """Mean-field iterations over the network, trained with it (CRF-RNN, arXiv 1502.03240) within a window
    (Convolutional CRFs, arXiv 1805.04777)."""

    iterations: int = Setting(5, ge=1, le=20)
    window: int = Setting(7, ge=3, le=31)
    """Side of the square around a pixel whose others speak to it; odd, pixels."""
    alpha: float = Setting(80.0, gt=0)
    """Reach of the appearance kernel, pixels."""
    beta: float = Setting(13.0, gt=0)
    """How different colours may be in it, of 0..255."""
    gamma: float = Setting(3.0, gt=0)
    """Reach of the smoothness kernel, pixels."""

    @field_validator("window")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"{value} is even; a window has a middle")
        return value


class SegmentModel(Looks):
    name: Literal["unet", "segnet", "deeplabv3plus", "segformer"] = "unet"
    widths: tuple[Annotated[int, Setting(ge=1)], ...] | None = Setting(None, min_length=2, max_length=6)
    """Channels per level, from the finest down; default: 16, 32, 64, 128 (unet), 32, 64, 128, 128 (segnet), MiT-B0's 32,
    64, 160, 256 (segformer: four, multiples of 32)."""
    backbone: str | None = None
    """deeplabv3plus: a timm model with feature maps; default: resnet18."""
    pretrained: bool = False
    """deeplabv3plus: the backbone's weights from timm."""
    output_stride: Literal[8, 16, 32] | None = None
    """deeplabv3plus: of the deepest features; default: 16."""
    decoder: int | None = Setting(None, ge=8, le=1024)
    """deeplabv3plus, segformer: channels of the decoder; default: 128."""
    crf: CrfModel | None = None

    @model_validator(mode="after")
    def _own(self) -> SegmentModel:
        own = SETTINGS[self.name]
        for field in {name for names in SETTINGS.values() for name in names} - set(own):
            if getattr(self, field):
                raise ValueError(f"{field} is no setting of {self.name}, which has {', '.join(own)}")
        if self.name == "segformer" and self.widths and (len(self.widths) != 4 or any(w % 32 for w in self.widths)):
            raise ValueError(f"widths: segformer has four stages, each a multiple of 32; not {list(self.widths)}")
        return self

    @property
    def step(self) -> int:
        """What the side of the input must be a multiple of."""
        levels = len(self.widths or (0, 0, 0, 0))
        return {"unet": 2 ** (levels - 1), "segnet": 2**levels, "segformer": 32, "deeplabv3plus": 1}[self.name]


class SegmentLoss(Section):
    """How much of each loss; their sum is trained on."""

    cross_entropy: float = Setting(1.0, ge=0)
    focal: float = Setting(0.0, ge=0)
    """Focal loss (arXiv 1708.02002): cross-entropy that the pixels still wrong dominate."""
    gamma: float = Setting(2.0, ge=0)
    """Of focal: how much a pixel that is right already loses weight."""
    dice: float = Setting(0.0, ge=0)
    """1 - soft Dice, the mean over the classes in an image."""
    class_weights: Literal["none", "balanced"] = "none"
    """Of cross-entropy and focal. `balanced`: the inverse of a class's share of the training pixels."""

    @model_validator(mode="after")
    def _some(self) -> SegmentLoss:
        if not (self.cross_entropy or self.focal or self.dice):
            raise ValueError("cross_entropy, focal and dice are all 0: nothing to train on")
        return self
