"""RT-DETR (Zhao et al., DETRs Beat YOLOs on Real-time Object Detection, arXiv 2304.08069) as transformers has it, with the
backbone that comes with it: a detector whose answers need no suppression. An extra: mapsto[rtdetr]."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..core import heavy
from ..core.errors import UserError
from .yolo_loss import Targets


class Backbone(NamedTuple):
    block: str
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    expansion: float
    """Of the encoder's blocks, as published with that backbone."""


BACKBONES = {
    "resnet18": Backbone("basic", (2, 2, 2, 2), (64, 128, 256, 512), 0.5),
    "resnet34": Backbone("basic", (3, 4, 6, 3), (64, 128, 256, 512), 0.5),
    "resnet50": Backbone("bottleneck", (3, 4, 6, 3), (256, 512, 1024, 2048), 1.0),
}
"""RT-DETR's own variants of them (`vd`)."""


class RtDetr(nn.Module):
    """forward(N×3×S×S float in 0..1) → `boxes` (N×K×4 xyxy, pixels of the input), `scores` (N×K), `labels` (N×K int64, from
    0): the K best of all queries' classes. S is a multiple of 32. UserError where transformers is not installed, for a
    backbone that RT-DETR has not, and for a folder that holds other weights."""

    def __init__(
        self,
        classes: int,
        backbone: str,
        *,
        channels: int,
        layers: int,
        queries: int,
        hidden: int,
        most: int,
        folder: str | None = None,
    ) -> None:
        """`channels`: of encoder and decoder; `layers`: of the decoder; `hidden`: width of the feed-forward layers;
        `folder`: local, of transformers' own (config.json, model.safetensors), whose weights it starts from; classes of
        another number start anew."""
        super().__init__()
        transformers = heavy.transformers()

        if backbone not in BACKBONES:
            raise UserError(f"task.model.backbone: rtdetr has {', '.join(BACKBONES)} of its own, and no '{backbone}'")
        own = BACKBONES[backbone]
        config: Any = transformers.RTDetrConfig(
            backbone_config=transformers.RTDetrResNetConfig(
                embedding_size=64,
                hidden_sizes=list(own.widths),
                depths=list(own.depths),
                layer_type=own.block,
                out_features=["stage2", "stage3", "stage4"],
            ),
            encoder_in_channels=list(own.widths[1:]),
            encoder_hidden_dim=channels,
            decoder_in_channels=[channels] * 3,
            d_model=channels,
            hidden_expansion=own.expansion,
            decoder_layers=layers,
            num_queries=queries,
            num_labels=classes,
            encoder_ffn_dim=hidden,
            decoder_ffn_dim=hidden,
            freeze_backbone_batch_norms=False,  # frozen, a backbone of random weights would not be normalised at all
        )
        self.net: Any = (
            _loaded(transformers, folder, config) if folder else transformers.RTDetrForObjectDetection(config)
        )
        self.most = min(most, queries * classes)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.net(pixel_values=x)
        scores, place = found.logits.float().sigmoid().flatten(1).topk(self.most)
        classes = found.logits.shape[2]
        boxes = _corners(found.pred_boxes.float()) * x.shape[-1]
        query = torch.div(place, classes, rounding_mode="floor")
        return {
            "boxes": boxes.gather(1, query[..., None].expand(-1, -1, 4)),
            "scores": scores,
            "labels": place - query * classes,
        }

    def losses(
        self, x: torch.Tensor, targets: Sequence[Targets]
    ) -> tuple[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]]:
        """(sum over the objects, their number, logs) of the matched queries of every layer, and in training of objects with
        noise that are to be found again."""
        side = float(x.shape[-1])
        labels = [
            {"class_labels": each["labels"].long(), "boxes": _middles(each["boxes"].float()) / side} for each in targets
        ]
        count = torch.tensor(float(max(1, sum(len(each["labels"]) for each in targets))), device=x.device)
        found = self.net(pixel_values=x, labels=labels)
        # Without an object there is nothing to put noise on: that part of the net is still to have its gradient.
        idle = self.net.model.denoising_class_embed.weight.sum() * 0
        total = (found.loss.float() + idle) * count
        parts = {"score_loss": "loss_vfl", "box_loss": "loss_bbox", "overlap_loss": "loss_giou"}
        logs = {name: found.loss_dict[theirs].detach().float() * count for name, theirs in parts.items()}
        return total, count, logs


SAME = {
    "d_model": "channels",
    "decoder_layers": "layers",
    "encoder_ffn_dim": "hidden",
    "decoder_ffn_dim": "hidden",
    "num_queries": "proposals",
}
"""What a folder's weights must have in common with the recipe: transformers' name → task.model's."""
BACKBONE = ("layer_type", "depths", "hidden_sizes", "embedding_size")
"""The same of its backbone."""
FREE = re.compile(r"class_embed|enc_score_head|num_batches_tracked$")
"""What may start anew: layers by the number of classes, and what published backbones, whose norms are frozen, do not count."""


def _loaded(transformers: Any, folder: str, config: Any) -> Any:
    """transformers' model with the weights of a local folder; only what tells classes apart may start anew."""
    said = f"task.model.folder: {folder}"
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{said}: no folder of transformers here (config.json is missing)")
    theirs = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    if theirs.model_type != "rt_detr":
        raise UserError(f"{said}: a model of type '{theirs.model_type}', not rt_detr")
    _check(said, theirs, config)
    try:
        model, told = transformers.RTDetrForObjectDetection.from_pretrained(
            folder, config=config, ignore_mismatched_sizes=True, local_files_only=True, output_loading_info=True
        )
    except OSError as error:
        raise UserError(f"{said}: {str(error).splitlines()[0]}") from error
    unlike = [each if isinstance(each, str) else each[0] for each in (*told["missing_keys"], *told["mismatched_keys"])]
    if lost := sorted(name for name in unlike if not FREE.search(name)):
        raise UserError(
            f"{said}: its weights do not fit: {len(lost)} of the model's are missing there or of another shape, such as "
            f"{lost[0]}; give the folder of a whole RT-DETR of these settings"
        )
    return model


def _check(said: str, theirs: Any, config: Any) -> None:
    """UserError where the folder's configuration is that of another network."""
    for name, ours in SAME.items():
        if getattr(theirs, name) != getattr(config, name):
            raise UserError(f"{said}: made with {getattr(theirs, name)}: set task.model.{ours}={getattr(theirs, name)}")
    backbone = theirs.backbone_config
    if backbone is None:
        raise UserError(f"{said}: its config.json has no backbone_config; only RT-DETR's own backbones are known here")
    change = "set task.model.backbone to the one it was made with"
    for name in BACKBONE:
        found = getattr(backbone, name, None)
        found = list(found) if isinstance(found, tuple | list) else found
        if found == getattr(config.backbone_config, name):
            continue
        if name == "depths":
            raise UserError(f"{said}: its backbone has stages of {found} blocks: {change}")
        raise UserError(f"{said}: its backbone has {name} {found}: {change}")
    if theirs.hidden_expansion != config.hidden_expansion:
        raise UserError(f"{said}: its encoder has hidden_expansion {theirs.hidden_expansion:g}: {change}")


def _corners(boxes: torch.Tensor) -> torch.Tensor:
    """...×4 middle, width and height → xyxy."""
    middle, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([middle - size / 2, middle + size / 2], -1)


def _middles(boxes: torch.Tensor) -> torch.Tensor:
    """...×4 xyxy → middle, width and height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)
