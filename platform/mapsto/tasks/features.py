"""The recipe's `task.features`: the network through which pictures are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from ..config.training import FILES
from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.registry import weights_of
from ..core.section import Section
from .classify_model import Model

if TYPE_CHECKING:
    from ..models.perceptual import Perceptual

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PARENT = "features.weights"
"""The path, below `task`, of weights that are an artifact's."""


class Features(Section):
    """A classifier, of which the layers named are looked at. Its weights go into the trained model."""

    model: Model = Model(name="vgg19")
    """As a classifier's task.model. `mean` and `std` are needed for a file of weights that wants others than ImageNet's."""
    weights: str | None = None
    """URI of a mapsto train artifact (of a classifier with this model), of a safetensors file, or of a PyTorch state dict.
    Without it, and without model.pretrained, the network is untrained: textures come through, little else."""
    content: tuple[str, ...] = Field(("features.20",), min_length=1)
    """Layers in which the content is compared, by their names in the network; the default is VGG-19's relu4_1. AdaIN
    decodes the last of them."""
    style: tuple[str, ...] = Field(("features.1", "features.6", "features.11", "features.20"), min_length=1)
    """Layers in which the style is compared; the default is VGG-19's relu1_1, relu2_1, relu3_1 and relu4_1."""

    @model_validator(mode="after")
    def _one_source(self) -> Features:
        if self.weights is not None and self.model.pretrained:
            raise ValueError("weights and model.pretrained are two sources of weights; keep one")
        return self

    def artifacts(self) -> Mapping[str, str]:
        is_file = self.weights is None or self.weights.lower().endswith(FILES)
        return {} if is_file or self.weights is None else {PARENT: self.weights}

    def network(self, parents: Mapping[str, Artifact], image_size: int) -> Perceptual:
        """The network; with its weights at training, when there are parents: later they come with the trained model.

        Raises UserError for layers that it has not, and weights that do not fill it.
        """
        from ..models.backbones import classifier
        from ..models.perceptual import Perceptual

        model = self.model
        net = classifier(
            model.name,
            2,
            image_size=image_size,
            pretrained=model.pretrained and bool(parents),
            small_input=bool(model.small_input),
            settings=model.settings(),
        )
        own: Any = getattr(net, "default_cfg", None) if model.pretrained else None
        mean, std = (own["mean"], own["std"]) if own else (model.mean or IMAGENET[0], model.std or IMAGENET[1])
        made = Perceptual(net, (*self.content, *self.style), mean, std)
        if self.weights is not None and parents:
            self._load(made, parents)
        return made

    def _load(self, made: Perceptual, parents: Mapping[str, Artifact]) -> None:
        from ..models.transfer import load_weights, transfer

        assert self.weights is not None
        uri, storage = self.weights, next(iter(parents.values())).storage
        artifact = parents.get(f"task.{PARENT}")
        if artifact is not None:
            uri, storage = weights_of(artifact, "task.features.weights", uri), artifact.storage
        report = transfer(made, load_weights(uri, storage), uri, setting="task.features.weights")
        if report.missing or report.mismatched:
            told = "; ".join(line.removeprefix("init: ") for line in report.lines()[1:] if "unexpected" not in line)
            raise UserError(
                f"task.features.weights: {uri} does not fill task.features.model '{self.model.name}': {told}"
            )
