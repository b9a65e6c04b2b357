"""Classical features of an image, for similarity search without a model: its colours, its edges, its texture.

Each is a float32 vector of unit length, or of zeros where an image has none (an image of one colour has no edges).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from ..core.codecs import fit

LONGEST = 256
"""Longest side at which colours and texture are looked at, pixels."""
HUES, SATURATIONS, VALUES = 8, 4, 4
HOG_SIDE, CELL, ANGLES = 64, 8, 9
CLIP = 0.2
"""Largest share of a HOG block's length that one of its values may have (L2-Hys)."""
NEIGHBOURS = 8
UNIFORM = NEIGHBOURS * (NEIGHBOURS - 1) + 2
"""Patterns of 8 neighbours with at most two changes around the circle: 58."""


def colour(image: np.ndarray) -> np.ndarray:
    """H×W×3 uint8 RGB → 128 float32: the joint histogram of hue (8 bins), saturation (4) and value (4), hue slowest."""
    hsv = cv2.cvtColor(fit(image, LONGEST), cv2.COLOR_RGB2HSV)  # hue in 0..179
    hue, saturation, value = (hsv[..., k].astype(np.int64) for k in range(3))
    bins = (hue * HUES // 180 * SATURATIONS + saturation * SATURATIONS // 256) * VALUES + value * VALUES // 256
    return _unit(np.bincount(bins.ravel(), minlength=HUES * SATURATIONS * VALUES))


def hog(image: np.ndarray) -> np.ndarray:
    """H×W×3 uint8 RGB → 1,764 float32: histograms of oriented gradients of the image at 64×64 pixels.

    Dalal and Triggs, Histograms of Oriented Gradients for Human Detection, 2005: [-1, 0, 1] differences of the channel whose
    gradient is largest, 9 unsigned orientations, votes shared between neighbouring orientations and between neighbouring
    8×8 cells, 2×2 cells to a block, L2-Hys. Blocks are not weighted by a Gaussian; beyond the edge the edge's pixels repeat.
    """
    shrinks = image.shape[0] * image.shape[1] > HOG_SIDE**2
    filter = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    small = cv2.resize(image, (HOG_SIDE, HOG_SIDE), interpolation=filter).astype(np.float32)
    padded = np.pad(small, ((1, 1), (1, 1), (0, 0)), mode="edge")
    down, across = padded[2:, 1:-1] - padded[:-2, 1:-1], padded[1:-1, 2:] - padded[1:-1, :-2]
    strongest = np.argmax(down**2 + across**2, axis=2)[..., None]
    dy, dx = (np.take_along_axis(d, strongest, 2)[..., 0] for d in (down, across))
    size = np.hypot(dx, dy)
    place = np.arctan2(dy, dx) % np.pi * (ANGLES / np.pi) - 0.5  # in bins, from the first one's centre
    low = np.floor(place).astype(np.int64)
    share = (place - low).astype(np.float32)
    votes = np.zeros((ANGLES, HOG_SIDE, HOG_SIDE), np.float32)
    y, x = np.indices(low.shape)
    votes[low % ANGLES, y, x] = size * (1 - share)
    votes[(low + 1) % ANGLES, y, x] = size * share
    cells = (_SHARES @ votes @ _SHARES.T).transpose(1, 2, 0)
    corners = (cells[:-1, :-1], cells[:-1, 1:], cells[1:, :-1], cells[1:, 1:])
    blocks = np.concatenate(corners, axis=2).reshape(-1, 4 * ANGLES)
    clipped = np.minimum(_each_unit(blocks), CLIP)
    return _unit(_each_unit(clipped).ravel())


def lbp(image: np.ndarray) -> np.ndarray:
    """H×W×3 uint8 RGB, at least 3×3 → 59 float32: how often each uniform local binary pattern of 8 neighbours at radius 1
    occurs in the grey image; the last counts all that are not uniform. Zeros for an image with a side below 3.

    Ojala, Pietikäinen and Mäenpää, Multiresolution Gray-Scale and Rotation Invariant Texture Classification with Local Binary
    Patterns, 2002. Neighbours between pixels are interpolated, in whole numbers: a flat region has no noise of rounding.
    """
    grey = cv2.cvtColor(fit(image, LONGEST), cv2.COLOR_RGB2GRAY).astype(np.int32)
    height, width = grey.shape
    if min(height, width) < 3:
        return np.zeros(UNIFORM + 1, np.float32)

    def at(dy: int, dx: int) -> np.ndarray:
        return grey[1 + dy : height - 1 + dy, 1 + dx : width - 1 + dx]

    centre, codes = at(0, 0), np.zeros((height - 2, width - 2), np.int32)
    for bit, (dy, dx) in enumerate(_CIRCLE):
        if dy and dx:
            near, side, far = _WEIGHTS
            value = near * centre + side * (at(dy, 0) + at(0, dx)) + far * at(dy, dx)
        else:
            value = _ONE * at(dy, dx)
        codes |= (value >= _ONE * centre).astype(np.int32) << bit
    return _unit(np.bincount(_PATTERNS[codes].ravel(), minlength=UNIFORM + 1))


CLASSICAL: dict[str, Callable[[np.ndarray], np.ndarray]] = {"colour": colour, "hog": hog, "lbp": lbp}


def _unit(vector: np.ndarray) -> np.ndarray:
    return _each_unit(vector[None].astype(np.float32))[0]


def _each_unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def _cell_shares() -> np.ndarray:
    """8×64 float32: how much of a pixel's vote each of a row's cells gets, by the distance of their centres."""
    centres = (np.arange(HOG_SIDE // CELL) + 0.5) * CELL
    distance = np.abs(centres[:, None] - (np.arange(HOG_SIDE) + 0.5))
    return np.clip(1 - distance / CELL, 0, None).astype(np.float32)


def _pattern_table() -> np.ndarray:
    """Code of 8 bits → number of its pattern, 256 int64: the uniform ones by code, then one for all others."""
    codes = np.arange(2**NEIGHBOURS)
    bits = codes[:, None] >> np.arange(NEIGHBOURS) & 1
    uniform = (bits != np.roll(bits, 1, axis=1)).sum(1) <= 2
    return np.where(uniform, np.cumsum(uniform) - 1, UNIFORM)


_SHARES = _cell_shares()
_PATTERNS = _pattern_table()
_CIRCLE = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
"""(down, across) of the neighbours, counterclockwise from the right."""
_ONE = 1024
_WEIGHTS = (88, 212, 512)
"""Of the bilinear interpolation at √½ pixels down and across, in 1024ths: the centre, each side's pixel, the corner's."""
