"""Operations on pixel values, and the policies made of them, against torchvision's v2."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mapsto.data.transforms import (
    AutoAugment,
    AutoContrast,
    ColorJitter,
    Equalize,
    GaussianBlur,
    Grayscale,
    Invert,
    Posterize,
    RandAugment,
    RandomErasing,
    Sharpness,
    Solarize,
    TrivialAugment,
    pixels,
)
from mapsto.data.transforms.policies import AUTOAUGMENT, OPERATIONS, POLICIES, SIGNED, WIDE, operate


def picture(height=40, width=52, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x * a + b) * np.cos(y * c) for a, b, c in rng.uniform(0.05, 0.2, (3, 3))]
    return ((np.stack(waves, 2) + 1) * 100 + 20).astype(np.uint8)


NOISE = np.random.default_rng(1).integers(0, 256, (33, 47, 3), np.uint8)
FLAT = np.full((9, 9, 3), (0, 128, 255), np.uint8)
DARK = (NOISE // 8).astype(np.uint8)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def array(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def furthest(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("image", [NOISE, FLAT, DARK, picture()], ids=["noise", "flat", "dark", "smooth"])
def test_operations_match_torchvision(image):
    before = image.copy()
    exact = {
        "invert": (pixels.invert(image), F.invert(tensor(image))),
        "equalize": (pixels.equalize(image), F.equalize(tensor(image))),
        "autocontrast": (pixels.autocontrast(image), F.autocontrast(tensor(image))),
    }
    for bits in range(9):
        exact[f"posterize {bits}"] = (pixels.posterize(image, bits), F.posterize(tensor(image), bits))
    for threshold in (0.0, 76.5, 128.0, 254.9, 255.0):
        exact[f"solarize {threshold}"] = (pixels.solarize(image, threshold), F.solarize(tensor(image), threshold))
    near = {"grayscale": (pixels.grayscale(image), F.rgb_to_grayscale(tensor(image), 3))}
    for factor in (0.0, 0.3, 1.0, 1.9):
        near[f"sharpness {factor}"] = (pixels.sharpness(image, factor), F.adjust_sharpness(tensor(image), factor))
    for turn in (-0.5, -0.13, 0.0, 0.27, 0.5):
        near[f"hue {turn}"] = (pixels.hue(image, turn), F.adjust_hue(tensor(image), turn))
    for sigma in (0.1, 0.7, 1.3):
        near[f"blur {sigma}"] = (pixels.blur(image, sigma, 5), F.gaussian_blur(tensor(image), [5, 5], [sigma] * 2))
    for name, (got, want) in exact.items():
        np.testing.assert_array_equal(got, array(want), err_msg=name)
    for name, (got, want) in near.items():
        assert furthest(got, array(want)) <= 1, name
    np.testing.assert_array_equal(image, before)


def test_magnitudes_and_operations_are_torchvisions():
    for space, peer, bins in (
        (AUTOAUGMENT, v2.RandAugment, 31),
        (AUTOAUGMENT, v2.AutoAugment, 10),
        (WIDE, v2.TrivialAugmentWide, 31),
    ):
        table = peer._AUGMENTATION_SPACE
        assert set(table) - {"Invert"} == set(OPERATIONS) - ({"Identity"} if peer is v2.AutoAugment else set())
        for operation, (values, signed) in table.items():
            assert signed == (operation in SIGNED)
            want, got = values(bins, 200, 300), space.magnitudes(operation, bins, 200, 300)
            assert (want is None) == (got is None), operation
            if want is not None:
                np.testing.assert_allclose(got, want.numpy(), atol=1e-4, err_msg=operation)


def test_the_tables_are_torchvisions():
    for name, policy in (
        ("imagenet", v2.AutoAugmentPolicy.IMAGENET),
        ("cifar10", v2.AutoAugmentPolicy.CIFAR10),
        ("svhn", v2.AutoAugmentPolicy.SVHN),
    ):
        assert list(POLICIES[name]) == v2.AutoAugment(policy)._policies


@pytest.mark.parametrize("operation", [*OPERATIONS, "Invert"])
def test_every_operation_of_the_policies_is_torchvisions(operation):
    image, peer = picture(), v2.RandAugment()
    for space, bins in ((AUTOAUGMENT, 31), (WIDE, 31)):
        values = space.magnitudes(operation, bins, *image.shape[:2])
        for bin in (0, 9, 17, 30):
            for sign in (1, -1) if operation in SIGNED else (1,):
                magnitude = 0.0 if values is None else sign * float(values[bin])
                got = operate({"image": image}, operation, magnitude)["image"]
                want = array(
                    peer._apply_image_or_video_transform(
                        tensor(image), operation, magnitude, InterpolationMode.BILINEAR, peer._fill
                    )
                )
                far = np.abs(got.astype(int) - want.astype(int))
                moves = operation in ("ShearX", "ShearY", "Rotate")
                assert far.mean() < 1.5 and (moves or far.max() <= 2), (magnitude, far.max())
    with pytest.raises(KeyError):
        operate({"image": image}, "Blur", 0.5)


def test_policies_draw_what_they_should():
    image = {"image": picture(), "boxes": [[5, 5, 20, 20]]}
    strong = RandAugment(1, 30)
    seen = [strong.apply(image, np.random.default_rng(s)) for s in range(150)]
    same = sum((out["image"] == image["image"]).all() for out in seen)
    assert 2 <= same <= 40  # identity is one of fourteen; posterize and solarize by bin, autocontrast may leave alone
    assert any(not np.array_equal(out["boxes"], image["boxes"]) for out in seen)
    assert RandAugment(0).apply(image, np.random.default_rng(0)) is image
    for policy in (
        RandAugment(),
        TrivialAugment(),
        AutoAugment("imagenet"),
        AutoAugment("cifar10"),
        AutoAugment("svhn"),
    ):
        draws = [policy.apply(image, np.random.default_rng(s))["image"] for s in (0, 0, *range(1, 9))]
        np.testing.assert_array_equal(draws[0], draws[1])
        assert len({d.tobytes() for d in draws}) > 4
        assert all(d.dtype == np.uint8 and d.shape == image["image"].shape for d in draws)


def test_jitter_turns_hue_within_its_range():
    image = np.full((8, 8, 3), (200, 40, 40), np.uint8)
    rng = np.random.default_rng(0)
    hues = [ColorJitter(hue=0.1).apply({"image": image}, rng)["image"][0, 0] for _ in range(200)]
    turns = np.array([_hue(colour) for colour in hues])
    assert turns.min() < -0.09 and turns.max() > 0.09 and np.abs(turns).max() < 0.103
    plain = ColorJitter(0.4, 0.4, 0.4).apply({"image": image}, np.random.default_rng(1))["image"]
    again = ColorJitter(0.4, 0.4, 0.4, 0.0).apply({"image": image}, np.random.default_rng(1))["image"]
    np.testing.assert_array_equal(plain, again)


def _hue(colour: np.ndarray) -> float:
    import colorsys

    return (colorsys.rgb_to_hsv(*(colour / 255))[0] + 0.5) % 1 - 0.5


@pytest.mark.parametrize(
    "step", [Grayscale, GaussianBlur, Sharpness, Solarize, Posterize, Equalize, AutoContrast, Invert]
)
def test_steps_act_with_their_probability_and_repeat(step):
    sample = {"image": DARK, "label": 1}
    rng = np.random.default_rng(0)
    acted = sum(step(0.3).apply(sample, rng) is not sample for _ in range(400))
    assert 80 < acted < 160  # 120 expected, four standard deviations of 9.2
    one, two = (step(1.0).apply(sample, np.random.default_rng(3))["image"] for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_erasing_fills_with_a_colour_or_noise():
    image = picture()
    out = RandomErasing(1.0, value=(1, 2, 3)).apply({"image": image}, np.random.default_rng(0))["image"]
    assert (out[(out != image).any(2)] == (1, 2, 3)).all() and (out != image).any()
    noise = [
        RandomErasing(1.0, value=None).apply({"image": image}, np.random.default_rng(s))["image"] for s in (0, 0, 1)
    ]
    np.testing.assert_array_equal(noise[0], noise[1])
    assert (noise[0] != noise[2]).any()
