"""Style transfer: a photograph painted as another picture is. Three ways: optimised pixels, a net per style, any style."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field as Setting
from pydantic import model_validator

from ..core.artifact import Artifact
from ..core.batches import stack
from ..core.errors import UserError
from ..core.metrics.stylization import StyleMetrics
from ..core.preprocess import Preprocess
from ..core.sample import Arrays, Batch, Geometry, Prediction, Sample, Split
from ..core.task import Context, ExportSpec, Field, Phase, Signature, Stream, Task, TaskConfig, Unsupported
from ..data.transforms import Compose, Keep, Prepare, RandomFlip, RandomResizedCrop, Step
from .features import Features
from .likeness import Likeness
from .stylize_requests import Requests

if TYPE_CHECKING:
    import torch
    from torch import nn


class StylizeConfig(TaskConfig):
    kind: Literal["stylize"]
    answering: ClassVar[tuple[str, ...]] = ("longest_side", "overlap", "lpips")
    measuring: ClassVar[tuple[str, ...]] = ("alpha", "styles")
    method: Literal["adain", "feedforward", "optimise"] = "adain"
    """`optimise`: no training, minutes a picture (arXiv 1508.06576). `feedforward`: a net trained for one style (arXiv
    1603.08155). `adain`: a decoder trained once for all styles, which come with the request (arXiv 1703.06868)."""
    features: Features = Features()
    image_size: int = Setting(256, ge=32, le=2048)
    """Side of the training crops and of the tiles of an answer, pixels; a multiple of 8. Of `optimise`, the longest side."""
    style_size: int = Setting(256, ge=16, le=2048)
    """Side to which the middle of a style picture is brought: the smaller, the finer its strokes are in the answer."""
    content_weight: float = Setting(1.0, ge=0)
    style_weight: float = Setting(10.0, ge=0)
    """Losses are relative (0: the target itself), so that weights mean the same for any feature network."""
    smoothness: float = Setting(1.0, ge=0)
    """Weight of the squared differences of neighbouring pixels (total variation)."""
    alpha: float = Setting(1.0, ge=0, le=1)
    """Strength of an answer whose request does not say; 0 is the photograph itself, as far as the method can give it."""
    colour: Literal["style", "luminance", "lab"] = "style"
    """`luminance`: the photograph's own colours, the style's light and dark. `lab` (adain): the style picture first gets the
    photograph's mean and spread of colour."""
    styles: int = Setting(1, ge=1, le=4)
    """Of adain: most style pictures in a request, which are then mixed. Each costs a pass of the feature network."""
    width: int = Setting(32, ge=4, le=256)
    """Of feedforward: channels at full resolution."""
    optimizer: Literal["lbfgs", "adam"] = "lbfgs"
    """Of optimise."""
    steps: int = Setting(200, ge=1)
    """Of optimise, for each picture."""
    longest_side: int = Setting(2048, ge=32, le=16384)
    """Larger pictures are shrunk to this before they are cut into tiles; of `optimise`, `image_size` is."""
    overlap: int = Setting(64, ge=8)
    """Pixels that neighbouring tiles share, which hides their seams."""
    lpips: Likeness | None = None
    """Measure how alike a photograph and its result look, too, by weights that you have."""
    scale: tuple[float, float] = (0.25, 1.0)
    """Share of a photograph's area that a training crop takes."""
    role: str = "train"
    """The data set of photographs."""
    style_role: str = "style"
    """The data set of style pictures; one picture, but for adain."""

    @model_validator(mode="after")
    def _fits(self) -> StylizeConfig:
        if self.image_size % 8:
            raise ValueError(f"image_size {self.image_size} is no multiple of 8")
        if 2 * self.overlap > self.image_size:
            raise ValueError(f"overlap {self.overlap} is more than half of image_size {self.image_size}")
        if self.method != "adain" and (self.colour == "lab" or self.styles > 1):
            raise ValueError(
                f"colour lab and styles are of adain, whose style comes with the request, not of {self.method}"
            )
        return self

    def artifacts(self) -> Mapping[str, str]:
        return self.features.artifacts()

    def unexported(self) -> str:
        if self.method == "optimise":
            return "an optimisation over each picture's pixels is no fixed graph; set compress to null"
        return ""


