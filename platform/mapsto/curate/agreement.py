"""Whether two small pictures show the same: their shapes and their colours, part by part, through what copies go through."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .fingerprints import COLOURS, SIDE, colours, greys

SURE = 0.95
"""Agreement in shapes from which no better alignment is looked for, unless more is asked for."""
PART = 0.95
"""Share of the sides that a part has, as which one picture is looked for in the other."""
PARTS = (PART, *(k / 100 for k in range(92, 44, -4)))
"""The same where one picture may be a larger crop of the other."""
_GRID = 5
_SPOILT = 0.3
"""Share of the parts that may disagree."""
_NOISE = 0.8
"""Squared grey levels of a pixel that decoding and resizing leave."""
_FLAT = 10 * _NOISE
"""Parts with less than this in both pictures say nothing: skies are alike."""
_CLIPPED = 5
"""Grey levels so near to black or white may have been cut off."""
_MOST_CLIPPED = 0.3
"""Parts of which more pixels than this are cut off, in either picture, say nothing: brightening burns them out."""
_UNLIKE = 0.5
"""Correlation below which a part that fits best fits not at all."""
_TELLING = 5
"""Fewest parts that must say something."""
_GREY = 1.0
"""Largest Cb or Cr of a picture without colour."""
_BURNT = 235.0
"""Largest of R, G and B from which part of a pixel is likely cut off."""
_FEWEST = 20
"""Pixels, the darkest, from which brightening is told where most are burnt out."""
_APART = 8.0
"""Grey levels by which two pixels differ at least that tell a gain."""
_GAIN = 2.0
"""Largest gain of brightening; 1 over it the smallest."""
_OTHER_COLOUR = 50.0
"""Distance in (Cr, Cb) at which colours do not agree at all."""
_TO_RGB = np.array([[1, 1, 1], [1.402, -0.714136, 0], [0, -0.344136, 1.772]], np.float32)
"""Rows of (Y, Cr, Cb) → rows of RGB (ITU-T T.871)."""
_FROM_RGB = np.linalg.inv(_TO_RGB)


def agreement(a: np.ndarray, b: np.ndarray, mirrored: bool = False, least: float = -1.0, enough: float = SURE) -> float:
    """How much two small pictures (4,296 uint8) show the same, up to 1: the smaller of their agreement in shapes and in colours,
    of the best of three alignments (whole on whole; either as 95 % of the other's sides, where it fits best).

    Shapes: the correlation that seven of ten parts of a 5×5 grid reach or exceed. Colours: 1 less the difference that seven of ten
    pixels of the 10×10 stay below, in units of 50 levels; a picture without any colour agrees with all.
    Below `least` it may be too high: colours are not looked at where shapes do not agree. Above `enough` it may be too low: no better
    alignment is looked for.
    """
    turn = -1 if mirrored else 1
    grey_a, cells_a = np.ascontiguousarray(greys(a)[:, ::turn]), _cells(a)[:, ::turn]
    return _aligned(grey_a, greys(b), cells_a, _cells(b), (PART,), least, enough)


def turned_agreement(a: np.ndarray, b: np.ndarray, least: float = -1.0, enough: float = SURE) -> float:
    """The same of the best of eight turns (by quarters, and mirrored), and with either as a part of the other down to 48 % of its
    sides, which keeps their proportion."""
    best = -1.0
    for mirrored in (1, -1):
        for quarters in range(4):
            grey, cells = (
                np.ascontiguousarray(np.rot90(each[:, ::mirrored], quarters)) for each in (greys(a), _cells(a))
            )
            best = max(best, _aligned(grey, greys(b), cells, _cells(b), PARTS, max(least, best), enough))
            if best >= enough:
                return best
    return best


def _aligned(
    grey_a: np.ndarray,
    grey_b: np.ndarray,
    cells_a: np.ndarray,
    cells_b: np.ndarray,
    parts: Sequence[float],
    least: float,
    enough: float,
) -> float:
    telling = _in_range(grey_a) & _in_range(grey_b)
    shapes, hues = _shapes_agree(grey_a, grey_b, telling), (cells_a, cells_b)
    for share in parts if shapes < enough else ():
        small = round(SIDE * share)
        for whole, part, of_whole, of_part in (
            (grey_a, grey_b, cells_a, cells_b),
            (grey_b, grey_a, cells_b, cells_a),
        ):
            shrunk = cv2.resize(part, (small, small), interpolation=cv2.INTER_AREA)
            fits = cv2.matchTemplate(whole, shrunk, cv2.TM_CCOEFF_NORMED)
            if not fits.max() > _UNLIKE:
                continue
            y, x = _peak(fits)
            if share == PART:
                found = _shapes_agree(_window(whole, y / SIDE, x / SIDE, share), part, telling)
            else:  # as small as it is in the whole: enlarged, it would lack what the part shows
                window = _window(whole, y / SIDE, x / SIDE, share, small)
                found = _shapes_agree(window, shrunk, _in_range(window) & _in_range(shrunk))
            if found > shapes:
                shapes, hues = found, (_window(of_whole, y / SIDE, x / SIDE, share), of_part)
    return min(shapes, _colours_agree(*hues)) if shapes >= least else shapes


def _in_range(grey: np.ndarray) -> np.ndarray:
    """25 bool: the parts of a grey picture that are not mostly cut off at black or white."""
    clipped = (grey <= _CLIPPED) | (grey >= 255 - _CLIPPED)
    return _by_parts(clipped).mean(1) <= _MOST_CLIPPED


def _shapes_agree(a: np.ndarray, b: np.ndarray, telling: np.ndarray) -> float:
    """The correlation of two equally large grey pictures that all but the worst parts reach, over the telling ones that are not
    flat, or all that are not; 0 where too few are."""
    x, y = _by_parts(a), _by_parts(b)
    x -= x.mean(1, keepdims=True)
    y -= y.mean(1, keepdims=True)
    of_x, of_y, of_both = (np.einsum("pk,pk->p", *pair) / x.shape[1] for pair in ((x, x), (y, y), (x, y)))
    shaped = np.maximum(of_x, of_y) > _FLAT
    telling = shaped & telling if (shaped & telling).sum() >= _TELLING else shaped
    if telling.sum() < _TELLING:
        return 0.0
    alike = (of_both + _NOISE) / np.sqrt((of_x + _NOISE) * (of_y + _NOISE))
    return _quantile(alike[telling], _SPOILT)


def _colours_agree(a: np.ndarray, b: np.ndarray) -> float:
    """The agreement of two pictures in Y, Cr, Cb (10×10×3 float32, colours around 0) that all but the worst pixels reach, after
    the darker one has been brightened as the other is: one gain and one offset for all of it, cut off at white."""
    if min(np.abs(a[..., 1:]).max(), np.abs(b[..., 1:]).max()) <= _GREY:
        return 1.0
    x, y = a.reshape(-1, 3), b.reshape(-1, 3)
    brightest = np.maximum((x @ _TO_RGB).max(1), (y @ _TO_RGB).max(1))
    sound = brightest <= max(_BURNT, np.sort(brightest)[_FEWEST - 1])
    gain = _slope(x[sound, 0][::2], y[sound, 0][::2])  # half of them: a quarter of the pairs
    if gain < 1:
        x, y, gain = y, x, 1 / gain
    offset = np.median(y[sound, 0] - gain * x[sound, 0])
    expected = np.clip(gain * (x @ _TO_RGB) + offset, 0, 255) @ _FROM_RGB
    apart = np.linalg.norm(expected[:, 1:] - y[:, 1:], axis=1) / np.sqrt(gain)
    return 1 - _quantile(apart, 1 - _SPOILT) / _OTHER_COLOUR


def _quantile(values: np.ndarray, share: float) -> float:
    """`np.quantile` of some ten numbers, without its forty microseconds of checks."""
    at = share * (len(values) - 1)
    below = int(at)
    low, high = np.sort(values)[[below, min(below + 1, len(values) - 1)]]
    return float(low + (high - low) * values.dtype.type(at - below))


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """How much faster y rises than x: the median over pairs of pixels (Theil and Sen), which a caption does not move."""
    first, second = np.triu_indices(len(x), 1)
    run, rise = x[second] - x[first], y[second] - y[first]
    apart = np.abs(run) > _APART
    return float(np.clip(np.median(rise[apart] / run[apart]), 1 / _GAIN, _GAIN)) if apart.any() else 1.0


def _cells(thumb: np.ndarray) -> np.ndarray:
    """A small picture → 10×10×3 float32: Y, Cr, Cb, the colours around 0."""
    luma = cv2.resize(greys(thumb), (COLOURS, COLOURS), interpolation=cv2.INTER_AREA)
    return np.concatenate([luma[..., None].astype(np.float32), colours(thumb).astype(np.float32) - 128], axis=-1)


def _by_parts(picture: np.ndarray) -> np.ndarray:
    """S×S[×C] → 25×k float32, a row for each part; the last rows and columns that make no whole part are left out."""
    side = picture.shape[0] // _GRID
    whole = picture[: side * _GRID, : side * _GRID].astype(np.float32)
    return whole.reshape(_GRID, side, _GRID, -1).swapaxes(1, 2).reshape(_GRID * _GRID, -1)


def _peak(fits: np.ndarray) -> tuple[float, float]:
    """(down, across) of the best fit, between pixels by the parabola through its neighbours."""
    y, x = divmod(int(np.argmax(fits)), fits.shape[1])
    return y + _vertex(fits[:, x], y), x + _vertex(fits[y], x)


def _vertex(values: np.ndarray, at: int) -> float:
    if not 0 < at < len(values) - 1:
        return 0.0
    before, here, after = (float(v) for v in values[at - 1 : at + 2])
    bend = before - 2 * here + after
    return float(np.clip((before - after) / 2 / bend, -0.5, 0.5)) if bend < 0 else 0.0


def _window(picture: np.ndarray, top: float, left: float, part: float, size: int | None = None) -> np.ndarray:
    """The part of a picture of this share of its sides that begins so far from its top and left (of 1), of so many pixels a side (None:
    enlarged to the picture's)."""
    side = picture.shape[0]
    size = size or side
    step = part * side / size
    shift = (step - 1) / 2  # pixels' centres
    to = np.array([[step, 0, left * side + shift], [0, step, top * side + shift]], np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, to, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
