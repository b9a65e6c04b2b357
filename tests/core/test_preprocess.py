import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapsto.core.preprocess import Preprocess

SIDES = st.integers(3, 90)


@pytest.mark.parametrize("mode", ["crop", "stretch", "letterbox"])
@given(height=SIDES, width=SIDES, size=st.integers(4, 64))
@settings(max_examples=60, deadline=None)
def test_output_has_its_size_and_geometry_leads_back(mode, height, width, size):
    out, geometry = Preprocess(size, mode).resize(np.zeros((height, width, 3), np.uint8))
    assert out.shape == (size, size, 3)
    assert out.flags["C_CONTIGUOUS"]
    centre = geometry.matrix @ [size / 2, size / 2, 1]
    # the input's centre shows the original's centre, up to the rounding of an odd margin
    assert abs(centre[0] - width / 2) <= geometry.matrix[0, 0] / 2 + 1e-9
    assert abs(centre[1] - height / 2) <= geometry.matrix[1, 1] / 2 + 1e-9


def test_letterbox_keeps_the_aspect_and_pads_with_grey():
    out, geometry = Preprocess(20, "letterbox").resize(np.full((10, 20, 3), 200, np.uint8))
    assert np.all(out[5:15] == 200)
    assert np.all(out[:5] == 114)
    assert np.all(out[15:] == 114)
    box = geometry.boxes(np.array([[0.0, 5.0, 20.0, 15.0]]))
    assert np.allclose(box, [[0, 0, 20, 10]])


def test_boxes_come_back_to_the_original():
    _, geometry = Preprocess(32, "stretch").resize(np.zeros((64, 128, 3), np.uint8))
    assert np.allclose(geometry.boxes(np.array([[8.0, 8.0, 16.0, 24.0]])), [[32, 16, 64, 48]])


def test_masks_follow_the_pixels():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 255
    prepare = Preprocess(20, "crop")
    out, _ = prepare.resize(image, "nearest")
    mask = prepare.mask((image[..., 0] // 255).astype(np.uint8))
    assert np.array_equal(out[..., 0] // 255, mask)


def test_an_image_of_the_right_size_passes_through_untouched():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    out, _ = Preprocess(32)(image)
    assert np.array_equal(out, image)
