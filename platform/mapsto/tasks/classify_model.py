"""The recipe's `task.model` of classification, and its network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ..core.sample import DatasetInfo
from ..core.section import Section

if TYPE_CHECKING:
    from torch import nn

SETTINGS = {
    "mlp": ("widths", "activation"),
    "cnn": ("widths", "kernel", "stride", "activation", "pooling"),
    "lstm": ("widths", "patch"),
}
"""What the plain nets let one set, besides drop_rate."""
TAKEN = (
    "num_classes",
    "in_chans",
    "img_size",
    "drop_rate",
    "drop_path_rate",
    "checkpoint_path",
    "cache_dir",
    "features_only",
    "out_indices",
)
"""Arguments of timm's that the recipe sets elsewhere, and those that would load weights past `train.init`."""
Triple = tuple[float, float, float]


class Model(Section):
    name: str = "resnet18"
    """A timm model (resnet50, vgg16_bn, inception_v3, vit_small_patch16_224, ...) or one of our own: `airbench`, a small fast
    net for images of 32 to 64 pixels; `resnet20`, 32, 44, 56 and 110, the ResNets for 32 pixels; the plain `mlp`, `cnn` and
    `lstm`."""
    pretrained: bool = False
    drop_rate: float = Field(0.0, ge=0, lt=1)
    """Dropout before the last layer (after each hidden layer of an mlp)."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth (Huang et al., Deep Networks with Stochastic Depth, arXiv 1603.09382), of timm models that have it."""
    options: dict[str, int | float | bool | str] = Field(default_factory=dict)
    """Further arguments of a timm model, as `--model-kwargs` of its scripts: `{mlp_ratio: 0.125}` for a vgg."""
    small_input: bool | None = None
    """Keep the stem's resolution; default: for images of at most 64 pixels."""
    mirror: bool = False
    """Outside training, average the logits for the image and for its mirror image: often half a point of accuracy for twice
    the time of an answer. Not for classes that a mirror changes, such as letters."""
    mean: Triple | None = None
    """Per channel, of pixels in 0..1, which are normalised by it; default: the training set's, or what pretrained weights
    were trained with. Weights from elsewhere (`train.init`) want theirs."""
    std: Triple | None = None
    """As `mean`."""
    widths: tuple[int, ...] | None = Field(None, min_length=1, max_length=16)
    """Units of an mlp's hidden layers or of an lstm's layers, channels of a cnn's; default: the model's own."""
    kernel: int = Field(3, ge=1, le=31)
    """Side of a cnn's filters, pixels."""
    stride: int = Field(1, ge=1, le=16)
    """Step of a cnn's filters, pixels."""
    activation: Literal["relu", "sigmoid", "tanh", "gelu"] = "relu"
    """Of a cnn or an mlp."""
    pooling: Literal["max", "average", "none"] = "max"
    """Of a cnn, 2×2 after each layer."""
    patch: int | None = Field(None, ge=1)
    """An lstm reads patches of this side in reading order; default: rows of pixels."""

    @model_validator(mode="after")
    def _fits(self) -> Model:
        mine = SETTINGS.get(self.name, ())
        for name in sorted({setting for settings in SETTINGS.values() for setting in settings} - set(mine)):
            if getattr(self, name) != type(self).model_fields[name].default:
                owners = ", ".join(model for model, settings in SETTINGS.items() if name in settings)
                raise ValueError(f"{name} is a setting of {owners}, not of '{self.name}'")
        if wrong := sorted(name for name in self.options if name in TAKEN or name.startswith("pretrained")):
            raise ValueError(f"options: '{wrong[0]}' follows from the recipe's other settings")
        if self.widths is not None and min(self.widths) < 1:
            raise ValueError("widths must be at least 1")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be greater than 0")
        return self

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `options` where there are none: trainings keep the addresses that they had before that setting."""
        found = handler(self)
        return {name: value for name, value in found.items() if name != "options" or value}

    def settings(self) -> dict[str, Any]:
        """Those of a plain net, without the ones left at the net's own."""
        values = {name: getattr(self, name) for name in SETTINGS.get(self.name, ())}
        return {name: value for name, value in values.items() if value is not None}


def network(model: Model, info: DatasetInfo, outputs: int, image_size: int, *, fetch: bool = True) -> nn.Module:
    """uint8 N×H×W×3 images → N×outputs logits. `fetch`: pretrained weights are needed, not only
    their place."""
    from ..models.backbones import classifier
    from ..models.normalize import Normalized, normalized
    from ..models.views import Views

    net = classifier(
        model.name,
        outputs,
        pretrained=model.pretrained and fetch,
        drop_rate=model.drop_rate,
        drop_path=model.drop_path,
        small_input=image_size <= 64 if model.small_input is None else model.small_input,
        image_size=image_size,
        settings=model.settings(),
        options=model.options,
    )
    pretrained: Any = getattr(net, "default_cfg", None) if model.pretrained else None
    if model.mirror:
        net = Views(net)
    if model.mean is not None and model.std is not None:
        return Normalized(net, model.mean, model.std)
    return normalized(net, info, pretrained)
