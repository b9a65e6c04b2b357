"""Measures of quality: in their ranges, against direct computation, and in the right order for images that are worse."""

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from mapsto.curate.quality import MEASURES, measure
from mapsto.data.scenes import numbered


def of(image: np.ndarray) -> dict[str, float]:
    return dict(zip(MEASURES, measure(image).tolist(), strict=True))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_every_measure_is_a_number_from_0_to_1(height, width, seed):
    values = measure(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
    assert values.shape == (6,) and np.isfinite(values).all() and (values >= 0).all() and (values <= 1).all()


def test_values_of_a_small_image():
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    found = of(image)
    assert np.isclose(found["contrast"], grey.std() / 128, rtol=1e-5)
    assert np.isclose(found["entropy"], entropy(np.bincount(grey.ravel(), minlength=256), base=2) / 8, rtol=1e-5)
    assert np.isclose(found["dark"], np.percentile(grey, 99, method="inverted_cdf") / 255)
    assert np.isclose(found["bright"], np.percentile(grey, 5, method="inverted_cdf") / 255)
    assert np.isclose(found["colour"], (image.max(2).astype(int) - image.min(2)).mean() / 255, rtol=1e-5)


def test_what_is_worse_measures_worse():
    image = numbered(5, 1, (200, 200)).image
    good, blurred = of(image), of(cv2.GaussianBlur(image, (0, 0), 4))
    assert blurred["sharpness"] < 0.3 * good["sharpness"]
    assert of((image * 0.1).astype(np.uint8))["dark"] < 0.11
    assert of((235 + image * 0.07).astype(np.uint8))["bright"] > 0.9
    assert of(np.full((50, 50, 3), 120, np.uint8))["contrast"] == 0
    assert of(np.repeat(image[:, :, :1], 3, 2))["colour"] == 0
    dimmed = of((image * 0.5).astype(np.uint8))  # sharpness is about edges, not about light
    assert abs(dimmed["sharpness"] - good["sharpness"]) < 0.25 * good["sharpness"]
