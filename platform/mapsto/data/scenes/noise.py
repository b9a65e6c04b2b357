"""Two tileable noise fields, made once per process, and how to look them up at any point."""

from functools import cache

import cv2
import numpy as np

from mapsto.data.scenes.shapes import Floats

SIDE = 512  # texels per tile
UNIT = 64  # texels per unit of length, so a tile repeats every 8 units


def _fractal(rng: np.random.Generator) -> Floats:
    """Value noise summed over seven octaves, tileable: (SIDE, SIDE), mean 0, standard deviation 0.5."""
    total = np.zeros((SIDE, SIDE), np.float32)
    for octave in range(3, 10):
        grid = np.pad(rng.standard_normal((2**octave, 2**octave)).astype(np.float32), 3, mode="wrap")
        step = SIDE // 2**octave
        wide = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        total += wide[3 * step : 3 * step + SIDE, 3 * step : 3 * step + SIDE] * np.float32(0.58 ** (octave - 3))
    return (total - total.mean()) / (2 * total.std())


@cache
def fractal_tile() -> Floats:
    """Four independent fractal fields: (SIDE, SIDE, 4)."""
    rng = np.random.default_rng(20240607)
    return np.stack([_fractal(rng) for _ in range(4)], -1)


@cache
def cell_tile() -> Floats:
    """Cellular noise (Worley 1996): (SIDE, SIDE, 4).

    Channels: height in [0, 1] (1 at a cell's middle), its slope along x and along y, the cell's own value in [-1, 1].
    """
    rng = np.random.default_rng(20240608)
    spots = (np.indices((16, 16)).reshape(2, -1).T + rng.uniform(0.1, 0.9, (256, 2))) * (SIDE / 16)
    seeds = np.ones((3 * SIDE, 3 * SIDE), np.uint8)
    values = np.zeros((3 * SIDE, 3 * SIDE), np.float32)
    own = rng.uniform(-1, 1, 256)
    for dy in (0, SIDE, 2 * SIDE):
        for dx in (0, SIDE, 2 * SIDE):
            y, x = (spots + np.array([dy, dx])).astype(int).T
            seeds[y, x], values[y, x] = 0, own
    _, label = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    by_label = np.zeros(int(label.max()) + 1, np.float32)
    by_label[label[seeds == 0]] = values[seeds == 0]
    # the distance to the nearest border between two cells, which is what rounds a pebble
    edge = (cv2.morphologyEx(label.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3))) == 0).astype(np.uint8)
    inside = np.minimum(cv2.distanceTransform(edge, cv2.DIST_L2, 5) / 11, 1)
    height = cv2.GaussianBlur(np.sqrt(1 - (1 - inside) ** 2), (0, 0), 1)
    slope_x, slope_y = (cv2.Sobel(height, cv2.CV_32F, 1, 0), cv2.Sobel(height, cv2.CV_32F, 0, 1))
    middle = (slice(SIDE, 2 * SIDE), slice(SIDE, 2 * SIDE))
    return np.stack([a[middle] for a in (height, slope_x, slope_y, by_label[label.astype(np.intp)])], -1).astype(
        np.float32
    )


def look_up(tile: Floats, u: Floats, v: Floats) -> Floats:
    """A tile's four channels at points (u, v), each (N,), in units of length -> (4, N)."""
    count = u.size
    rows = -(-count // 256)  # cv2.remap wants an image, and fewer than 32,767 columns
    places = np.zeros((2, rows * 256), np.float32)
    for place, coordinate in zip(places, (u, v), strict=True):
        texel = coordinate * UNIT
        place[:count] = texel - np.floor(texel / SIDE) * SIDE
    x, y = places.reshape(2, rows, 256)
    found = cv2.remap(tile, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return found.astype(np.float32, copy=False).reshape(-1, 4)[:count].T


def solid(p: Floats) -> Floats:
    """Fractal noise in space at points (3, N) -> (4, N), standard deviation about 0.5 and no seams."""
    tile = fractal_tile()
    total = look_up(tile, p[0], p[1]) + look_up(tile, p[1] + 3.7, p[2]) + look_up(tile, p[2] + 1.3, p[0] + 5.1)
    return total * np.float32(1 / np.sqrt(3))
