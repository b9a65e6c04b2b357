"""Object detection: boxes with a class and a score, by YOLO, RetinaNet, SSD, Faster R-CNN or RT-DETR, and by Mask R-CNN
each object's mask, too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..core import heavy
from ..core.artifact import Artifact
from ..core.batches import pieces, rows
from ..core.errors import UserError
from ..core.instances import Patch, from_segment, to_counts, to_polygons
from ..core.metrics.detection import MASKS, DetectionMetrics, Found
from ..core.picture import boxed, tinted
from ..core.preprocess import Preprocess
from ..core.sample import Arrays, Batch, Geometry, Prediction, Sample, Split
from ..core.task import Context, ExportSpec, Field, Phase, Signature, Stream, Task, Unsupported
from ..core.windows import Windows
from ..data.transforms import (
    ColorJitter,
    Compose,
    Joining,
    Keep,
    Mosaic,
    Placed,
    Prepare,
    RandomAffine,
    RandomFlip,
    RandomResizedCrop,
    Step,
)
from .detect_answers import MEASURED, Answers
from .detect_config import STEP, DetectConfig
from .detect_targets import RAGGED, Objects, Packed

if TYPE_CHECKING:
    import torch
    from torch import nn


class Detect(Task):
    Config = DetectConfig
    about: ClassVar[str] = "boxes with a class and a score (YOLO, RetinaNet, SSD, Faster R-CNN, RT-DETR)"
    ragged: ClassVar[tuple[str, ...]] = RAGGED
    config: DetectConfig

    @property
    def classes(self) -> tuple[str, ...]:
        return self.datasets[self.config.role].classes

    def check(self) -> None:
        info = self.datasets[self.config.role]
        if self.config.model.name == "rtdetr":
            heavy.need_transformers()
        if "boxes" not in info.columns or not info.classes:
            raise UserError(
                f"{info.uri}: no boxes with labels; detect needs COCO, Pascal VOC or YOLO annotations, or a manifest with "
                "the columns `boxes` and `box_labels`"
            )
        if self.masks and "segments" not in info.columns:
            raise UserError(
                f"{info.uri}: boxes without masks; maskrcnn needs COCO's segmentations, instance masks, or a manifest with "
                "the column `segments`; take fasterrcnn for boxes alone"
            )

    @property
    def masks(self) -> bool:
        """Whether objects have masks, not boxes alone."""
        return self.config.model.name == "maskrcnn"

    @property
    def windows(self) -> Windows | None:
        return self.config.windows

    def build(self, parents: Mapping[str, Artifact]) -> nn.Module:
        from ..models.normalize import normalized

        config, model, own = self.config, self.config.model, None
        net = model.around(self._net(bool(parents)), config.image_size, STEP)
        if model.name == "rtdetr":
            own = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # as its published weights want pixels
        elif model.pretrained:
            found = heavy.timm().get_pretrained_cfg(model.backbone)
            own = vars(found) if found else None
        return normalized(net, self.datasets[config.role], own)

    def _net(self, training: bool) -> nn.Module:
        config, model, classes = self.config, self.config.model, len(self.classes)
        fetch = training and model.pretrained
        if model.name == "yolo":
            from ..models.yolo import Yolo

            return Yolo(classes, config.image_size, model.widths, model.blocks)
        if model.name == "rtdetr":
            from ..models.rtdetr import RtDetr

            sizes = {"channels": model.channels, "layers": model.layers, "queries": model.proposals}
            folder = model.folder if training else None
            return RtDetr(classes, model.backbone, **sizes, hidden=model.hidden, most=config.max_boxes, folder=folder)
        from ..models.pyramid import Maps

        if model.name in ("fasterrcnn", "maskrcnn"):
            from ..models.fasterrcnn import FasterRcnn
            from ..models.maskrcnn import MaskRcnn

            return (MaskRcnn if self.masks else FasterRcnn)(
                classes,
                Maps(model.backbone, (4, 8, 16, 32), fetch),
                channels=model.channels,
                anchor=model.anchor,
                proposals=model.proposals,
                hidden=model.hidden,
                least=MEASURED,
                nms_iou=config.nms_iou,
                most=config.max_boxes,
            )
        from ..models.anchored import RetinaNet, Ssd

        maps = Maps(model.backbone, (8, 16, 32), fetch)
        return {"retinanet": RetinaNet, "ssd": Ssd}[model.name](
            classes, config.image_size, maps, model.channels, model.anchor
        )

    def streams(self, split: Split) -> Mapping[str, Stream]:
        config, augment = self.config, self.config.augment
        have = self.datasets[config.role].columns
        optional = (
            "crowd",
            "difficult",
            *(("area",) if split != "train" else ()),
            *(("segments",) if self.masks else ()),
        )
        columns = ("image", "boxes", "box_labels", *(name for name in optional if name in have))
        objects = Objects(split == "train", self.masks)
        masks, pack = (MASKS, (Packed(),)) if self.masks else ((), ())
        beside = None if self.masks else 0  # as many masks as there are objects
        if split != "train":
            keep = Keep("image", "matrix", "size", "boxes", "box_labels", "crowd", "difficult", "area", *masks)
            transform = Compose(objects, Placed(self.preprocess, self.windows), *pack, keep)
            return {"": Stream(config.role, split, transform, columns, "sequential", beside=beside)}
        crop = RandomResizedCrop(config.image_size, augment.scale, augment.ratio)
        steps: list[Step | Joining] = [objects]
        if augment.mosaic:
            steps.append(Mosaic(config.image_size, p=augment.mosaic))
        if augment.rotate:
            steps.append(RandomAffine(augment.rotate))
        steps.append(crop if augment.crop == "random_resized" else Prepare(self.preprocess))
        if augment.flip:
            steps.append(RandomFlip(augment.flip))
        if augment.brightness or augment.contrast or augment.saturation:
            steps.append(ColorJitter(augment.brightness, augment.contrast, augment.saturation))
        steps += [*pack, Keep("image", "boxes", "box_labels", *masks)]
        drawn = Stream(config.role, split, Compose(*steps), columns, config.sampling, by="box_labels")
        return {"": replace(drawn, partners=3 if augment.mosaic else 0, beside=beside)}

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
        names = {"boxes": "boxes", "labels": "box_labels", **{name: name for name in MASKS if self.masks}}
        columns = [pieces(counted, column) for column in names.values()]
        targets = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        net: Any = model.net
        total, count, logs = net.losses(model.normalize(counted["image"]), targets)
        if not len(keep):
            return total * 0, count * 0, {name: value * 0 for name, value in logs.items()}
        return total, count, dict(logs)

    @cached_property
    def answers(self) -> Answers:
        return Answers(self.config, self.preprocess)

    def detect(self, output: Arrays, geometry: Sequence[Geometry]) -> list[Found]:
        """Every image's detections in the original's pixels, as the metrics count them."""
        return self.answers.detect(output, geometry)

    def decode(self, output: Arrays, geometry: Sequence[Geometry]) -> list[Prediction]:
        found = self.answers.detect(output, geometry, self.config.min_score)
        return [self._prediction(each, place) for each, place in zip(found, geometry, strict=True)]

    def _prediction(self, found: Found, place: Geometry) -> Prediction:
        segments = [self._segment(patch, place) for patch in found.masks]
        return {
            "boxes": [[round(float(v), 2) for v in box] for box in found.boxes],
            "labels": [self.classes[k] for k in found.labels],
            "scores": [round(float(score), 4) for score in found.scores],
            **({"segments": segments} if self.masks else {}),
            "width": place.width,
            "height": place.height,
        }

    def _segment(self, patch: Patch, place: Geometry) -> Any:
        if self.config.segments == "polygon":
            return to_polygons(patch)
        return {"size": [place.height, place.width], "counts": to_counts(patch, place.height, place.width)}

    def metrics(self) -> DetectionMetrics:
        config = self.config
        return DetectionMetrics(self.classes, self.detect, config.min_score, config.max_boxes, self.masks)

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(self.config.image_size, self.config.resize)

    def signature(self) -> Signature:
        about = {
            "rle": "the mask of each box: COCO's compressed run lengths",
            "polygon": "the mask of each box: polygons, x and y in turn in the image's own pixels",
        }[self.config.segments]
        outputs = (
            Field("boxes", "boxes", about="left, top, right, bottom in the image's own pixels, best first"),
            Field("labels", "label", about="one for each box"),
            Field("scores", "number", about="one for each box, 0 to 1"),
            *((Field("segments", "segments", about=about),) if self.masks else ()),
            Field("width", "number", about="of the image, pixels"),
            Field("height", "number", about="of the image, pixels"),
        )
        return Signature((Field("image", "image"),), outputs)

    def export(self) -> ExportSpec | Unsupported:
        if reason := self.config.unexported():
            return Unsupported(reason)
        size = self.config.image_size
        return ExportSpec({"image": np.zeros((2, size, size, 3), np.uint8)}, ("deltas", "logits"))

    def render(self, sample: Sample, prediction: Prediction) -> np.ndarray:
        image, boxes = sample.get("original", sample["image"]), np.array(prediction["boxes"], np.float64).reshape(-1, 4)
        height, width = prediction["height"], prediction["width"]
        segments = [json.dumps(segment) for segment in prediction.get("segments", ())]
        patches = [from_segment(text, height, width) for text in segments]
        if image.shape[:2] != (height, width):  # the model's input, not the original
            inverse = np.linalg.inv(self.preprocess.geometry(height, width).matrix)
            boxes = Geometry(inverse, *image.shape[:2]).boxes(boxes)
            patches = [patch.moved(inverse, *image.shape[:2]) for patch in patches]
        ids = [self.classes.index(name) for name in prediction["labels"]]
        texts = [f"{n} {s:.0%}" for n, s in zip(prediction["labels"], prediction["scores"], strict=True)]
        return boxed(tinted(image, patches), boxes, ids, texts)

    def truth(self, sample: Sample) -> str:
        labels = sample.get("box_labels") or []
        counts = [(labels.count(k), name) for k, name in enumerate(self.classes)]
        return ", ".join(f"{count} {name}" for count, name in counts if count) or "nothing"
