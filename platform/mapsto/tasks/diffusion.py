"""Image generation by diffusion: from noise in a few steps, by class, or only where a mask says so (inpainting)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field as Setting
from pydantic import model_validator

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.preprocess import Preprocess
from ..core.sample import Batch, Geometry, Prediction, Sample, Split
from ..core.task import Context, ExportSpec, Field, Phase, Signature
from ..data.transforms import Step
from .generative import SEED, ConditionalConfig, Generative

if TYPE_CHECKING:
    import torch
    from torch import nn

PAINT = 255
"""Of a mask: to be painted; 0 is known."""


class DiffusionConfig(ConditionalConfig):
    kind: Literal["diffusion"]
    measuring: ClassVar[tuple[str, ...]] = ("steps", "guidance")
    widths: tuple[Annotated[int, Setting(ge=4)], ...] = Setting((32, 64, 128), min_length=1, max_length=6)
    """Channels of the U-Net by level, from the finest down."""
    blocks: int = Setting(2, ge=1, le=8)
    """Residual blocks of each level."""
    steps: int = Setting(20, ge=1, le=1000)
    """Of the sampler; each is a pass through the net (two with guidance), and all are in the exported model."""
    guidance: float = Setting(1.5, ge=0)
    """Of conditional: how much more the class counts than it was learnt to; 1 is plain, and half the work."""
    untold: float = Setting(0.1, ge=0, lt=1)
    """Of conditional: share of the training images whose class the net is not told; guidance needs some."""
    inpaint: float = Setting(0.25, ge=0, lt=1)
    """Share of the training images of which a part is known, so that the net learns to paint the rest. 0: it does not."""

    @model_validator(mode="after")
    def _no_class_is_learnt(self) -> DiffusionConfig:
        if self.conditional and self.guidance != 1 and not self.untold:
            raise ValueError(
                f"untold 0: the net never learns to draw without a class, which guidance {self.guidance:g} starts from; set "
                "untold above 0, such as 0.1, or guidance 1"
            )
        return self


@dataclass(frozen=True)
class Holes:
    """Adds `mask` (H×W uint8): all of the image is to be painted, or, of a `share` of the draws, a random box, or all but
    one."""

    share: float

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample["image"].shape[:2]
        mask = np.full((height, width), PAINT, np.uint8)
        if rng.random() < self.share:
            tall, wide = (max(1, round(side * rng.uniform(0.25, 0.75))) for side in (height, width))
            top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
            inside = np.zeros((height, width), bool)
            inside[top : top + tall, left : left + wide] = True
            mask[inside if rng.random() < 0.25 else ~inside] = 0
        return {**sample, "mask": mask}


@dataclass(frozen=True)
class Levels:
    """Adds the noise level `t` in 0..1, and of an `untold` share makes the label `none`."""

    none: int
    untold: float

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        out = {**sample, "t": rng.random()}
        if self.none and rng.random() < self.untold:
            out["label"] = self.none
        return out


class Diffusion(Generative):
    Config = DiffusionConfig
    about: ClassVar[str] = "new images by diffusion, by class; holes in images filled"
    config: DiffusionConfig

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.config.image_size, self.config.image_size)

    def check(self) -> None:
        super().check()
        least = 2 ** (len(self.config.widths) - 1)
        if self.config.image_size < 2 * least:
            raise UserError(
                f"task.widths: {len(self.config.widths)} levels need images of at least {2 * least} pixels; task.image_size is {self.config.image_size}"
            )

    def build(self, parents: Mapping[str, Artifact]) -> nn.Module:
        from ..models.diffusion import Diffusion as Net

        c = self.config
        return Net(c.image_size, c.widths, c.blocks, len(self.classes), c.inpaint > 0, c.steps, c.guidance)

    def steps(self, split: Split) -> tuple[Step, ...]:
        holes = (Holes(self.config.inpaint if split == "train" else 0.0),) if self.config.inpaint else ()
        levels = (Levels(len(self.classes), self.config.untold),) if split == "train" else ()
        return (*super().steps(split), *holes, *levels)

    def names(self, split: Split) -> tuple[str, ...]:
        return ("z", *(("mask",) if self.config.inpaint else ()), *(("t",) if split == "train" else ()))

    def inputs(self, batch: Batch) -> dict[str, Any]:
        label = ("label",) if self.classes else ()
        fills = ("image", "mask") if self.config.inpaint else ()
        return {name: batch[name] for name in ("z", *label, *fills)}

    def phases(self, model: nn.Module) -> tuple[Phase, ...]:
        return (Phase("train", self._loss),)

    def _loss(
        self, model: Any, batch: Batch, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        valid = batch["valid"].float()
        each = model.losses(batch["image"], batch["z"], batch["t"], batch.get("label"), batch.get("mask"))
        return (each * valid).sum(), valid.sum(), {}

    def signature(self) -> Signature:
        fills = (
            Field("image", "image", required=False, about="of which a part is to be painted anew"),
            Field("mask", "mask", required=False, about="with `image`: white where, black where it stays"),
        )
        given = fills if self.config.inpaint else ()
        return Signature((SEED, *self.inputs_of_class(), *given), (Field("image", "image"),))

    def prepare(self, request: Mapping[str, Any]) -> tuple[Sample, Geometry]:
        sample, size = self.drawn(request), self.config.image_size
        if not self.config.inpaint:
            return sample, self.geometry()
        image, mask = request.get("image"), request.get("mask")
        if image is None and mask is None:
            whole = np.full((size, size), PAINT, np.uint8)
            return sample | {"image": np.zeros((size, size, 3), np.uint8), "mask": whole}, self.geometry()
        if image is None or mask is None:
            raise UserError("to paint a part, send both an `image` and a `mask` (white where); for a new image neither")
        pixels, geometry = self.square(image)
        seen = _read(mask)
        if seen.shape[:2] != (geometry.height, geometry.width):
            raise UserError(
                f"`mask` is {seen.shape[1]}x{seen.shape[0]} pixels, `image` {geometry.width}x{geometry.height}; they must be the same"
            )
        holes = Preprocess(size, "crop", filter="nearest").resize(seen)[0].max(2)
        return sample | {"image": pixels, "mask": np.where(holes >= 128, PAINT, 0).astype(np.uint8)}, self.geometry()

    def export(self) -> ExportSpec:
        """The whole sampler, unrolled; the weights lie in the file once."""
        size = self.config.image_size
        inputs = self.traced()
        if self.config.inpaint:
            inputs |= {"image": np.zeros((2, size, size, 3), np.uint8), "mask": np.zeros((2, size, size), np.uint8)}
        return ExportSpec(inputs, ("generated",), quantize=False)

    def render(self, sample: Sample, prediction: Prediction) -> np.ndarray:
        """A filled image beside the one with its hole, grey; a new one alone."""
        if "mask" not in sample or sample["mask"].all():
            return prediction["image"]
        holed = np.where(sample["mask"][..., None] > 0, np.uint8(128), sample["image"])
        return np.concatenate([holed, prediction["image"]], 1)

    def showcase(self, images: Sequence[bytes]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        shown = dict(super().showcase(images))
        if self.config.inpaint:
            size, asked = self.config.image_size, []
            for seed, data in enumerate(images):
                hole = np.zeros((size, size, 3), np.uint8)
                hole[size // 4 : -size // 4, size // 4 : -size // 4] = PAINT
                asked.append({"seed": seed, "image": self.square(data)[0], "mask": hole})
            shown["Holes, and how they were filled"] = asked
        return shown


def _read(mask: bytes | np.ndarray) -> np.ndarray:
    from ..core.codecs import decode

    return mask if isinstance(mask, np.ndarray) else decode(mask)
