"""Which images show the same: equal ones by their bytes, near ones by fingerprints that share a band and then agree.

Near duplicates are found in two steps. Codes that agree in a whole band of bits are candidates (Manku et al., Detecting
Near-Duplicates for Web Crawling, WWW 2007); a band has about as many bits as the number of images has, so that an image
has few candidates however many there are, and the cost grows close to linearly. The least certain bits of the picture's own code
are tried both ways (Lv et al., Multi-Probe LSH, VLDB 2007). A candidate counts when most parts of the two small pictures agree,
whole or one as a part of the other: a caption or a logo spoils some parts, not most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from .fingerprints import BITS, SIDE, codes, packed, variants

CHUNK = 1 << 14
"""Pictures looked up at once: bounds the memory beside the index."""
FURTHEST = 40
"""Bits of 128 in which a candidate's code may differ."""
FULLEST = 256
"""Candidates of one look-up in one band: of a fuller bucket the rest is passed over, and counted."""
FLIPS = 3
"""Least certain bits of a band that are tried both ways."""
SAME = 0.75
"""Least agreement of near duplicates, by default."""
SURE = 0.95
"""Agreement from which no better alignment is looked for."""
_GRID = 5
_NOISE = 30.0
"""Squared grey levels, summed over a part: what decoding and resizing leave."""
_FLAT = 10 * _NOISE
"""Parts with less than this in both pictures say nothing: skies are alike."""
_TELLING = 5
"""Fewest parts that must say something."""


@dataclass(frozen=True)
class Pairs:
    """Near duplicates: picture `first[k]` and picture `second[k]` (first < second) agree to `score[k]`, -1..1."""

    first: np.ndarray
    second: np.ndarray
    score: np.ndarray
    mirrored: np.ndarray
    passed_over: int
    """Candidates left unlooked at, in buckets that are too full."""

    def __len__(self) -> int:
        return len(self.first)


def near_pairs(thumbs: np.ndarray, least: float = SAME) -> Pairs:
    """The near duplicates among N×32×32 uint8 grey pictures (a memory map will do), none of them equal to another.

    Holds about 100 bytes a picture besides the pictures.
    """
    index = _Index(thumbs)
    found: dict[tuple[int, int], tuple[float, bool]] = {}
    for start in range(0, len(thumbs), CHUNK):
        part = np.ascontiguousarray(thumbs[start : start + CHUNK])
        for first, second, mirrored in index.candidates(part, start):
            for i, j in zip(first.tolist(), second.tolist(), strict=True):
                known = found.get((min(i, j), max(i, j)), (least, False))
                if known[0] >= SURE:
                    continue
                a = thumbs[i][:, ::-1] if mirrored else thumbs[i]
                score = agreement(np.ascontiguousarray(a), np.ascontiguousarray(thumbs[j]))
                if score >= known[0]:
                    found[min(i, j), max(i, j)] = score, mirrored
    pairs = sorted(found)
    columns = np.array(pairs, np.int64).reshape(-1, 2).T
    scores = np.array([found[pair][0] for pair in pairs], np.float32)
    flags = np.array([found[pair][1] for pair in pairs], bool)
    return Pairs(columns[0], columns[1], scores, flags, index.passed_over)


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """How much two 32×32 uint8 grey pictures show the same, -1..1: the median correlation over 5×5 parts, of the best of
    three alignments (whole on whole; either as 95 % of the other's sides, where it fits best)."""
    small = SIDE - 2
    best = _parts_alike(a, b)
    for whole, part in ((a, b), (b, a)):
        shrunk = cv2.resize(part, (small, small), interpolation=cv2.INTER_AREA)
        fits = cv2.matchTemplate(whole, shrunk, cv2.TM_CCOEFF_NORMED)
        y, x = np.unravel_index(int(np.argmax(fits)), fits.shape)
        best = max(best, _parts_alike(whole[y : y + small, x : x + small], shrunk))
    return best


