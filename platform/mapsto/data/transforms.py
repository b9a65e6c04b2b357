"""Augmentation and preparation of samples: frozen, picklable, numpy and OpenCV only (the Transform protocol).

Every step takes a sample and a generator and returns a new sample; `image` is encoded bytes or H×W×3 uint8 RGB. What
moves pixels moves `mask` (nearest neighbour; what lies outside becomes 255, void) and `boxes` (xyxy pixels, clipped,
dropped with their `box_labels` when nothing is left) alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import cv2
import numpy as np
import simplejpeg

from ..core import codecs
from ..core.errors import UserError
from ..core.metrics.folds import file_key, text_key
from ..core.preprocess import Preprocess, resize, sample_nearest
from ..core.sample import Geometry, Sample
from .colour import ColorJitter, RandomErasing

__all__ = [
    "AsVoid",
    "ColorJitter",
    "Compose",
    "Decode",
    "IdentityKey",
    "Keep",
    "PadCrop",
    "Prepare",
    "RandomErasing",
    "RandomFlip",
    "RandomResizedCrop",
    "RandomRotate",
    "Step",
]

VOID = 255


class Step(Protocol):
    """One step of a Compose."""

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample: ...


@dataclass(frozen=True, init=False)
class Compose:
    """`Compose(step, step, ...)`: the steps in order, on the row itself (its partners are left alone)."""

    steps: tuple[Step, ...]

    def __init__(self, *steps: Step) -> None:
        object.__setattr__(self, "steps", steps)

    def __call__(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sample:
        sample = samples[0]
        for step in self.steps:
            sample = step.apply(sample, rng)
        return sample


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
            mask = _mask(sample)
            same = mask.shape == image.shape[:2]
            out["mask"] = mask if same else cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        if sample.get("boxes") is not None:
            full_height, full_width = (height, width) if isinstance(data, np.ndarray) else upright_size(data)
            scale = np.tile([width / full_width, height / full_height], 2)
            _set_boxes(out, _boxes(sample) * scale, height, width)
        return out


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, resized to size×size (Inception's augmentation; Szegedy et al., arXiv 1409.4842).

    `scale`: range of the part's area, as a share of the image's. `ratio`: range of its width / height. Given encoded
    bytes it decodes no more detail of a JPEG than the part needs.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        data = sample["image"]
        height, width = data.shape[:2] if isinstance(data, np.ndarray) else upright_size(data)
        top, left, part_height, part_width = self.part(height, width, rng)
        if isinstance(data, np.ndarray):
            image = data
        else:
            need = math.ceil(min(height, width) * self.size / min(part_height, part_width))
            image = codecs.decode(data, at_least=need)
        down, across = image.shape[0] / height, image.shape[1] / width  # below 1 when decoded smaller
        y0, x0 = round(top * down), round(left * across)
        y1, x1 = max(y0 + 1, round((top + part_height) * down)), max(x0 + 1, round((left + part_width) * across))
        crop = image[y0:y1, x0:x1]
        # Bilinear alone aliases only when it skips pixels: below a factor of two it does not, and it is the quicker.
        quick = max(crop.shape[:2]) < 2 * self.size
        out = sample | {"image": resize(crop, self.size, self.size, "linear" if quick else "auto")}
        matrix = np.array([[part_width / self.size, 0, left], [0, part_height / self.size, top], [0, 0, 1]])
        if sample.get("mask") is not None:
            out["mask"] = sample_nearest(_mask(sample), Geometry(matrix, height, width), self.size, VOID)
        if sample.get("boxes") is not None:
            _set_boxes(out, _through(_boxes(sample), np.linalg.inv(matrix)), self.size, self.size)
        return out

    def part(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) in pixels; the largest centred part of a fitting ratio when ten draws miss."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * (self.scale[0] + rng.random() * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + rng.random() * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        return (height - h) // 2, (width - w) // 2, max(h, 1), max(w, 1)


@dataclass(frozen=True)
class PadCrop:
    """Pad every side by `pad` pixels, then take a random size×size window (the CIFAR augmentation; He et al.,
    arXiv 1512.03385). `size` None: the image's own size. `constant` pads with black, and masks with void."""

    pad: int
    size: int | None = None
    mode: Literal["reflect", "edge", "constant"] = "reflect"

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image = _image(sample)
        height, width = image.shape[:2]
        h, w = (self.size, self.size) if self.size else (height, width)
        free_y, free_x = height + 2 * self.pad - h, width + 2 * self.pad - w
        if free_y < 0 or free_x < 0:
            raise UserError(f"PadCrop: {width}x{height} padded by {self.pad} is smaller than {w}x{h}; resize it first")
        top, left = int(rng.random() * (free_y + 1)), int(rng.random() * (free_x + 1))
        out = sample | {"image": self._window(image, top, left, h, w, 0)}
        if sample.get("mask") is not None:
            out["mask"] = self._window(_mask(sample), top, left, h, w, VOID)
        if sample.get("boxes") is not None:
            shift = np.tile([self.pad - left, self.pad - top], 2)
            _set_boxes(out, _boxes(sample) + shift, h, w)
        return out

    def _window(self, array: np.ndarray, top: int, left: int, h: int, w: int, fill: int) -> np.ndarray:
        border = {"reflect": cv2.BORDER_REFLECT_101, "edge": cv2.BORDER_REPLICATE, "constant": cv2.BORDER_CONSTANT}
        p = self.pad
        padded = cv2.copyMakeBorder(array, p, p, p, p, border[self.mode], value=(fill,) * 3) if p else array
        return padded[top : top + h, left : left + w]


