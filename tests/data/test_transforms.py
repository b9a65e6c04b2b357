"""Transforms against torchvision's v2 functions on the same parameters."""

import hashlib

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from mapsto.core.codecs import decode, decode_mask, encode
from mapsto.core.errors import UserError
from mapsto.core.preprocess import Preprocess
from mapsto.data.transforms import (
    AsVoid,
    ColorJitter,
    Compose,
    Decode,
    IdentityKey,
    Keep,
    PadCrop,
    Prepare,
    RandomErasing,
    RandomFlip,
    RandomResizedCrop,
    RandomRotate,
    pixels,
    upright_size,
)


def picture(height=60, width=80, seed=0) -> np.ndarray:
    """A smooth image: what resizes and turns alike with any good filter."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x * a + b) * np.cos(y * c) for a, b, c in rng.uniform(0.05, 0.2, (3, 3))]
    return ((np.stack(waves, 2) + 1) * 127).astype(np.uint8)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def array(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def far(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


class Fixed:
    """A generator that gives the same number."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0) if len(self.values) > 1 else self.values[0]

    def permutation(self, n: int) -> range:
        return range(n)


BOXES = [[10.0, 5.0, 30.0, 25.0], [50.0, 40.0, 80.0, 60.0]]


def test_pad_crop_is_a_window_of_the_padded_image():
    image = picture(32, 32)
    for mode in ("reflect", "edge", "constant"):
        padded = array(F.pad(tensor(image), [4] * 4, padding_mode=mode))
        out = PadCrop(4, mode=mode).apply({"image": image}, Fixed(0.99, 0.0))["image"]
        np.testing.assert_array_equal(out, padded[8:40, 0:32])
    with pytest.raises(UserError, match="smaller than 64x64"):
        PadCrop(4, size=64).apply({"image": image}, Fixed(0.5))


def test_pad_crop_moves_mask_and_boxes():
    mask = np.arange(60 * 80, dtype=np.uint32).reshape(60, 80).astype(np.uint8)
    out = PadCrop(4, mode="constant").apply(
        {"image": picture(), "mask": mask, "boxes": BOXES, "box_labels": [1, 2]}, Fixed(0.0)
    )
    assert (out["mask"][:4] == 255).all() and (out["mask"][4:, 4:] == mask[:-4, :-4]).all()
    np.testing.assert_allclose(out["boxes"], [[14, 9, 34, 29], [54, 44, 80, 60]])


def test_flip_matches_torchvision_and_flips_boxes_and_mask():
    image, mask = picture(), np.eye(60, 80, dtype=np.uint8)
    out = RandomFlip(1.0).apply({"image": image, "mask": mask, "boxes": BOXES}, np.random.default_rng(0))
    np.testing.assert_array_equal(out["image"], array(F.horizontal_flip(tensor(image))))
    np.testing.assert_array_equal(out["mask"], mask[:, ::-1])
    np.testing.assert_allclose(out["boxes"], [[50, 5, 70, 25], [0, 40, 30, 60]])
    assert RandomFlip(0.0).apply({"image": image}, np.random.default_rng(0))["image"] is image


@pytest.mark.parametrize("seed", range(5))
def test_resized_crop_matches_torchvision_on_the_same_part(seed):
    image = picture(seed=seed)
    step = RandomResizedCrop(24, scale=(0.3, 1.0))
    top, left, height, width = step.part(60, 80, np.random.default_rng(seed))
    assert 0 <= top <= 60 - height and 0 <= left <= 80 - width
    out = step.apply({"image": image}, np.random.default_rng(seed))["image"]
    expected = array(F.resized_crop(tensor(image), top, left, height, width, [24, 24], antialias=True))
    assert out.shape == (24, 24, 3) and far(out, expected) < 2.5


def test_resized_crop_of_a_jpeg_decodes_less_and_looks_the_same():
    data = encode(cv2.resize(picture(), (640, 480), interpolation=cv2.INTER_CUBIC), "jpeg", 95)
    step = RandomResizedCrop(64, scale=(0.8, 1.0))
    small = step.apply({"image": data}, np.random.default_rng(0))["image"]
    full = step.apply({"image": decode(data)}, np.random.default_rng(0))["image"]
    assert far(small, full) < 2


def test_resized_crop_moves_mask_and_boxes_with_the_image():
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:40, 30:60] = 255
    mask = (image[..., 0] > 0).astype(np.uint8)
    sample = {"image": image, "mask": mask, "boxes": [[30, 20, 60, 40]], "box_labels": [4]}
    for seed in range(10):
        out = RandomResizedCrop(48, scale=(0.4, 1)).apply(sample, np.random.default_rng(seed))
        inside = out["image"][..., 0] > 127
        assert (inside != (out["mask"] == 1)).mean() < 0.05
        y, x = np.nonzero(inside)
        np.testing.assert_allclose(out["boxes"][0], [x.min(), y.min(), x.max() + 1, y.max() + 1], atol=1.01)


def test_part_keeps_scale_and_ratio():
    parts = [RandomResizedCrop(8).part(300, 400, np.random.default_rng(s)) for s in range(300)]
    areas = np.array([h * w for _, _, h, w in parts]) / 120_000
    ratios = np.array([w / h for _, _, h, w in parts])
    assert areas.min() > 0.07 and areas.max() <= 1.01 and 0.4 < np.mean(areas) < 0.65
    assert ratios.min() > 0.7 and ratios.max() < 1.4
    assert RandomResizedCrop(8, scale=(1, 1), ratio=(1, 1)).part(10, 100, np.random.default_rng(0)) == (0, 45, 10, 10)


