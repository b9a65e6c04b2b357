"""The recipe's `task` of detection."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field as Setting
from pydantic import field_validator, model_validator

from ..core.section import Section
from ..core.task import TaskConfig
from ..core.windows import Windows
from .looks import Looks

OWN = {
    "yolo": ("widths", "blocks"),
    "retinanet": ("backbone", "pretrained", "channels", "anchor"),
    "ssd": ("backbone", "pretrained", "channels", "anchor"),
    "fasterrcnn": ("backbone", "pretrained", "channels", "anchor", "proposals", "hidden"),
    "maskrcnn": ("backbone", "pretrained", "channels", "anchor", "proposals", "hidden"),
    "rtdetr": ("backbone", "channels", "layers", "proposals", "hidden", "folder"),
}
"""Model → the settings that it has of its own."""
STEP = 32
"""What the side of the input is a multiple of, pixels."""


class DetectModel(Looks):
    name: Literal["yolo", "retinanet", "ssd", "fasterrcnn", "maskrcnn", "rtdetr"] = "yolo"
    widths: tuple[int, ...] = Setting((16, 32, 64, 128, 256), min_length=5, max_length=5)
    """Of yolo: channels at strides 2, 4, 8, 16, 32; even."""
    blocks: int = Setting(1, ge=1, le=9)
    """Of yolo: residual blocks of each stage."""
    backbone: str = "resnet18"
    """Of the others: a timm model with feature maps; of rtdetr: resnet18, resnet34 or resnet50, in a variant of its own."""
    pretrained: bool = False
    """The backbone's weights from timm."""
    channels: int = Setting(128, ge=8, multiple_of=8)
    """Of the feature pyramid (ssd: of its further levels; rtdetr: of encoder and decoder, 256 as published)."""
    anchor: float = Setting(32.0, ge=4)
    """Side of the smallest square anchor, pixels of the input; each level's are twice as large as the one's before
    (ssd: the levels go up to 0.9 of the image)."""
    proposals: int = Setting(300, ge=10)
    """Of fasterrcnn and maskrcnn: regions that are looked at in each image; of rtdetr: its queries."""
    hidden: int = Setting(256, ge=8)
    """Of fasterrcnn and maskrcnn: width of the layers that judge a region; of rtdetr: of its feed-forward layers, 1024 as
    published."""
    layers: int = Setting(3, ge=1, le=12)
    """Of rtdetr: the decoder's; 3, 4 and 6 are published with resnet18, 34 and 50."""
    folder: str | None = None
    """Of rtdetr: a local folder of transformers' own, on every training machine, whose weights training starts from."""

    @field_validator("widths")
    @classmethod
    def _even(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if any(width < 2 or width % 2 for width in widths):
            raise ValueError("channels must be even")
        return widths

    @model_validator(mode="after")
    def _known(self) -> DetectModel:
        foreign = sorted(self.model_fields_set - {"name", "mirror", "scales", *OWN[self.name]})
        if foreign and self.model_dump(include=set(foreign)) != DetectModel().model_dump(include=set(foreign)):
            raise ValueError(f"{self.name} has no {foreign[0]}; it has {', '.join(OWN[self.name])}")
        return self


class DetectAugment(Section):
    """What a training image goes through; boxes and masks move with the pixels, and are cut at its edges."""

    crop: Literal["random_resized", "none"] = "random_resized"
    """`none`: the whole image, as evaluation sees it."""
    scale: tuple[float, float] = (0.4, 1.0)
    """Of random_resized: share of the image's area."""
    ratio: tuple[float, float] = (0.75, 1.3333)
    mosaic: float = Setting(0.0, ge=0, le=1)
    """Share of the pictures that are made of four rows (Bochkovskiy et al., YOLOv4, arXiv 2004.10934), before the crop."""
    rotate: float = Setting(0.0, ge=0, le=180)
    """Largest angle, degrees, either way; a box becomes the upright one about its turned corners."""
    flip: float = Setting(0.5, ge=0, le=1)
    brightness: float = Setting(0.2, ge=0, le=1)
    contrast: float = Setting(0.2, ge=0, le=1)
    saturation: float = Setting(0.2, ge=0, le=1)


class DetectConfig(TaskConfig):
    kind: Literal["detect"]
    answering: ClassVar[tuple[str, ...]] = ("min_score", "segments")
    measuring: ClassVar[tuple[str, ...]] = ("nms_iou", "max_boxes", "windows")
    model: DetectModel = DetectModel()
    image_size: int = Setting(320, ge=64, le=2048, multiple_of=STEP)
    """Side of the square input, pixels."""
    resize: Literal["letterbox", "stretch"] = "letterbox"
    """`letterbox` keeps the image's proportions and fills up with grey."""
    augment: DetectAugment = DetectAugment()
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """`balanced`: an image is drawn the more often, the rarer its rarest class is (repeat factors, arXiv 1908.03195)."""
    min_score: float = Setting(0.3, ge=0, lt=1)
    """Lowest score of an answer. The metrics count detections from 0.01, as COCO's curves need."""
    nms_iou: float = Setting(0.6, gt=0, le=1)
    """Of two boxes of a class that overlap by more, the better one stays."""
    max_boxes: int = Setting(100, ge=1, le=10_000)
    """Most answers for an image; COCO measures 100."""
    windows: Windows | None = None
    """Evaluate, predict and serve large images through overlapping windows. Train on parts of about the windows' size, too
    (`augment.scale`)."""
    segments: Literal["rle", "polygon"] = "rle"
    """How maskrcnn's masks are answered: COCO's compressed run lengths, exact, or polygons, without holes."""
    role: str = "train"

    @model_validator(mode="after")
    def _anchors_fit(self) -> DetectConfig:
        if self.model.name == "ssd" and self.model.anchor >= 0.9 * self.image_size:
            raise ValueError(
                f"model.anchor: {self.model.anchor:g} leaves no larger boxes in an image of {self.image_size}"
            )
        return self

    @model_validator(mode="after")
    def _queries_fit(self) -> DetectConfig:
        """RT-DETR's queries are the best places of its maps at strides 8, 16 and 32."""
        side = min(*self.sides, self.image_size)  # training looks at the input's own size
        places = sum((side // stride) ** 2 for stride in (8, 16, 32))
        if self.model.name == "rtdetr" and self.model.proposals > places:
            raise ValueError(
                f"model.proposals: an input of {side} pixels has {places} places for rtdetr's {self.model.proposals} queries: "
                f"at most {places}"
            )
        return self

    def unexported(self) -> str:
        why = {
            "fasterrcnn": "picks its regions by their values, which ONNX's tracer cannot follow",
            "maskrcnn": "picks its regions by their values, which ONNX's tracer cannot follow",
            "rtdetr": "has code in transformers that fixes the number of a batch's rows when ONNX's tracer follows it",
        }.get(self.model.name)
        served = "set compress to null, and the float model is served, or take yolo, retinanet or ssd"
        return f"{self.model.name} {why}; {served}" if why else ""

    @property
    def overlap(self) -> float:
        """IoU above which the worse of two boxes goes: none where each object has one query, and one view."""
        alone = self.model.name == "rtdetr" and not self.model.mirror and not self.model.scales
        return 1.0 if alone else self.nms_iou

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the input, one for each of the model's scales, pixels."""
        return self.model.sides(self.image_size, STEP)