@dataclass(frozen=True)
class RandomFlip:
    """Left and right exchanged, with probability p."""

    p: float = 0.5

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        image = _image(sample)
        out = sample | {"image": cv2.flip(image, 1)}
        if sample.get("mask") is not None:
            out["mask"] = cv2.flip(_mask(sample), 1)
        if sample.get("boxes") is not None:
            width = image.shape[1]
            boxes = _boxes(sample)
            _set_boxes(
                out, np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1), *image.shape[:2]
            )
        return out


@dataclass(frozen=True)
class RandomRotate:
    """Turn about the centre by up to `degrees` either way; corners become black, void in masks. Boxes become the
    boxes around their turned corners."""

    degrees: float

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return self.turn(sample, (2 * rng.random() - 1) * self.degrees)

    def turn(self, sample: Sample, degrees: float) -> Sample:
        """Turn by exactly so much, counter-clockwise."""
        image = _image(sample)
        height, width = image.shape[:2]
        # OpenCV's pixel centres lie at integers, the boxes' origin at the corner of the first pixel.
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
        out = sample | {"image": cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)}
        if sample.get("mask") is not None:
            out["mask"] = cv2.warpAffine(
                _mask(sample),
                matrix,
                (width, height),
                flags=cv2.INTER_NEAREST,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=(VOID,),
            )
        if sample.get("boxes") is not None:
            corner = np.vstack([cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0), [0, 0, 1]])
            _set_boxes(out, _through(_boxes(sample), corner), height, width)
        return out


@dataclass(frozen=True)
class Prepare:
    """The evaluation transform: the saved preprocess specification, for image, mask and boxes."""

    preprocess: Preprocess

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image, geometry = self.preprocess(sample["image"])
        out = sample | {"image": image}
        if sample.get("mask") is not None:
            out["mask"] = self.preprocess.mask(_mask(sample), VOID)
        if sample.get("boxes") is not None:
            _set_boxes(out, _through(_boxes(sample), np.linalg.inv(geometry.matrix)), *image.shape[:2])
        return out


@dataclass(frozen=True)
class AsVoid:
    """Mask ids that mark no class become 255, void."""

    ids: tuple[int, ...]

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        table = np.arange(256, dtype=np.uint8)
        table[list(self.ids)] = VOID
        return sample | {"mask": table[_mask(sample)]}


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


def upright_size(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels of encoded bytes, after EXIF orientation, without decoding them."""
    if data[:3] == b"\xff\xd8\xff" and b"Exif\x00\x00" not in data[:4096]:
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            return int(height), int(width)
        except ValueError:
            pass  # an odd JPEG: Pillow reads it or says why not
    head = codecs.header(data)
    return (head.width, head.height) if head.orientation >= 5 else (head.height, head.width)


def _image(sample: Sample) -> np.ndarray:
    data = sample["image"]
    return data if isinstance(data, np.ndarray) else codecs.decode(data)


def _mask(sample: Sample) -> np.ndarray:
    data = sample["mask"]
    return data if isinstance(data, np.ndarray) else codecs.decode_mask(data)


def _boxes(sample: Sample) -> np.ndarray:
    return np.asarray(sample["boxes"], np.float32).reshape(-1, 4)


def _through(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The boxes around the corners of `boxes`, moved by a 2×3 or 3×3 matrix."""
    x, y = boxes[:, [0, 2, 2, 0]], boxes[:, [1, 1, 3, 3]]
    u = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
    v = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
    return np.stack([u.min(1), v.min(1), u.max(1), v.max(1)], 1)


def _set_boxes(sample: Sample, boxes: np.ndarray, height: int, width: int) -> None:
    clipped = np.clip(boxes, 0, np.array([width, height, width, height])).astype(np.float32)
    left = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    sample["boxes"] = clipped[left]
    if sample.get("box_labels") is not None:
        sample["box_labels"] = np.asarray(sample["box_labels"])[left]
