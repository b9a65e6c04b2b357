"""Object detection: boxes with a class and a score, by YOLO, RetinaNet, SSD or Faster R-CNN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from pydantic import Field as Setting

from ..core.artifact import Artifact
from ..core.boxes import areas, nms
from ..core.errors import UserError
from ..core.metrics.detection import DetectionMetrics, Found
from ..core.picture import boxed
from ..core.preprocess import Preprocess
from ..core.sample import Arrays, Batch, Geometry, Prediction, Sample, Split
from ..core.task import (
    Context,
    ExportSpec,
    Field,
    Phase,
    Signature,
    Stream,
    Task,
    TaskConfig,
    Unsupported,
    pieces,
    rows,
    stack,
)
from ..data.transforms import ColorJitter, Compose, Keep, Prepare, RandomFlip, RandomResizedCrop, Step
from ..models import anchors

if TYPE_CHECKING:
    import torch
    from torch import nn

MEASURED = 0.01
"""Lowest score of a detection that the metrics count."""
CANDIDATES = 1000
"""Best-scored boxes of an image, of all classes, that suppression sees; more where max_boxes wants more."""
RAGGED = ("boxes", "box_labels", "crowd", "difficult")
OWN = {
    "yolo": ("widths", "blocks"),
    "retinanet": ("backbone", "pretrained", "channels", "anchor"),
    "ssd": ("backbone", "pretrained", "channels", "anchor"),
    "fasterrcnn": ("backbone", "pretrained", "channels", "anchor", "proposals", "hidden"),
}
"""Which settings a model has."""


class DetectModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Literal["yolo", "retinanet", "ssd", "fasterrcnn"] = "yolo"
    widths: tuple[int, ...] = Setting((16, 32, 64, 128, 256), min_length=5, max_length=5)
    """Of yolo: channels at strides 2, 4, 8, 16, 32; even."""
    blocks: int = Setting(1, ge=1, le=9)
    """Of yolo: residual blocks of each stage."""
    backbone: str = "resnet18"
    """Of the others: a timm model with feature maps."""
    pretrained: bool = False
    """The backbone's weights from timm."""
    channels: int = Setting(128, ge=8, multiple_of=8)
    """Of the feature pyramid (ssd: of its further levels)."""
    anchor: float = Setting(32.0, ge=4)
    """Side of the smallest square anchor, pixels of the input; each level's are twice as large as the one's before
    (ssd: the levels go up to 0.9 of the image)."""
    proposals: int = Setting(300, ge=10)
    """Of fasterrcnn: regions that are looked at in each image."""
    hidden: int = Setting(256, ge=8)
    """Of fasterrcnn: width of the layers that judge a region."""

    @field_validator("widths")
    @classmethod
    def _even(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if any(width < 2 or width % 2 for width in widths):
            raise ValueError("channels must be even")
        return widths

    @model_validator(mode="after")
    def _known(self) -> DetectModel:
        foreign = sorted(self.model_fields_set - {"name", *OWN[self.name]})
        if foreign and self.model_dump(include=set(foreign)) != DetectModel().model_dump(include=set(foreign)):
            raise ValueError(f"{self.name} has no {foreign[0]}; it has {', '.join(OWN[self.name])}")
        return self


class DetectAugment(BaseModel):
    """What a training image goes through; boxes move with the pixels, and are cut at its edges."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    crop: Literal["random_resized", "none"] = "random_resized"
    """`none`: the whole image, as evaluation sees it."""
    scale: tuple[float, float] = (0.4, 1.0)
    """Of random_resized: share of the image's area."""
    ratio: tuple[float, float] = (0.75, 1.3333)
    flip: float = Setting(0.5, ge=0, le=1)
    brightness: float = Setting(0.2, ge=0, le=1)
    contrast: float = Setting(0.2, ge=0, le=1)
    saturation: float = Setting(0.2, ge=0, le=1)


class DetectConfig(TaskConfig):
    kind: Literal["detect"]
    model: DetectModel = DetectModel()
    image_size: int = Setting(320, ge=64, le=2048, multiple_of=32)
    """Side of the square input, pixels."""
    resize: Literal["letterbox", "stretch"] = "letterbox"
    """`letterbox` keeps the image's proportions and fills up with grey."""
    augment: DetectAugment = DetectAugment()
    min_score: float = Setting(0.3, ge=0, lt=1)
    """Lowest score of an answer. The metrics count detections from 0.01, as COCO's curves need."""
    nms_iou: float = Setting(0.6, gt=0, le=1)
    """Of two boxes of a class that overlap by more, the better one stays."""
    max_boxes: int = Setting(100, ge=1, le=10_000)
    """Most answers for an image; COCO measures 100."""
    role: str = "train"

    @model_validator(mode="after")
    def _anchors_fit(self) -> DetectConfig:
        if self.model.name == "ssd" and self.model.anchor >= 0.9 * self.image_size:
            raise ValueError(
                f"model.anchor: {self.model.anchor:g} leaves no larger boxes in an image of {self.image_size}"
            )
        return self


@dataclass(frozen=True)
class Objects:
    """A row's boxes as arrays, each with its label and flags (`crowd`, `difficult`; False where a data set has none).

    A row without boxes has none: an image of nothing but background. With `train`, crowd regions are left out, which
    are no objects.
    """

    train: bool

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        boxes = np.asarray(_given(sample, "boxes", []), np.float32).reshape(-1, 4)
        labels = np.asarray(_given(sample, "box_labels", []), np.int64)
        if len(labels) != len(boxes):
            raise UserError(f"{len(boxes)} boxes have {len(labels)} box_labels; each needs one")
        none = [False] * len(boxes)
        flags = {name: np.asarray(_given(sample, name, none), bool) for name in ("crowd", "difficult")}
        if not self.train:
            return {**sample, "boxes": boxes, "box_labels": labels, **flags}
        single = ~flags["crowd"]
        return {"image": sample["image"], "boxes": boxes[single], "box_labels": labels[single]}


def _given(sample: Sample, name: str, default: list[Any]) -> Any:
    value = sample.get(name)
    return default if value is None else value


@dataclass(frozen=True)
class Placed:
    """The evaluation's image, and where it lies in the original: `matrix` (3×3) and `size` (height, width). The boxes
    stay in the original's pixels: there they are compared."""

    preprocess: Preprocess

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image, geometry = self.preprocess(sample["image"])
        size = np.array([geometry.height, geometry.width], np.int64)
        return {**sample, "image": image, "matrix": geometry.matrix, "size": size}


class Detect(Task):
    Config = DetectConfig
    about: ClassVar[str] = "boxes with a class and a score (YOLO, RetinaNet, SSD, Faster R-CNN)"
    config: DetectConfig

    @property
    def classes(self) -> tuple[str, ...]:
        return self.datasets[self.config.role].classes

    def check(self) -> None:
        info = self.datasets[self.config.role]
        if "boxes" not in info.columns or not info.classes:
            raise UserError(
                f"{info.uri}: no boxes with labels; detect needs COCO, Pascal VOC or YOLO annotations, or a manifest with "
                "the columns `boxes` and `box_labels`"
            )

    def build(self, parents: Mapping[str, Artifact]) -> nn.Module:
        from ..models.normalize import Normalized

        model, info = self.config.model, self.datasets[self.config.role]
        if model.pretrained:
            import timm

            pretrained = timm.get_pretrained_cfg(model.backbone)
            if pretrained is not None:
                return Normalized(self._net(), pretrained.mean, pretrained.std)
        return Normalized(self._net(), info.mean, info.std)

    def _net(self) -> nn.Module:
        config, model, classes = self.config, self.config.model, len(self.classes)
        if model.name == "yolo":
            from ..models.yolo import Yolo

            return Yolo(classes, config.image_size, model.widths, model.blocks)
        from ..models.pyramid import Maps

        if model.name == "fasterrcnn":
            from ..models.fasterrcnn import FasterRcnn

            return FasterRcnn(
                classes,
                Maps(model.backbone, (4, 8, 16, 32), model.pretrained),
                channels=model.channels,
                anchor=model.anchor,
                proposals=model.proposals,
                hidden=model.hidden,
                least=MEASURED,
                nms_iou=config.nms_iou,
                most=config.max_boxes,
            )
        from ..models.anchored import RetinaNet, Ssd

        maps = Maps(model.backbone, (8, 16, 32), model.pretrained)
        return {"retinanet": RetinaNet, "ssd": Ssd}[model.name](
            classes, config.image_size, maps, model.channels, model.anchor
        )

    def streams(self, split: Split) -> Mapping[str, Stream]:
        config, augment = self.config, self.config.augment
        have = self.datasets[config.role].columns
        columns = ("image", "boxes", "box_labels", *(name for name in ("crowd", "difficult") if name in have))
        if split != "train":
            keep = Keep("image", "matrix", "size", *RAGGED)
            return {
                "": Stream(
                    config.role, split, Compose(Objects(False), Placed(self.preprocess), keep), columns, "sequential"
                )
            }
        crop = RandomResizedCrop(config.image_size, augment.scale, augment.ratio)
        steps: list[Step] = [Objects(True), crop if augment.crop == "random_resized" else Prepare(self.preprocess)]
        if augment.flip:
            steps.append(RandomFlip(augment.flip))
        if augment.brightness or augment.contrast or augment.saturation:
            steps.append(ColorJitter(augment.brightness, augment.contrast, augment.saturation))
        return {"": Stream(config.role, split, Compose(*steps, Keep("image", "boxes", "box_labels")), columns)}

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return stack(samples, ragged=RAGGED)

    def phases(self, model: nn.Module) -> tuple[Phase, ...]:
        return (Phase("train", self._loss),)

    def _loss(
        self, model: nn.Module, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """The model's own loss over the valid rows; a batch of padding costs nothing."""
        from ..models.normalize import Normalized

        assert isinstance(model, Normalized)
        keep = batch["valid"].nonzero()[:, 0].cpu().numpy()
        counted = rows(batch, keep if len(keep) else [0])
        boxes, labels = pieces(counted, "boxes"), pieces(counted, "box_labels")
        targets = [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]
        net: Any = model.net
        total, count, logs = net.losses(model.normalize(counted["image"]), targets)
        if not len(keep):
            return total * 0, count * 0, {name: value * 0 for name, value in logs.items()}
        return total, count, dict(logs)

    @cached_property
    def grid(self) -> anchors.Grid:
        """The coding of the outputs of a dense model."""
        size, model = self.config.image_size, self.config.model
        if model.name == "yolo":
            return anchors.yolo(size)
        return {"retinanet": anchors.retinanet, "ssd": anchors.ssd}[model.name](size, model.anchor)

    def _candidates(self, output: Arrays, least: float) -> Iterator[Found]:
        """Each image's boxes in the input's pixels, with scores above `least`, before suppression."""
        for name, value in output.items():
            if not np.isfinite(value).all():
                row = int(np.flatnonzero(~np.isfinite(value).all(axis=tuple(range(1, value.ndim))))[0])
                raise UserError(f"detect: the model's {name} are not finite (row {row} of its batch): it is broken")
        if "scores" in output:
            for boxes, scores, labels in zip(output["boxes"], output["scores"], output["labels"], strict=True):
                good = scores > least
                yield boxes[good], scores[good], labels[good]
            return
        most = max(CANDIDATES, 4 * self.config.max_boxes)
        for deltas, logits in zip(output["deltas"], output["logits"], strict=True):
            scores = self.grid.scores(logits)
            flat = np.flatnonzero(scores > least)
            if len(flat) > most:
                flat = flat[np.argpartition(-scores.ravel()[flat], most)[:most]]
            anchor, label = np.divmod(flat, scores.shape[1])
            yield self.grid.boxes(deltas[anchor], anchor), scores[anchor, label], label

    def detect(self, output: Arrays, geometry: Sequence[Geometry], least: float = MEASURED) -> list[Found]:
        """Every image's detections in the original's pixels, best first: suppressed, clipped, at most max_boxes. What
        lies wholly outside the image (in a letterbox's border) is no detection."""
        found = []
        for (boxes, scores, labels), place in zip(self._candidates(output, least), geometry, strict=True):
            kept = nms(boxes, scores, labels, self.config.nms_iou, self.config.max_boxes)
            original = place.boxes(boxes[kept].astype(np.float64)).astype(np.float32)
            inside = areas(original) > 0
            found.append((original[inside], scores[kept][inside], labels[kept][inside].astype(np.int64)))
        return found

    def decode(self, output: Arrays, geometry: Sequence[Geometry]) -> list[Prediction]:
        return [
            {
                "boxes": [[round(float(v), 2) for v in box] for box in boxes],
                "labels": [self.classes[k] for k in labels],
                "scores": [round(float(score), 4) for score in scores],
                "width": place.width,
                "height": place.height,
            }
            for (boxes, scores, labels), place in zip(
                self.detect(output, geometry, self.config.min_score), geometry, strict=True
            )
        ]

    def metrics(self) -> DetectionMetrics:
        return DetectionMetrics(self.classes, self.detect, self.config.min_score, self.config.max_boxes)

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(self.config.image_size, self.config.resize)

    def signature(self) -> Signature:
        outputs = (
            Field("boxes", "boxes", about="left, top, right, bottom in the image's own pixels, best first"),
            Field("labels", "label", about="one for each box"),
            Field("scores", "number", about="one for each box, 0 to 1"),
            Field("width", "number", about="of the image, pixels"),
            Field("height", "number", about="of the image, pixels"),
        )
        return Signature((Field("image", "image"),), outputs)

    def export(self) -> ExportSpec | Unsupported:
        if self.config.model.name == "fasterrcnn":
            return Unsupported(
                "Faster R-CNN picks its regions by their values, which ONNX's tracer cannot follow; set compress to null, "
                "and the float model is served, or take yolo, retinanet or ssd"
            )
        size = self.config.image_size
        return ExportSpec({"image": np.zeros((2, size, size, 3), np.uint8)}, ("deltas", "logits"))

    def render(self, sample: Sample, prediction: Prediction) -> np.ndarray:
        image, boxes = sample["image"], np.array(prediction["boxes"], np.float64).reshape(-1, 4)
        if image.shape[:2] != (prediction["height"], prediction["width"]):  # the model's input, not the original
            inverse = np.linalg.inv(self.preprocess.geometry(prediction["height"], prediction["width"]).matrix)
            boxes = Geometry(inverse, *image.shape[:2]).boxes(boxes)
        ids = [self.classes.index(name) for name in prediction["labels"]]
        texts = [f"{n} {s:.0%}" for n, s in zip(prediction["labels"], prediction["scores"], strict=True)]
        return boxed(image, boxes, ids, texts)

    def truth(self, sample: Sample) -> str:
        labels = sample.get("box_labels") or []
        counts = [(labels.count(k), name) for k, name in enumerate(self.classes)]
        return ", ".join(f"{count} {name}" for count, name in counts if count) or "nothing"
