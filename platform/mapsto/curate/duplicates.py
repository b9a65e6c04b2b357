"""Which images show the same: equal ones by their bytes, near ones by fingerprints that share a band and then agree.

Near duplicates are found in two steps. Codes that agree in a whole band of bits are candidates (Manku et al., Detecting
Near-Duplicates for Web Crawling, WWW 2007); a band has about as many bits as the number of images has, so that an image
has few candidates however many there are, and the cost grows close to linearly. The least certain bits of the picture's own code
are tried both ways (Lv et al., Multi-Probe LSH, VLDB 2007). A candidate counts when seven of ten parts of the two small pictures
agree in their shapes and in their colours, whole or one as a part of the other: a caption or a logo spoils some parts, not most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .agreement import SURE, agreement
from .fingerprints import BITS, VIEWS, WHOLE, View, fine_rises, halved, likeness, packed, rises

CHUNK = 1 << 14
"""Pictures looked up at once: bounds the memory beside the index."""
FURTHEST = 32
"""Bits of 128 in which a candidate's code may differ. Of 4,320 planted copies one differed in as many, one in 29, the others in fewer."""
LIKE = 0.45
"""Least `likeness` of a candidate's rises. Of planted copies (cut, mirrored, brightened, darkened to a third, captioned, pale and captioned)
none was below 0.54; of the other candidates, one in a hundred of photographs and of drawn pictures is above, one in seven of garments on
like backgrounds."""
FINELY_LIKE = 0.38
"""The same on a finer grid. Two of the planted copies were at 0.33 and 0.35, crops, the others at 0.44 or more; of the other candidates of
photographs none was above 0.27, nine in ten of the garments' below 0.31, of the drawn pictures' 99 in 100 below 0.35."""
AT_ONCE = 4096
"""Candidates that are sifted at once: bounds the memory."""
FULLEST = 256
"""Candidates of one look-up in one band: of a fuller bucket the rest is passed over, and counted."""
FLIPS = 3
"""Least certain bits of a band that are tried both ways."""
SAME = 0.8
"""Least agreement of near duplicates, by default."""


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

    def at_least(self, score: float) -> Pairs:
        kept = self.score >= score
        return Pairs(self.first[kept], self.second[kept], self.score[kept], self.mirrored[kept], self.passed_over)


NO_PAIRS = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, bool), 0)


def near_pairs(thumbs: np.ndarray, least: float = SAME) -> Pairs:
    """The near duplicates among N small pictures (`fingerprints.thumbnail`: N×4,296 uint8; a memory map will do), none of them
    equal to another.

    Holds about 300 bytes a picture besides the pictures.
    """
    index = _Index(thumbs)
    found: dict[tuple[int, int], tuple[float, bool]] = {}
    for start in range(0, len(thumbs), CHUNK):
        part = np.ascontiguousarray(thumbs[start : start + CHUNK])
        for first, second, mirrored in index.candidates(part, start):
            for i, j in zip(first.tolist(), second.tolist(), strict=True):
                known = found.get((i, j), (least, False))
                if known[0] < SURE:
                    score = agreement(np.asarray(thumbs[i]), np.asarray(thumbs[j]), mirrored, least)
                    if score >= known[0]:
                        found[i, j] = score, mirrored
    pairs = sorted(found)
    columns = np.array(pairs, np.int64).reshape(-1, 2).T
    scores = np.array([found[pair][0] for pair in pairs], np.float32)
    flags = np.array([found[pair][1] for pair in pairs], bool)
    return Pairs(columns[0], columns[1], scores, flags, index.passed_over)


