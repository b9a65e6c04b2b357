"""LPIPS, where its weights are at hand."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import field_validator

from ..core.errors import UserError
from ..core.section import Section
from ..core.storage import Storage, absolute

if TYPE_CHECKING:
    from ..models.lpips import Lpips


class Likeness(Section):
    """LPIPS (arXiv 1801.03924), version 0.1. No weights come with mapsto: name files that you have."""

    network: Literal["alexnet", "vgg16"] = "alexnet"
    backbone: str
    """URI of torchvision's weights of that network (`alexnet-owt-7be5be79.pth`), read with the environment's keys."""
    linear: str
    """URI of the published weights of its channels (`weights/v0.1/alex.pth` of the paper's code), read alike."""

    @field_validator("backbone", "linear")
    @classmethod
    def _whole(cls, uri: str) -> str:
        return absolute(uri)  # workers have another working directory

    def check(self) -> None:
        """UserError where a file is not there."""
        for name in ("backbone", "linear"):
            uri = getattr(self, name)
            if not Storage().exists(uri):
                raise UserError(f"task.lpips.{name}: {uri} is not there, or no file")

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """N×H×W×3 uint8, twice → N float32. UserError where weights cannot be had, or pictures are too small."""
        import torch

        net = _opened(self)
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            try:
                pairs = [
                    [torch.from_numpy(np.ascontiguousarray(each[k : k + 1])) for each in (a, b)] for k in range(len(a))
                ]
                return np.array([float(net(*pair)) for pair in pairs], np.float32)
            except RuntimeError as error:
                if "too small" not in str(error) and "greater than actual input size" not in str(error):
                    raise
                size = f"{a.shape[2]}x{a.shape[1]}"
                raise UserError(f"task.lpips: pictures of {size} pixels are too small for {self.network}") from error


@lru_cache(maxsize=2)
def _opened(likeness: Likeness) -> Lpips:
    """Once per process."""
    from ..models.lpips import Lpips
    from ..models.transfer import load_weights

    storage = Storage()
    backbone, linear = (load_weights(uri, storage) for uri in (likeness.backbone, likeness.linear))
    try:
        return Lpips(likeness.network, backbone, linear)
    except ValueError as error:
        wrong = likeness.linear if str(error).startswith("no linear") else likeness.backbone
        raise UserError(f"task.lpips: {wrong}: {error}") from error
