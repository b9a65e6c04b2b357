"""Open-set identification: who of the known is this, if any? (Phillips, Grother and Micheals, Evaluation Methods in Face
Recognition, Handbook of Face Recognition, 2011; Grother and Ngan, FRVT Performance of Face Identification Algorithms, NIST
IR 8009, 2014.)"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BLOCK = 1024
FPIR = (0.1, 0.01)


class Probes(NamedTuple):
    """What a search of the gallery answers first. `mated`: M float32, the best likeness of probes whose identity is in the
    gallery; `right`: M bool, whether it is their identity's; `others`: K float32, the best of probes whose identity is not."""

    mated: np.ndarray
    right: np.ndarray
    others: np.ndarray
    gallery: int
    """Pictures in the gallery, one per known identity."""


def probes(embedding: np.ndarray, identity: np.ndarray) -> Probes:
    """N×D of length 1 and N identities → half of the identities, drawn with a fixed seed, are known: the first row of each is
    the gallery, their other rows are mated probes; all rows of the other half are probes without a mate. Of equals the earlier
    row of the gallery is nearer."""
    names, first = np.unique(identity, return_index=True)
    drawn = np.sort(np.random.default_rng(0).permutation(len(names))[: (len(names) + 1) // 2])
    gallery = np.sort(first[drawn])
    known = np.isin(identity, names[drawn])
    asked = np.setdiff1d(np.arange(len(identity)), gallery)
    best, place = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
    for start in range(0, len(asked), BLOCK):
        like = embedding[asked[start : start + BLOCK]] @ embedding[gallery].T
        best.append(like.max(1))
        place.append(like.argmax(1))
    likeness, found = np.concatenate(best), identity[gallery[np.concatenate(place)]]
    mated = known[asked]
    return Probes(likeness[mated], (found == identity[asked])[mated], likeness[~mated], len(gallery))


def dir_at_fpir(found: Probes, fpir: float) -> tuple[float, float] | None:
    """The detection and identification rate, and the likeness above which an answer is believed: the largest share of mated
    probes that are answered rightly, in the first place, by a threshold at which at most `fpir` of the probes without a mate
    get any answer. None where there are too few probes for such a rate: below 1 / fpir without a mate, or none with one."""
    allowed = int(np.floor(fpir * len(found.others) + 1e-9))
    if not len(found.mated) or not 0 < allowed < len(found.others):
        return None
    refused = np.partition(found.others, len(found.others) - 1 - allowed)[len(found.others) - 1 - allowed]
    return float(((found.mated > refused) & found.right).mean()), float(refused)