def groups(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`count` group numbers: pictures that pairs connect, directly or through others, share one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    return connected_components(links, directed=False)[1]


class _Index:
    """Codes sorted by each band's bits, and where the codes of each key begin in that order."""

    def __init__(self, thumbs: np.ndarray) -> None:
        count = len(thumbs)
        self.thumbs = thumbs
        self.width = int(np.clip(np.ceil(np.log2(max(count, 2))), 14, 24))
        self.bands = BITS // self.width
        self.powers = (1 << np.arange(self.width)).astype(np.uint32)
        self.packed = np.empty((count, 2), np.uint64)
        self.rises = np.empty((count, BITS), np.int8)
        keys = np.empty((self.bands, count), np.uint32)
        for start in range(0, count, CHUNK):
            rise = rises(halved(thumbs[start : start + CHUNK]))
            self.rises[start : start + len(rise)], bits = rise, rise > 0
            self.packed[start : start + len(bits)] = packed(bits)
            for band in range(self.bands):
                keys[band, start : start + len(bits)] = self._key(bits, band)
        self.order = np.argsort(keys, axis=1, kind="stable").astype(np.int32)
        self.starts = np.zeros((self.bands, (1 << self.width) + 1), np.int32)
        for band in range(self.bands):
            np.cumsum(np.bincount(keys[band], minlength=1 << self.width), out=self.starts[band, 1:])
        self.passed_over = 0

    def candidates(self, part: np.ndarray, start: int) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
        """For pictures numbered from `start`, first as they are, then mirrored: (numbers, greater numbers, whether mirrored) of
        pairs that are looked at, each once."""
        count = len(self.packed)
        near: dict[bool, list[np.ndarray]] = {False: [], True: []}
        small = halved(part)
        for view in VIEWS:
            rise = rises(small, view)
            bits, margins = rise > 0, np.abs(rise)
            own = packed(bits)
            hits = [
                self._near(keys, band, own, start)
                for band in range(self.bands)
                for keys in self._probes(bits, margins, band, sure=view != WHOLE)
            ]
            rows, others = np.divmod(np.unique(np.concatenate(hits)), count)
            if view == WHOLE:  # the same look-up from either side finds the same pairs
                rows, others = rows[others > rows + start], others[others > rows + start]
            like = self._alike(rise, small, view, rows, others)
            near[view.mirrored].append(np.stack([rows[like] + start, others[like]]))
        for mirrored, pairs in near.items():
            first, second = np.sort(np.concatenate(pairs, axis=1), axis=0)
            yield *np.divmod(np.unique(first * count + second), count), mirrored

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

    def _alike(
        self, rise: np.ndarray, small: np.ndarray, view: View, rows: np.ndarray, others: np.ndarray
    ) -> np.ndarray:
        """Which of the pairs (numbers in the part, numbers of all) are worth comparing, as bool."""
        like = np.zeros(len(rows), bool)
        for start in range(0, len(rows), AT_ONCE):
            some = np.arange(start, min(start + AT_ONCE, len(rows)))
            some = some[likeness(rise[rows[some]], self.rises[others[some]]) >= LIKE]
            if len(some):
                theirs = fine_rises(halved(np.asarray(self.thumbs[others[some]])))
                like[some] = likeness(fine_rises(small[rows[some]], view), theirs) >= FINELY_LIKE
        return like

    def _near(self, keys: np.ndarray, band: int, own: np.ndarray, start: int) -> np.ndarray:
        """Pairs (number in the part, of all: `first * count + second`) whose bands are these keys, and whose codes are near."""
        rows, others = self._look_up(keys, band)
        apart = np.bitwise_count(own[rows] ^ self.packed[others]).sum(1)
        kept = (apart <= FURTHEST) & (others != rows + start)
        return rows[kept] * len(self.packed) + others[kept]

    def _look_up(self, keys: np.ndarray, band: int) -> np.ndarray:
        """2×M int64: place in `keys`, number of a picture whose band has this key."""
        low = self.starts[band][keys]
        size = self.starts[band][keys + 1] - low
        self.passed_over += int(np.maximum(size - FULLEST, 0).sum())
        size = np.minimum(size, FULLEST)
        rows = np.repeat(np.arange(len(keys)), size)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(size) - size, size)
        return np.stack([rows, self.order[band][np.repeat(low, size) + within]])

    def _key(self, bits: np.ndarray, band: int) -> np.ndarray:
        return bits[:, self._columns(band)] @ self.powers

    def _columns(self, band: int) -> slice:
        return slice(band * self.width, (band + 1) * self.width)
