"""The steps of every transform: composing, decoding, the evaluation transform, and what goes on to the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import cv2
import numpy as np

from ...core import codecs
from ...core.errors import UserError
from ...core.metrics.folds import file_key, text_key
from ...core.preprocess import Preprocess
from ...core.sample import Sample
from ...core.windows import Windows, looks
from .moving import VOID, carry, mask_of, placed, upright_size


class Step(Protocol):
    """One step of a Compose."""

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample: ...


class Joining(Protocol):
    """A step of a Compose that makes one sample of several: the row and its partners, as the steps before left them."""

    def join(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sample: ...


@dataclass(frozen=True, init=False)
class Compose:
    """`Compose(step, step, ...)`: the steps in order, on the row, and up to the step that joins them on its partners, too."""

    steps: tuple[Step | Joining, ...]

    def __init__(self, *steps: Step | Joining) -> None:
        object.__setattr__(self, "steps", steps)

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sample:
        for step in self.steps:
            # by the method: isinstance of a protocol takes as long as a mirror image
            join: Callable[..., Sample] | None = getattr(step, "join", None)
            if join is not None:
                samples = (join(samples, rng),)
            else:
                apply = cast("Step", step).apply
                samples = [apply(sample, rng) for sample in samples]
        return samples[0]


@dataclass(frozen=True)
class Decode:
    """Encoded bytes → H×W×3 uint8. `at_least`: a JPEG may come out at 1/2, 1/4 or 1/8, its shorter side no less."""

    at_least: int | None = None

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        data = sample["image"]
        image = data if isinstance(data, np.ndarray) else codecs.decode(data, at_least=self.at_least)
        out = sample | {"image": image}
        height, width = image.shape[:2]
        if sample.get("mask") is not None:
            mask = mask_of(sample)
            same = mask.shape == image.shape[:2]
            out["mask"] = mask if same else cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        if not placed(sample):
            return out
        full_height, full_width = upright_size(data)
        return out | carry(sample, np.diag([width / full_width, height / full_height, 1.0]), height, width)


@dataclass(frozen=True)
class Prepare:
    """The evaluation transform: the saved preprocess specification, for image, mask, boxes and keypoints."""

    preprocess: Preprocess

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image, geometry = self.preprocess(sample["image"])
        out = sample | {"image": image}
        if sample.get("mask") is not None:
            out["mask"] = self.preprocess.mask(mask_of(sample), VOID)
        return out | carry(sample, np.linalg.inv(geometry.matrix), *image.shape[:2]) if placed(sample) else out


@dataclass(frozen=True)
class Placed:
    """The evaluation's image, or with `windows` the image's windows (K×S×S×3), and where it lies in the original:
    `matrix` (3×3; of no use with windows) and `size` (height, width). Truth stays in the original's pixels:
    there it is compared."""

    preprocess: Preprocess
    windows: Windows | None = None

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if self.windows is None:
            image, geometry = self.preprocess(sample["image"])
            height, width, matrix = geometry.height, geometry.width, geometry.matrix
        else:
            image, original = looks(sample["image"], self.preprocess, self.windows)
            (height, width), matrix = original.shape[:2], np.eye(3)
        return {**sample, "image": image, "matrix": matrix, "size": np.array([height, width], np.int64)}


@dataclass(frozen=True)
class AsVoid:
    """Mask ids that mark no class become 255, void."""

    ids: tuple[int, ...]

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        table = np.arange(256, dtype=np.uint8)
        table[list(self.ids)] = VOID
        return sample | {"mask": table[mask_of(sample)]}


@dataclass(frozen=True)
class IdentityKey:
    """Text as an int64 that is equal for equal text: `identity` of the column, `picture` of the file's name in `source`
    (`<person>_<number>`; -1 for another name), as lists of pairs name it."""

    name: Literal["identity", "picture"]

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if self.name == "picture":
            return sample | {"picture": file_key(sample["source"])}
        if sample.get("identity") is None:
            raise UserError("no identity, which the task needs")
        return sample | {"identity": text_key(str(sample["identity"]))}


@dataclass(frozen=True, init=False)
class Keep:
    """Only these names go on to the batch: `Keep("image", "label")`."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for name in self.names:
            if sample.get(name) is None:
                raise UserError(f"no {name}, which the task needs")
        return {name: sample[name] for name in self.names}
