"""Augmentation and preparation of samples: frozen, picklable, numpy and OpenCV only (the Transform protocol).

Every step takes a sample and a generator and returns a new sample, a pure function of both; `image` is encoded bytes or
H×W×3 uint8 RGB. What moves pixels moves `mask` (nearest neighbour; what lies outside becomes 255, void), `boxes` (xyxy
pixels, clipped, dropped with what belongs to them when nothing is left) and `keypoints` alike: see moving.py.
"""

from .colour import (
    AutoContrast,
    ColorJitter,
    Equalize,
    GaussianBlur,
    Grayscale,
    Invert,
    Posterize,
    RandomErasing,
    Sharpness,
    Solarize,
)
from .crop import PadCrop, RandomResizedCrop
from .moving import Swap, mask_of, upright_size
from .policies import AutoAugment, RandAugment, TrivialAugment
from .step import AsVoid, Compose, Decode, IdentityKey, Joining, Keep, Placed, Prepare, Step
from .views import Mosaic, MultiCrop
from .warp import COCO_SWAP, RandomAffine, RandomFlip, RandomPerspective, RandomRotate, RandomScale

__all__ = [
    "COCO_SWAP",
    "AsVoid",
    "AutoAugment",
    "AutoContrast",
    "ColorJitter",
    "Compose",
    "Decode",
    "Equalize",
    "GaussianBlur",
    "Grayscale",
    "IdentityKey",
    "Invert",
    "Joining",
    "Keep",
    "Mosaic",
    "MultiCrop",
    "PadCrop",
    "Placed",
    "Posterize",
    "Prepare",
    "RandAugment",
    "RandomAffine",
    "RandomErasing",
    "RandomFlip",
    "RandomPerspective",
    "RandomResizedCrop",
    "RandomRotate",
    "RandomScale",
    "Sharpness",
    "Solarize",
    "Step",
    "Swap",
    "TrivialAugment",
    "mask_of",
    "upright_size",
]