def groups(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`count` group numbers: pictures that pairs connect, directly or through others, share one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    return connected_components(links, directed=False)[1]


class _Index:
    """Codes sorted by each band's bits."""

    def __init__(self, thumbs: np.ndarray) -> None:
        count = len(thumbs)
        self.width = int(np.clip(np.ceil(np.log2(max(count, 2))), 14, 24))
        self.bands = BITS // self.width
        self.powers = (1 << np.arange(self.width)).astype(np.uint32)
        self.packed = np.empty((count, 2), np.uint64)
        keys = np.empty((self.bands, count), np.uint32)
        for start in range(0, count, CHUNK):
            bits = codes(thumbs[start : start + CHUNK])
            self.packed[start : start + len(bits)] = packed(bits)
            for band in range(self.bands):
                keys[band, start : start + len(bits)] = self._key(bits, band)
        self.order = np.argsort(keys, axis=1, kind="stable").astype(np.int32)
        self.keys = np.take_along_axis(keys, self.order, axis=1)
        self.passed_over = 0

    def candidates(self, part: np.ndarray, start: int) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
        """For pictures numbered from `start`: arrays of (their numbers, other pictures' numbers, whether mirrored)."""
        count = len(self.packed)
        for number, (bits, margins, mirrored) in enumerate(variants(part)):
            own = packed(bits)
            hits: list[np.ndarray] = []
            for band in range(self.bands):
                for keys in self._probes(bits, margins, band, sure=number != 0):
                    hits.append(self._look_up(keys, band))
            rows, others = np.concatenate(hits, axis=1)
            rows, others = np.divmod(np.unique(rows * count + others), count)
            apart = np.bitwise_count(own[rows] ^ self.packed[others]).sum(1)
            near = (apart <= FURTHEST) & (others != rows + start)
            if number == 0:  # the same look-up from either side finds the same pairs
                near &= others > rows + start
            yield rows[near] + start, others[near], mirrored

    def _probes(self, bits: np.ndarray, margins: np.ndarray, band: int, sure: bool) -> Iterator[np.ndarray]:
        keys = self._key(bits, band)
        if sure:
            yield keys
            return
        doubtful = np.argsort(margins[:, self._columns(band)], axis=1)[:, :FLIPS].astype(np.uint32)
        for choice in range(1 << FLIPS):
            flips = np.zeros(len(bits), np.uint32)
            for k in range(FLIPS):
                if choice >> k & 1:
                    flips |= np.uint32(1) << doubtful[:, k]
            yield keys ^ flips

    def _look_up(self, keys: np.ndarray, band: int) -> np.ndarray:
        """2×M int64: place in `keys`, number of a picture whose band has this key."""
        low = np.searchsorted(self.keys[band], keys, "left")
        size = np.searchsorted(self.keys[band], keys, "right") - low
        self.passed_over += int(np.maximum(size - FULLEST, 0).sum())
        size = np.minimum(size, FULLEST)
        rows = np.repeat(np.arange(len(keys)), size)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(size) - size, size)
        return np.stack([rows, self.order[band][np.repeat(low, size) + within]])

    def _key(self, bits: np.ndarray, band: int) -> np.ndarray:
        return bits[:, self._columns(band)] @ self.powers

    def _columns(self, band: int) -> slice:
        return slice(band * self.width, (band + 1) * self.width)


def _parts_alike(a: np.ndarray, b: np.ndarray) -> float:
    """The median over those of 5×5 parts of two equally large pictures that are not flat of their correlation; 0 where too few
    are."""
    x, y = _by_parts(a), _by_parts(b)
    of_x, of_y = (x * x).sum((1, 3)), (y * y).sum((1, 3))
    telling = np.maximum(of_x, of_y) > _FLAT
    if telling.sum() < _TELLING:
        return 0.0
    alike = ((x * y).sum((1, 3)) + _NOISE) / np.sqrt((of_x + _NOISE) * (of_y + _NOISE))
    return float(np.median(alike[telling]))


def _by_parts(picture: np.ndarray) -> np.ndarray:
    """5×h×5×w float32, each part around its mean; the last rows and columns that make no whole part are left out."""
    side = picture.shape[0] // _GRID
    parts = picture[: side * _GRID, : side * _GRID].astype(np.float32).reshape(_GRID, side, _GRID, side)
    return parts - parts.mean((1, 3), keepdims=True)
