"""Classical features against direct loops and closed forms."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapsto.curate.features import CLASSICAL, colour, hog, lbp
from mapsto.data.scenes import numbered


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_every_feature_is_a_unit_vector_or_zero(height, width, seed):
    for name, size in (("colour", 128), ("hog", 1764), ("lbp", 59)):
        vector = CLASSICAL[name](noise(seed, height, width))
        length = np.linalg.norm(vector)
        assert vector.shape == (size,) and vector.dtype == np.float32 and (vector >= 0).all()
        assert np.isclose(length, 1, atol=1e-5) or (length == 0 and (name == "hog" or min(height, width) < 3))


def test_colour_is_opencvs_histogram_of_hue_saturation_and_value():
    image = noise(1, 50, 70)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    expected = cv2.calcHist([hsv], [0, 1, 2], None, [8, 4, 4], [0, 180, 0, 256, 0, 256]).ravel()
    np.testing.assert_allclose(colour(image), expected / np.linalg.norm(expected), rtol=1e-5)


def test_colour_of_pure_red_and_pure_cyan():
    image = np.zeros((10, 10, 3), np.uint8)
    image[:5, :, 0] = 255
    image[5:, :, 1:] = 255
    expected = np.zeros((8, 4, 4))
    expected[0, 3, 3] = expected[4, 3, 3] = np.sqrt(0.5)  # hues 0° and 180°
    np.testing.assert_allclose(colour(image), expected.ravel(), atol=1e-6)


def hog_by_loops(image: np.ndarray) -> np.ndarray:
    """Dalal and Triggs pixel by pixel, for a 64×64 image."""
    values = image.astype(float)
    cells = np.zeros((8, 8, 9))
    for y in range(64):
        for x in range(64):
            dx = values[y, min(x + 1, 63)] - values[y, max(x - 1, 0)]
            dy = values[min(y + 1, 63), x] - values[max(y - 1, 0), x]
            c = int(np.argmax(dx**2 + dy**2))
            size, angle = float(np.hypot(dx[c], dy[c])), float(np.degrees(np.arctan2(dy[c], dx[c]))) % 180
            for b in range(9):
                away = abs(angle - (20 * b + 10))
                in_angle = max(0.0, 1 - min(away, 180 - away) / 20)
                if not in_angle:
                    continue
                for cy in range(max(0, y // 8 - 1), min(8, y // 8 + 2)):
                    for cx in range(max(0, x // 8 - 1), min(8, x // 8 + 2)):
                        down, across = abs(y + 0.5 - (8 * cy + 4)) / 8, abs(x + 0.5 - (8 * cx + 4)) / 8
                        cells[cy, cx, b] += size * in_angle * max(0, 1 - down) * max(0, 1 - across)
    out = []
    for cy in range(7):
        for cx in range(7):
            block = np.concatenate([cells[cy, cx], cells[cy, cx + 1], cells[cy + 1, cx], cells[cy + 1, cx + 1]])
            block = np.minimum(block / np.linalg.norm(block), 0.2)
            out.append(block / np.linalg.norm(block))
    whole = np.concatenate(out)
    return whole / np.linalg.norm(whole)


def test_hog_is_what_direct_loops_give():
    image = cv2.GaussianBlur(noise(2, 64, 64), (0, 0), 2)
    np.testing.assert_allclose(hog(image), hog_by_loops(image), atol=2e-5)


def test_hog_of_a_ramp_votes_for_its_direction_only():
    ramp = np.repeat(np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 3, 64, 0), 3, 2)
    across = hog(ramp).reshape(49, 4, 9)  # gradient at 0°: half way between the bins at 10° and at 170°
    assert (across[..., 1:8] == 0).all() and np.allclose(across[..., 0], across[..., 8], rtol=1e-4)
    down = hog(ramp.transpose(1, 0, 2).copy()).reshape(49, 4, 9)  # 90°: the middle bin's centre
    assert (np.delete(down, 4, axis=2) < 1e-6).all() and (down[..., 4] > 0).all()
    assert not hog(np.full((30, 40, 3), 9, np.uint8)).any()


def lbp_by_loops(grey: np.ndarray) -> np.ndarray:
    """Ojala et al. pixel by pixel, with floating point interpolation on the circle."""
    height, width = grey.shape
    uniform = [c for c in range(256) if bin(c ^ ((c >> 1) | ((c & 1) << 7))).count("1") <= 2]
    counts = np.zeros(59)
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            code = 0
            for p in range(8):
                fy, fx = y - np.sin(np.pi * p / 4), x + np.cos(np.pi * p / 4)
                fy, fx = (round(v) if abs(v - round(v)) < 1e-9 else v for v in (fy, fx))
                y0, x0 = int(np.floor(fy)), int(np.floor(fx))
                ty, tx = fy - y0, fx - x0
                value = sum(
                    w * grey[y0 + i, x0 + j]
                    for i, j, w in (
                        (0, 0, (1 - ty) * (1 - tx)),
                        (0, 1, (1 - ty) * tx),
                        (1, 0, ty * (1 - tx)),
                        (1, 1, ty * tx),
                    )
                    if w
                )
                code |= int(value >= grey[y, x] - 1e-9) << p
            counts[uniform.index(code) if code in uniform else 58] += 1
    return counts / np.linalg.norm(counts)


def test_lbp_is_what_direct_loops_give():
    image = cv2.GaussianBlur(noise(3, 40, 44), (0, 0), 1)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float)
    # the weights are rounded to 1024ths: a few ties of hundreds of comparisons may fall otherwise
    np.testing.assert_allclose(lbp(image), lbp_by_loops(grey), atol=0.01)


def test_lbp_of_one_colour_is_one_pattern_and_brightness_changes_nothing():
    flat = lbp(np.full((20, 30, 3), 77, np.uint8))
    assert flat.max() == 1 and np.count_nonzero(flat) == 1
    image = noise(4, 60, 60) // 2
    np.testing.assert_allclose(lbp(image), lbp(image + 100), atol=0.02)


@pytest.mark.parametrize("name", ["colour", "hog"])
def test_a_smaller_copy_is_nearer_than_another_image(name):
    look = CLASSICAL[name]
    one, other = numbered(5, 1, (160, 160)).image, numbered(5, 2, (160, 160)).image
    copy = cv2.resize(one, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    assert look(one) @ look(copy) > look(one) @ look(other)


def test_lbp_knows_a_texture_again_in_another_place():
    smooth, rough = cv2.GaussianBlur(noise(6, 100, 200), (0, 0), 3), noise(6, 100, 200)
    left, right = lbp(smooth[:, :100]), lbp(smooth[:, 100:])
    assert left @ right > 0.95 > left @ lbp(rough[:, :100])