class Stylize(Task):
    Config = StylizeConfig
    about: ClassVar[str] = "photographs in the style of a painting: optimised, a net per style, or any style (AdaIN)"
    config: StylizeConfig
    _net: Any = None
    """The model built last, in this process: the metrics look through its feature network."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_net"}

    def check(self) -> None:
        config, styles = self.config, self.datasets.get(self.config.style_role)
        if styles is None:
            raise UserError(
                f"task.style_role: the recipe has no data.{config.style_role}; it has {', '.join(self.datasets)}"
            )
        if config.method != "adain" and styles.rows.get("train", 0) != 1:
            raise UserError(
                f"{styles.uri}: {styles.rows.get('train', 0)} pictures; {config.method} learns the style of one: name that"
                f" file as data.{config.style_role}.source, with splits {{}}"
            )
        if config.lpips is not None:
            config.lpips.check()

    def build(self, parents: Mapping[str, Artifact]) -> nn.Module:
        from ..models.stylizers import AdaIn, FeedForward, Optimised

        config = self.config
        features, luminance = config.features.network(parents, config.image_size), config.colour == "luminance"
        content, style = config.features.content, config.features.style
        if config.method == "feedforward":
            self._net = FeedForward(features, luminance, config.width)
        elif config.method == "adain":
            self._net = AdaIn(features, luminance, content[-1], config.style_size)
        else:
            self._net = Optimised(
                features, luminance, config.style_size, content, style, self._weights, config.optimizer, config.steps
            )
        return self._net

    @property
    def _weights(self) -> tuple[float, float, float]:
        return self.config.content_weight, self.config.style_weight, self.config.smoothness

    def initialise(self, model: nn.Module, batch: Batch) -> None:
        """The first style picture stays in the model: optimise's style, and adain's where a request brings none."""
        kept: Any = getattr(model, "style", None)
        if kept is not None:
            kept.copy_(batch["style.image"][:1])

    def streams(self, split: Split) -> Mapping[str, Stream]:
        config, keep, image = self.config, Keep("image"), ("image",)
        train, size = split == "train", self.config.style_size
        steps: tuple[Step, ...] = (Prepare(self.preprocess),)
        styles: tuple[Step, ...] = (Prepare(Preprocess(size, "crop")),)
        if train and config.method != "optimise":
            steps = (RandomResizedCrop(config.image_size, config.scale), RandomFlip(0.5))
        if train and config.method == "adain":
            styles = (RandomResizedCrop(size, config.scale),)
        found = self.datasets.get(config.style_role)
        held = split if found and found.rows.get(split) else "train"  # styles are often too few to be split
        order = "shuffled" if train else "sequential"
        ratio = 0.0 if train and config.method != "adain" else 1.0  # the one picture, once a step
        return {
            "content": Stream(config.role, split, Compose(*steps, keep), image, order),
            "style": Stream(
                config.style_role,
                held,
                Compose(*styles, keep),
                image,
                order,
                ratio=ratio,
                beside=3 * (size**2 - config.image_size**2),
            ),
        }

    def phases(self, model: nn.Module) -> tuple[Phase, ...]:
        if self.config.method == "optimise":
            return ()
        if self.config.method == "feedforward":
            return (Phase("train", self._feedforward, ("net.",)),)
        return (Phase("train", self._adain, ("decoder.",)),)

    def _feedforward(
        self, model: Any, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        import torch

        from ..models.stylizers import perceptual_loss

        layers = (self.config.features.content, self.config.features.style)
        with torch.no_grad():
            content, style = model.features(batch["content.image"]), model.features(batch["style.image"][:1])
        result = model.net(batch["content.image"].float(), None).float()
        each, of_content, of_style = perceptual_loss(model.features, result, content, style, layers, self._weights)
        return _summed(batch, each, of_content, of_style)

    def _adain(
        self, model: Any, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """The result's features against AdaIN's target, and their moments against the style's, in every style layer."""
        import torch

        from ..models.perceptual import content_loss, moments_loss, roughness
        from ..models.stylizers import statistics

        config, layer = self.config, model.layer
        with torch.no_grad():
            style = model.features(batch["style.image"])
            target = model.target(model.features(batch["content.image"])[layer], *statistics(style[layer]))
        result = model.decode(target, batch["content.image"])
        found = model.features(result)
        of_content = content_loss(found, {layer: target}, (layer,))
        of_style = moments_loss(found, style, config.features.style)
        each = config.content_weight * of_content + config.style_weight * of_style
        return _summed(batch, each + config.smoothness * roughness(result), of_content, of_style)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        if "image" in batch:  # of requests: their rows are whole already
            return {name: batch[name] for name in self._requests.names}
        image, most = batch["content.image"], self.config.styles
        found = {"image": image, "shared": _floats(image, 0.0), "alpha": _floats(image, self.config.alpha)}
        if self.config.method == "adain":
            share = _floats(image, 1 / most)
            found |= {"style": batch["style.image"][:, None][:, [0] * most], "mix": share[:, None][:, [0] * most]}
        return found

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"result": model(**self.inputs(batch))}

    @property
    def preprocess(self) -> Preprocess:
        """Of the streams. A request's picture is not cropped: `prepare` cuts it into tiles."""
        return Preprocess(self.config.image_size, "crop")

    def prepare(self, request: Mapping[str, Any]) -> tuple[Sample, Geometry]:
        return self._requests.prepare(request)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return stack(samples, ragged=tuple(samples[0]) if "shared" in samples[0] else ())

    def parts(self, batch: Batch) -> Iterator[dict[str, Any]]:
        return self._requests.parts(batch)

    def decode(self, output: Arrays, geometry: Sequence[Geometry]) -> list[Prediction]:
        """The tiles as one picture, of the original's size where that is no larger than `longest_side`."""
        return [{"image": image} for image in self._requests.pictures(np.asarray(output["result"], np.uint8), geometry)]

    @property
    def _requests(self) -> Requests:
        config = self.config
        most = config.image_size if config.method == "optimise" else config.longest_side
        styles = config.styles if config.method == "adain" else 0
        return Requests(config.image_size, most, config.overlap, config.alpha, styles, config.style_size, config.colour)

    def metrics(self) -> StyleMetrics:
        return StyleMetrics(self._measure, self.config.content_weight, self.config.style_weight)

    def _measure(self, content: np.ndarray, style: np.ndarray, result: np.ndarray) -> dict[str, np.ndarray]:
        """Content and style loss of results, row by row, and the model's seconds for a row if it has just answered."""
        import torch

        from ..models.perceptual import content_loss, style_loss

        if self._net is None:
            raise UserError(
                "evaluate: content and style loss are measured through the feature network, which an exported model has not; "
                "evaluate the train artifact"
            )
        features, took = self._net.features, self._net.took
        self._net.took = None
        device = next(features.parameters()).device
        losses: list[tuple[float, float]] = []
        with torch.no_grad():
            for row in range(len(result)):
                seen = [
                    features(torch.from_numpy(np.ascontiguousarray(each[row : row + 1])).to(device))
                    for each in (content, style, result)
                ]
                of_content = content_loss(seen[2], seen[0], self.config.features.content)
                losses.append((float(of_content), float(style_loss(seen[2], seen[1], self.config.features.style))))
        table = np.array(losses).reshape(-1, 2)
        found = {"content_loss": table[:, 0], "style_loss": table[:, 1]}
        if self.config.lpips is not None:
            found["lpips"] = self.config.lpips(content, result)
        return found | ({"seconds": np.full(len(result), took / len(result))} if took is not None else {})

    def signature(self) -> Signature:
        inputs = [Field("image", "image"), Field("alpha", "number", False, "strength, 0 to 1")]
        if self.config.method == "adain":
            for style, weight in self._requests.styles:
                inputs.append(Field(style, "image", False, "a style picture; without any, the one kept in the model"))
                inputs.append(Field(weight, "number", False, "its share beside the others, 1 where not given"))
        return Signature(tuple(inputs), (Field("image", "image"),))

    def export(self) -> ExportSpec | Unsupported:
        config = self.config
        if reason := config.unexported():
            return Unsupported(reason)
        size, floats = config.image_size, np.zeros(2, np.float32)
        inputs = {"image": np.zeros((2, size, size, 3), np.uint8), "shared": floats, "alpha": floats + 1}
        if config.method == "adain":
            inputs["style"] = np.zeros((2, config.styles, config.style_size, config.style_size, 3), np.uint8)
            inputs["mix"] = np.full((2, config.styles), 1 / config.styles, np.float32)
        return ExportSpec(inputs, ("result",), quantize=False)

    def render(self, sample: Sample, prediction: Prediction) -> np.ndarray:
        return prediction["image"]


def _summed(
    batch: Batch, each: torch.Tensor, of_content: torch.Tensor, of_style: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    valid = batch["valid"].float()
    logs = {"content_loss": (of_content.detach() * valid).sum(), "style_loss": (of_style.detach() * valid).sum()}
    return (each * valid).sum(), valid.sum(), logs


def _floats(like: Any, value: float) -> Any:
    """As many float32 as `like` has rows, an array or a tensor as it is."""
    if isinstance(like, np.ndarray):
        return np.full(len(like), value, np.float32)
    import torch

    return like.new_full((len(like),), value, dtype=torch.float32)
