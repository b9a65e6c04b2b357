"""What tasks that make images have in common: their settings, noise, classes, requests and measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field as Setting
from pydantic import field_validator

from ..core.errors import UserError, nearest
from ..core.metrics.generation import GenerationMetrics
from ..core.preprocess import Preprocess
from ..core.sample import Arrays, Batch, Geometry, Prediction, Sample, Split
from ..core.task import Field, Stream, Task, TaskConfig
from ..data.transforms import Compose, Keep, Prepare, RandomFlip, Step
from .extractor import Extractor

if TYPE_CHECKING:
    import torch
    from torch import nn

SEED = Field("seed", "seed", about="an integer; the same seed, the same image")
SHOWN, PER_CLASS, CLASSES = 64, 8, 10


class GenerativeConfig(TaskConfig):
    answering: ClassVar[tuple[str, ...]] = ("neighbours",)
    image_size: int = Setting(32, ge=16, le=256)
    """Side of the generated image, pixels; a power of two."""
    flip: float = Setting(0.5, ge=0, le=1)
    """Probability that a training image is mirrored."""
    extractor: Extractor = Extractor()
    """The features in which generated and real images are compared."""
    neighbours: int = Setting(3, ge=1)
    """k of precision and recall."""
    role: str = "train"

    @field_validator("image_size")
    @classmethod
    def _power_of_two(cls, size: int) -> int:
        if size & (size - 1):
            raise ValueError(f"{size} is not a power of two")
        return size

    def artifacts(self) -> Mapping[str, str]:
        return {"extractor.artifact": self.extractor.artifact} if self.extractor.artifact else {}


class ConditionalConfig(GenerativeConfig):
    conditional: bool = False
    """Learn the classes apart, and draw the one that is asked for; needs labels."""


@dataclass(frozen=True)
class Noise:
    """Adds `z`, standard normal, to a sample: the same for the same draw on any worker."""

    shape: tuple[int, ...]

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return {**sample, "z": rng.standard_normal(self.shape, np.float32)}


class Generative(Task):
    """A task whose answers are images drawn from noise `z`, for a class where it has classes."""

    config: Any

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that are learnt apart; empty without."""
        return self.datasets[self.config.role].classes if getattr(self.config, "conditional", False) else ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one draw's noise: a vector, where not said otherwise."""
        return (self.config.latent,)

    @property
    def square(self) -> Preprocess:
        return Preprocess(self.config.image_size, "crop")

    def check(self) -> None:
        info = self.datasets[self.config.role]
        if getattr(self.config, "conditional", False) and not info.classes:
            raise UserError(f"{info.uri}: no labels, which task.conditional needs; set it to false")
        for split in ("val", "test"):
            rows, least = info.rows.get(split, 0), self.config.neighbours + 1
            if 0 < rows < least:
                raise UserError(
                    f"{info.uri}: its {rows} rows in '{split}' cannot be measured: precision and recall by {self.config.neighbours} neighbours "
                    f"(task.neighbours) need {least} or more; set data.{self.config.role}.splits.{split} larger or to 0"
                )
        self.config.extractor.check()

    def steps(self, split: Split) -> tuple[Step, ...]:
        """What is done to a prepared sample before its columns are kept."""
        return (Noise(self.shape),)

    def names(self, split: Split) -> tuple[str, ...]:
        """The batch's names beside `image` and `label`."""
        return ("z",)

    def streams(self, split: Split) -> Mapping[str, Stream]:
        flip = (RandomFlip(self.config.flip),) if split == "train" and self.config.flip else ()
        columns = ("image", "label") if self.classes else ("image",)
        transform = Compose(Prepare(self.square), *flip, *self.steps(split), Keep(*columns, *self.names(split)))
        sampling = "shuffled" if split == "train" else "sequential"
        return {"": Stream(self.config.role, split, transform, columns, sampling)}

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"generated": model(**self.inputs(batch))}

    def traced(self) -> dict[str, np.ndarray]:
        """The noise, and the classes where there are some, on which an export is traced."""
        label = {"label": np.arange(len(self.classes))} if self.classes else {}
        return {"z": np.zeros((2, *self.shape), np.float32), **label}

    def decode(self, output: Arrays, geometry: Sequence[Geometry]) -> list[Prediction]:
        return [{"image": np.asarray(image, np.uint8)} for image in output["generated"]]

    def metrics(self) -> GenerationMetrics:
        return GenerationMetrics(self.config.extractor.name, self.config.extractor, self.config.neighbours)

    def inputs_of_class(self) -> tuple[Field, ...]:
        about = "name or number; default: one that the seed draws"
        return (Field("class", "class", required=False, about=about),) if self.classes else ()

    def drawn(self, request: Mapping[str, Any]) -> Sample:
        """`z`, and `label` where there are classes, of a request's `seed` and `class`."""
        rng = np.random.default_rng(seed_of(request) % 2**64)
        sample: Sample = {"z": rng.standard_normal(self.shape, np.float32)}
        if self.classes:
            given = request.get("class")
            sample["label"] = int(rng.integers(len(self.classes))) if given is None else class_of(given, self.classes)
        return sample

    def geometry(self) -> Geometry:
        return Geometry(np.eye(3), self.config.image_size, self.config.image_size)

    def render(self, sample: Sample, prediction: Prediction) -> np.ndarray:
        return prediction["image"]

    def showcase(self, images: Sequence[bytes]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        if not self.classes:
            return {"Samples": [{"seed": seed} for seed in range(SHOWN)]}
        shown = self.classes[:CLASSES]
        asked = [{"seed": seed, "class": name} for name in shown for seed in range(PER_CLASS)]
        return {f"Samples: a row each of {', '.join(shown)}": asked}


def seed_of(request: Mapping[str, Any]) -> int:
    seed = request.get("seed")
    try:
        if isinstance(seed, int | str) and not isinstance(seed, bool):
            return int(seed)
    except ValueError:
        pass
    raise UserError(f"`seed` must be an integer, not {repr(seed)[:80]}")


def class_of(given: Any, classes: Sequence[str]) -> int:
    """A class's number by its name, or by its number from 0."""
    if isinstance(given, str) and given in classes:
        return classes.index(given)
    numbers = [str(number) for number in range(len(classes))]
    if isinstance(given, int | str) and str(given) in numbers:
        return numbers.index(str(given))
    raise UserError(
        f"`class` {repr(given)[:80]} is none of the {len(classes)} classes{nearest(str(given), list(classes))}"
    )
