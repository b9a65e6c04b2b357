"""Windows cover an image from edge to edge, overlap as they should, and leave a small one whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mapsto.core.codecs import encode
from mapsto.core.preprocess import Preprocess
from mapsto.core.windows import Windows, looks


@given(st.integers(1, 700), st.integers(1, 700), st.integers(32, 300), st.floats(0, 0.85))
@settings(deadline=None)
def test_every_pixel_is_seen_and_neighbours_overlap(height: int, width: int, size: int, overlap: float) -> None:
    windows = Windows(size=size, overlap=overlap).cut(height, width)
    for low, side, length in (("left", "width", width), ("top", "height", height)):
        starts = sorted({getattr(window, low) for window in windows})
        assert {getattr(window, side) for window in windows} == {min(size, length)}
        assert starts[0] == 0 and starts[-1] + min(size, length) == length
        shared = [a + min(size, length) - b for a, b in pairwise(starts)]
        assert all(value >= overlap * size - 1 for value in shared)  # starts are whole pixels
        assert len(starts) == 1 or len(starts) <= 2 + (length - size) / (size * (1 - overlap) - 1)
    assert (len(windows) == 1) == (height <= size and width <= size)
    assert len(set(windows)) == len(windows)


def test_each_window_is_prepared_as_an_image_of_its_own() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    preprocess, windows = Preprocess(32, "letterbox"), Windows(size=40, overlap=0.5)
    seen, original = looks(encode(image, "png"), preprocess, windows)
    np.testing.assert_array_equal(original, image)
    parts = windows.cut(50, 90)
    assert seen.shape == (len(parts), 32, 32, 3) and len(parts) == 2 * 4
    for part, window in zip(seen, parts, strict=True):
        cut = image[window.top : window.top + window.height, window.left : window.left + window.width]
        np.testing.assert_array_equal(part, preprocess(cut)[0])
