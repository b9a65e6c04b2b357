"""Which images show the same: equal ones by their bytes, near ones by fingerprints that share a band and then agree.

Near duplicates are found in two steps. Codes that agree in a whole band of bits are candidates (Manku et al., Detecting
Near-Duplicates for Web Crawling, WWW 2007); a band has about as many bits as the number of images has, so that an image
has few candidates however many there are, and the cost grows close to linearly. The least certain bits of the picture's own code
are tried both ways (Lv et al., Multi-Probe LSH, VLDB 2007). A candidate counts when seven of ten parts of the two small pictures
agree in their shapes and in their colours, whole or one as a part of the other: a caption or a logo spoils some parts, not most.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock
from typing import TypeVar

import numpy as np

from .agreement import SURE, agreement
from .fingerprints import BITS, VIEWS, WHOLE, View, fine_rises, halved, likeness, packed, rises

T = TypeVar("T")

CHUNK = 1 << 14
"""Pictures read at once."""
LOOKED_UP = 1 << 11
"""Pictures looked up at once: bounds the memory beside the index, of their candidates."""
FURTHEST = 32
"""Bits of 128 in which a candidate's code may differ. Of 4,320 planted copies one differed in as many, one in 29, the others in fewer."""
LIKE = 0.45
"""Least `likeness` of a candidate's rises. Of planted copies (cut, mirrored, brightened, darkened to a third, captioned, pale and captioned)
none was below 0.54; of the other candidates, one in a hundred of photographs and of drawn pictures is above, one in seven of garments on
like backgrounds."""
FINELY_LIKE = 0.38
"""The same on a finer grid. Two of the planted copies were at 0.33 and 0.35, crops, the others at 0.44 or more; of the other candidates of
photographs none was above 0.27, nine in ten of the garments' below 0.31, of the drawn pictures' 99 in 100 below 0.35."""
THREADS = 4
"""That look candidates up while others are compared, at most: each holds its own candidates."""
AT_ONCE = 4096
"""Candidates that are sifted at once: bounds the memory."""
FULLEST = 256
"""Candidates of one look-up in one band: of a fuller bucket the rest is passed over, and counted. So many of each kind are sifted of
what a picture's bands hold together, those of the nearest codes; the rest is counted, too."""
MOST = 16
"""Pairs of a picture with those of each kind. Two pictures that both have so many of the other's kind make a further pair only where it
joins clusters."""
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


def near_pairs(
    thumbs: np.ndarray,
    wanted: Sequence[float] = (SAME,),
    rows: np.ndarray | None = None,
    kinds: np.ndarray | None = None,
) -> Pairs:
    """The near duplicates among N small pictures, `rows` of `thumbs` (M×4,296 uint8, of `fingerprints.thumbnail`; a memory map
    will do; None: all of them), none equal to another. `wanted`: the agreements from which a pair counts, of each who asks. `kinds`: N uint8,
    what a picture counts as, its splits, for one.

    Of a picture with many near duplicates not every pair comes back. Of those that reach any of the agreements `wanted`, the clusters are
    those of all pairs, and a picture that is near to any of a kind is in a pair with one, in up to 16 of them (`MOST`). Holds about 300
    bytes a picture besides the pictures, and 21 for each pair, of which there are at most 16 a picture, kind and agreement wanted, and
    one a picture and agreement more.
    """
    rows = np.arange(len(thumbs)) if rows is None else rows
    kinds = np.zeros(len(rows), np.uint8) if kinds is None else kinds
    index, parts = _Index(thumbs, rows, kinds), [NO_PAIRS]
    bounds, enough = {least: _Bound(kinds) for least in sorted(wanted)}, max(SURE, *wanted)
    for looked_up in _ahead(index.candidates, range(0, len(rows), LOOKED_UP)):
        found: dict[tuple[int, int], tuple[float, bool]] = {}
        for first, second, mirrored in looked_up:
            for i, j in zip(first.tolist(), second.tolist(), strict=True):
                known = found.get((i, j))
                asking = [least for least, bound in bounds.items() if known is None and not bound.reached(i, j)]
                if not (asking if known is None else known[0] < enough):
                    continue
                floor = asking[0] if known is None else known[0]
                score = agreement(np.asarray(thumbs[rows[i]]), np.asarray(thumbs[rows[j]]), mirrored, floor, enough)
                if score >= floor:
                    found[i, j] = score, mirrored
                    for least, bound in bounds.items():
                        if score >= least and (known is None or known[0] < least):
                            bound.count(i, j)
        i_j, seen = np.array([*found], np.int64).reshape(-1, 2), [*found.values()]
        scores, flags = (np.array([each[k] for each in seen], kind) for k, kind in ((0, np.float32), (1, bool)))
        parts.append(Pairs(i_j[:, 0], i_j[:, 1], scores, flags, 0))
    return replace(joined(parts), passed_over=index.passed_over)


def _ahead(look_up: Callable[[int], T], starts: Iterable[int]) -> Iterator[T]:
    """What `look_up` gives for each, in order; a few threads are ahead (NumPy leaves them the cores)."""
    threads = min(THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[Future[T]] = deque()
        try:
            for start in starts:
                under_way.append(pool.submit(look_up, start))
                if len(under_way) > threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def joined(parts: Sequence[Pairs]) -> Pairs:
    """All pairs, in order; of one that several have that of the best score."""
    first, second, score, mirrored = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("first", "second", "score", "mirrored")
    )
    order = np.lexsort((-score, second, first))
    first, second = first[order], second[order]
    new = np.ones(len(order), bool)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    passed_over = sum(part.passed_over for part in parts)
    return Pairs(first[new], second[new], score[order][new], mirrored[order][new], passed_over)


