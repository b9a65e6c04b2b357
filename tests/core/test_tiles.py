"""Large pictures as tiles: nothing lost, no seam."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapsto.core.tiles import Tiles


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([32, 48, 64]), st.integers(8, 16))
def test_tiles_put_together_are_the_picture(height, width, size, overlap):
    image = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)
    tiles = Tiles(height, width, size, overlap)
    cut = tiles.cut(image)
    assert cut.shape == (len(tiles), size, size, 3)
    assert np.array_equal(tiles.join(cut), image)


@given(st.integers(65, 2000), st.integers(8, 32))
def test_neighbours_share_the_overlap_and_the_borders_are_reached(length, overlap):
    starts = sorted({x for _, x in Tiles(10, length, 64, overlap).corners})
    assert starts[0] == 0 and starts[-1] == length - 64
    assert max(np.diff(starts)) <= 64 - overlap
    assert len(starts) == -(-(length - overlap) // (64 - overlap))


def test_tiles_that_disagree_fade_into_each_other():
    tiles = Tiles(64, 112, 64, 16)
    assert tiles.corners == [(0, 0), (0, 48)]
    joined = tiles.join(np.stack([np.full((64, 64, 3), value, np.uint8) for value in (0, 160)]))
    steps = np.diff(joined[0, :, 0].astype(int))
    assert (joined[:, :52] == 0).all() and (joined[:, 60:] == 160).all()
    assert steps.min() >= 0 and steps.max() <= 160 / 8 + 1


def test_a_side_shorter_than_a_tile_is_reflected():
    image = np.arange(20, dtype=np.uint8)[None, :, None].repeat(3, 2).repeat(40, 0)
    (tile,) = Tiles(40, 20, 40, 8).cut(image)
    assert tile[0, :, 0].tolist() == [*range(20), *range(18, -1, -1), 1]


@pytest.mark.parametrize(("height", "width", "count"), [(64, 64, 1), (65, 64, 2), (160, 112, 6)])
def test_how_many(height, width, count):
    assert len(Tiles(height, width, 64, 16)) == count