@pytest.mark.parametrize("degrees", [-30.0, 7.0, 90.0])
def test_rotate_matches_torchvision(degrees):
    image = picture(61, 61)
    out = RandomRotate(0).turn({"image": image}, degrees)["image"]
    expected = array(F.rotate(tensor(image), degrees, interpolation=F.InterpolationMode.BILINEAR))
    assert far(out[8:-8, 8:-8], expected[8:-8, 8:-8]) < 1.5


def test_rotate_by_a_quarter_moves_boxes_and_mask_like_the_image():
    image = np.zeros((50, 50, 3), np.uint8)
    image[10:20, 5:35] = 255
    mask = (image[..., 0] > 0).astype(np.uint8)
    out = RandomRotate(0).turn({"image": image, "mask": mask, "boxes": [[5, 10, 35, 20]]}, 90)
    y, x = np.nonzero(out["mask"] == 1)
    np.testing.assert_allclose(out["boxes"][0], [x.min(), y.min(), x.max() + 1, y.max() + 1], atol=1e-3)
    np.testing.assert_array_equal(out["mask"] == 1, np.rot90(mask == 1))


@pytest.mark.parametrize("factor", [0.4, 1.0, 1.7])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_matches_torchvision(name, factor):
    image = np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)
    out = getattr(pixels, name)(image, factor)
    expected = array(getattr(F, f"adjust_{name}")(tensor(image), factor))
    assert np.abs(out.astype(int) - expected.astype(int)).max() <= 2


def test_jitter_and_erasing_stay_within_their_limits():
    image = picture()
    same = ColorJitter(0, 0, 0).apply({"image": image}, np.random.default_rng(0))["image"]
    np.testing.assert_array_equal(same, image)
    out = RandomErasing(1.0, value=7).apply({"image": image}, np.random.default_rng(0))["image"]
    erased = (out != image).any(2)
    y, x = np.nonzero(erased)
    assert 0.01 < (y.max() + 1 - y.min()) * (x.max() + 1 - x.min()) / image[..., 0].size < 0.36
    assert (out[erased] == 7).all() and (image == picture()).all()


def test_prepare_is_the_preprocess_specification_for_mask_and_boxes_too():
    spec = Preprocess(32, "letterbox")
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 20:60] = 3
    out = Prepare(spec).apply(
        {"image": picture(), "mask": encode(mask, "png"), "boxes": [[20, 20, 60, 40]]}, np.random.default_rng(0)
    )
    np.testing.assert_array_equal(out["image"], spec(picture())[0])
    y, x = np.nonzero(out["mask"] == 3)
    np.testing.assert_allclose(out["boxes"][0], [x.min(), y.min(), x.max() + 1, y.max() + 1], atol=0.51)
    assert (out["mask"][:3] == 255).all()


def test_compose_decodes_keeps_and_names_what_is_missing():
    data = encode(picture(), "png")
    out = Compose(Decode(), Keep("image", "label"))(
        ({"image": data, "label": 3, "row_id": 5},), np.random.default_rng(0)
    )
    np.testing.assert_array_equal(out["image"], picture())
    assert set(out) == {"image", "label"}
    with pytest.raises(UserError, match="no mask, which the task needs"):
        Keep("mask").apply({"image": data, "row_id": 5}, np.random.default_rng(0))


def test_decode_small_scales_boxes_and_mask():
    data = encode(picture(400, 600), "jpeg")
    mask = encode(np.full((400, 600), 2, np.uint8), "png")
    out = Decode(at_least=100).apply(
        {"image": data, "mask": mask, "boxes": [[60, 40, 300, 200]]}, np.random.default_rng(0)
    )
    assert out["image"].shape == (100, 150, 3) and out["mask"].shape == (100, 150) and (out["mask"] == 2).all()
    np.testing.assert_allclose(out["boxes"], [[15, 10, 75, 50]])
    assert upright_size(data) == (400, 600)


def test_further_void_ids_become_void_and_nothing_else_changes():
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    mask[0, 0] = 255
    sample = {"image": np.zeros((3, 4, 3), np.uint8), "mask": encode(mask, "png")}
    out = AsVoid((3, 11)).apply(sample, np.random.default_rng(0))["mask"]
    np.testing.assert_array_equal(out, np.where(np.isin(mask, (3, 11)), 255, mask))
    np.testing.assert_array_equal(decode_mask(sample["mask"]), mask)


def test_identities_and_pictures_have_keys():
    rng = np.random.default_rng(0)
    ann, bob = (IdentityKey("identity").apply({"identity": name}, rng)["identity"] for name in ("Ann", "Bob"))
    assert ann != bob and ann == IdentityKey("identity").apply({"identity": "Ann"}, rng)["identity"]
    assert min(ann, bob) >= 0 and max(ann, bob) < 2**63
    key = IdentityKey("picture").apply({"source": "s3://b/Ann_Lee/Ann_Lee_0007.jpg"}, rng)["picture"]
    assert key == int.from_bytes(hashlib.sha256(b"Ann_Lee/7").digest()[:8], "big") >> 1
    assert IdentityKey("picture").apply({"source": "s1/7.pgm"}, rng)["picture"] == -1
    with pytest.raises(UserError, match="no identity"):
        IdentityKey("identity").apply({"identity": None}, rng)
