"""Which fixed features generated images are measured in, and how to have them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from ..core.artifact import Artifact
from ..core.errors import UserError
from ..core.metrics.generation import INCEPTION, Features
from ..core.registry import load_task
from ..core.section import Section
from ..core.storage import Storage

ROWS_AT_ONCE = 64


class Extractor(Section):
    name: str = Field("random_conv", pattern=r"^[A-Za-z0-9_.-]+$")
    """`random_conv` (fixed random filters), `pixels8` (8×8 pixels), `inception` (needs `weights`; only this gives FID and KID),
    or a timm model, by its pretrained weights. With `artifact`: what to call its features. Metrics carry the name."""
    weights: str | None = None
    """inception: URI of its state dict (.pth), read with the environment's keys."""
    artifact: str | None = None
    """URI of a mapsto train artifact whose model gives the features, read with the environment's keys."""

    @model_validator(mode="after")
    def _fits(self) -> Extractor:
        if (self.weights is not None) != (self.name == INCEPTION):
            raise ValueError(
                "weights: the URI of Inception's state dict, which name 'inception' needs and no other name takes"
            )
        if self.artifact is not None and self.name in (INCEPTION, "pixels8", "random_conv"):
            raise ValueError(
                f"artifact: say in `name` what to call its features; {self.name} is a fixed extractor's name"
            )
        return self

    def check(self) -> None:
        """UserError where network or weights cannot be had: they are opened."""
        _opened(self)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """N×H×W×3 uint8 → N×D float32. UserError where network or weights cannot be had."""
        return _opened(self)(images)


@lru_cache(maxsize=2)
def _opened(extractor: Extractor) -> Features:
    """Once per process: the network is loaded where something is measured, and only there."""
    if extractor.name == "pixels8":
        from ..core.metrics.generation import pixels8

        return pixels8
    import torch

    look = _network(extractor)

    def features(images: np.ndarray) -> np.ndarray:
        parts = []
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            for start in range(0, len(images), ROWS_AT_ONCE):
                batch = torch.from_numpy(np.ascontiguousarray(images[start : start + ROWS_AT_ONCE]))
                parts.append(look(batch).float().numpy())
        return np.concatenate(parts)

    return features


def _network(extractor: Extractor) -> Any:
    """N×H×W×3 uint8 tensor → N×D tensor."""
    from ..models.extractors import Inception, RandomConv

    if extractor.name == "random_conv":
        return RandomConv().eval()
    if extractor.name == INCEPTION:
        assert extractor.weights is not None
        try:
            return Inception(_state(extractor.weights)).eval()
        except ValueError as error:
            raise UserError(f"task.extractor.weights: {extractor.weights}: {error}") from error
    from ..models.pooled import backbone, pooled

    if extractor.artifact is not None:
        net, size = _trained(extractor.artifact)
    else:
        size = 224
        try:
            net = backbone(extractor.name, True, size)
        except UserError as error:
            told = str(error).replace("index.backbone", "task.extractor.name")
            raise UserError(told.replace("index.pretrained", "task.extractor.name")) from error
    return lambda images: pooled(net, _sized(images, size))


def _sized(images: Any, size: int) -> Any:
    from ..core.preprocess import Preprocess

    if images.shape[1:3] == (size, size):
        return images
    import torch

    preprocess = Preprocess(size)
    return torch.from_numpy(np.stack([preprocess.resize(image)[0] for image in images.numpy()]))


def _trained(uri: str) -> tuple[Any, int]:
    """A train artifact's module, in evaluation, and the side of its input."""
    from safetensors.torch import load

    artifact = Artifact(uri.rstrip("/"), Storage())
    if not artifact.complete() or artifact.read_json("variant.json")["kind"] != "torch":
        raise UserError(f"task.extractor.artifact: {uri}: no finished train artifact")
    task = load_task(artifact)
    if task.preprocess is None:
        raise UserError(f"task.extractor.artifact: {uri}: a model of task {task.config.kind}, which looks at no image")
    module = task.build({})
    module.load_state_dict(load(artifact.read(artifact.read_json("variant.json")["file"])))
    return module.eval(), task.preprocess.size


def _state(uri: str) -> Any:
    import io
    import pickle

    import torch

    try:
        return torch.load(io.BytesIO(Storage().read(uri)), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(
            f"task.extractor.weights: {uri}: no PyTorch state dict ({str(error).splitlines()[0]})"
        ) from error