class _Bound:
    """Which pairs need no look: clusters as a forest (Tarjan, Efficiency of a Good But Not Linear Set Union Algorithm, 1975), and how
    many pairs a picture has with each kind."""

    def __init__(self, kinds: np.ndarray) -> None:
        self.kinds = kinds
        self.parent = np.arange(len(kinds))
        self.pairs = np.zeros((len(kinds), int(kinds.max(initial=0)) + 1), np.uint8)

    def reached(self, i: int, j: int) -> bool:
        full = self.pairs[i, self.kinds[j]] >= MOST and self.pairs[j, self.kinds[i]] >= MOST
        return bool(full) and self._root(i) == self._root(j)

    def count(self, i: int, j: int) -> None:
        for one, other in ((i, j), (j, i)):
            held = int(self.pairs[one, self.kinds[other]])
            self.pairs[one, self.kinds[other]] = min(held + 1, MOST)
        self.parent[self._root(j)] = self._root(i)

    def _root(self, i: int) -> int:
        parent = self.parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i


def groups(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`count` group numbers: pictures that pairs connect, directly or through others, share one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    return connected_components(links, directed=False)[1]


class _Index:
    """Codes sorted by each band's bits, and where the codes of each key begin in that order."""

    def __init__(self, thumbs: np.ndarray, pictures: np.ndarray, kinds: np.ndarray) -> None:
        count = len(pictures)
        self.thumbs, self.pictures, self.kinds = thumbs, pictures, kinds
        self.width = int(np.clip(np.ceil(np.log2(max(count, 2))), 14, 24))
        self.bands = BITS // self.width
        self.powers = (1 << np.arange(self.width)).astype(np.uint32)
        self.packed = np.empty((count, 2), np.uint64)
        self.rises = np.empty((count, BITS), np.int8)
        keys = np.empty((self.bands, count), np.uint32)
        for start in range(0, count, CHUNK):
            rise = rises(halved(thumbs[pictures[start : start + CHUNK]]))
            self.rises[start : start + len(rise)], bits = rise, rise > 0
            self.packed[start : start + len(bits)] = packed(bits)
            for band in range(self.bands):
                keys[band, start : start + len(bits)] = self._key(bits, band)
        shuffled = np.random.default_rng(2007).permutation(count)  # of a full bucket, some of every kind are looked at
        self.order = shuffled[np.argsort(keys[:, shuffled], axis=1, kind="stable")].astype(np.int32)
        self.starts = np.zeros((self.bands, (1 << self.width) + 1), np.int32)
        for band in range(self.bands):
            np.cumsum(np.bincount(keys[band], minlength=1 << self.width), out=self.starts[band, 1:])
        self.passed_over = 0
        self._counting = Lock()

    def candidates(self, start: int) -> list[tuple[np.ndarray, np.ndarray, bool]]:
        """For pictures numbered from `start`, first as they are, then mirrored: (numbers, greater numbers, whether mirrored) of
        pairs that are looked at, each once. Threads may call it at once."""
        count = len(self.packed)
        near: dict[bool, list[np.ndarray]] = {False: [], True: []}
        small = halved(self.thumbs[self.pictures[start : start + LOOKED_UP]])
        for view in VIEWS:
            rise = rises(small, view)
            bits, margins = rise > 0, np.abs(rise)
            own = packed(bits)
            hits = [
                self._near(keys, band, own, start)
                for band in range(self.bands)
                for keys in self._probes(bits, margins, band, sure=view != WHOLE)
            ]
            rows, others = self._nearest(own, *np.divmod(np.unique(np.concatenate(hits)), count))
            if view == WHOLE:  # the same look-up from either side finds the same pairs
                rows, others = rows[others > rows + start], others[others > rows + start]
            like = self._alike(rise, small, view, rows, others)
            near[view.mirrored].append(np.stack([rows[like] + start, others[like]]))
        found = []
        for mirrored, pairs in near.items():
            first, second = np.sort(np.concatenate(pairs, axis=1), axis=0)
            found.append((*np.divmod(np.unique(first * count + second), count), mirrored))
        return found

    def _pass_over(self, count: int) -> None:
        with self._counting:
            self.passed_over += count

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
                theirs = fine_rises(halved(self.thumbs[self.pictures[others[some]]]))
                like[some] = likeness(fine_rises(small[rows[some]], view), theirs) >= FINELY_LIKE
        return like

    def _nearest(self, own: np.ndarray, rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of pairs (numbers in the part, ascending; numbers of all), those of the nearest codes, `FULLEST` of each kind for a
        picture."""
        if len(rows) <= FULLEST:
            return rows, others
        kind = rows * (int(self.kinds.max()) + 1) + self.kinds[others]
        apart = np.bitwise_count(own[rows] ^ self.packed[others]).sum(1)
        order = np.lexsort((apart, kind))
        first = np.searchsorted(kind[order], kind[order])  # where each one's kind begins
        kept = np.sort(order[np.arange(len(order)) - first < FULLEST])
        self._pass_over(len(rows) - len(kept))
        return rows[kept], others[kept]

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
        self._pass_over(int(np.maximum(size - FULLEST, 0).sum()))
        size = np.minimum(size, FULLEST)
        rows = np.repeat(np.arange(len(keys)), size)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(size) - size, size)
        return np.stack([rows, self.order[band][np.repeat(low, size) + within]])

    def _key(self, bits: np.ndarray, band: int) -> np.ndarray:
        return bits[:, self._columns(band)] @ self.powers

    def _columns(self, band: int) -> slice:
        return slice(band * self.width, (band + 1) * self.width)
