"""Are two pictures of the same? Metrics of embeddings whose product is their likeness: retrieval, identification, and
verification over all pairs, over a list of pairs, or over identity-disjoint folds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..errors import UserError
from ..page import Page
from ..sample import Arrays, finite
from .folds import Pairs, drawn_folds, fold_accuracies, interval, listed_folds
from .identification import FPIR, dir_at_fpir, probes

BLOCK = 1024
FAR = (1e-2, 1e-3)
TABLED = (0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""False acceptance rates of the page's table."""
NEAREST = 4
"""Rows that the page shows beside one that is mistaken."""
POINTS = 200
"""Most points of the ROC curve."""


class VerificationMetrics:
    """auc, tar@far=..., recall@k, all in 0..1; dir@fpir=..., identification where half of the identities are unknown, where
    there are probes enough (`identification.probes`); and fold_accuracy with fold_error, its standard error, by the protocol
    of Labeled Faces in the Wild, where there are folds, and fold_largest, the largest one's share of the pairs. A single fold
    is decided by its own best threshold and has no fold_error.

    `key`: name in the batch of each row's identity, an int64. `pairs`: a list of pairs of pictures, which the batch names
    by `picture` (`picture_key`); without one, folds are drawn.
    """

    primary = "auc"
    mode: Literal["max", "min"] = "max"
    pairwise = True

    def __init__(self, key: str = "label", pairs: Pairs | None = None, ks: Sequence[int] = (1, 5)) -> None:
        self.key, self.pairs, self.ks = key, pairs, tuple(ks)

    def state(self, output: Arrays, batch: Arrays) -> dict[str, np.ndarray]:
        state = {
            "embedding": finite(np.asarray(output["embedding"], np.float32), "embed: the model's embedding"),
            "identity": np.asarray(batch[self.key], np.int64),
        }
        return state | ({"picture": np.asarray(batch["picture"], np.int64)} if self.pairs else {})

    def compute(self, states: Mapping[str, np.ndarray]) -> dict[str, float]:
        """UserError where no two rows are of one identity, or all are. `pairs_missing`: listed pairs of which a picture
        is not among the rows; where that is all, as it may be of training's own `val`, there is no fold_accuracy."""
        genuine, impostor = self._scores(states)
        out = {
            "auc": roc_auc(genuine, impostor),
            **{f"tar@far={far:g}": tar_at_far(genuine, impostor, far) for far in FAR},
            **{f"recall@{k}": v for k, v in recall(states["embedding"], states["identity"], self.ks).items()},
        }
        identified = probes(states["embedding"], states["identity"])
        out |= {f"dir@fpir={fpir:g}": found[0] for fpir in FPIR if (found := dir_at_fpir(identified, fpir))}
        folds, missing = self._folds(states)
        if folds:
            accuracies = fold_accuracies(folds)
            out["fold_accuracy"] = float(accuracies.mean())
            if spread := interval(accuracies):
                out["fold_error"] = spread[0]
            held = [len(same) for _, same in folds]
            out["fold_largest"] = max(held) / sum(held)
        return out | ({"pairs_missing": float(missing)} if self.pairs else {})

    def tables(self, states: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """UserError where of a list of pairs none is among the rows: it is of other pictures."""
        genuine, impostor = self._scores(states)
        folds, missing = self._folds(states)
        if self.pairs and not folds:
            raise UserError(
                f"{self.pairs.uri}: of its {missing:,} pairs none has both pictures among the {len(states['picture']):,} rows of this split "
                "(files are named <person>_<number>); set evaluate.split, or task.pairs to a list of these pictures"
            )
        accuracies = fold_accuracies(folds) if folds else np.empty(0)
        spread = interval(accuracies)
        edges = np.linspace(-1, 1, 41)
        identified = probes(states["embedding"], states["identity"])
        open_set = [(fpir, found) for fpir in FPIR if (found := dir_at_fpir(identified, fpir))]
        return {
            "identities": len(np.unique(states["identity"])),
            "pairs": {"same": len(genuine), "different": len(impostor)},
            "folds": {
                "from": "the list of pairs" if self.pairs else "identities drawn apart",
                "accuracies": accuracies.tolist(),
                "pairs": [[int(same.sum()), int((~same).sum())] for _, same in folds],
                "interval": list(spread[1]) if spread else [None, None],
                "missing": missing,
            },
            "scores": {
                "edges": edges.tolist(),
                "same": np.histogram(genuine.clip(-1, 1), edges)[0].tolist(),
                "different": np.histogram(impostor.clip(-1, 1), edges)[0].tolist(),
            },
            "roc": roc(genuine, impostor),
            "rates": [
                {"far": far, "tar": tar_at_far(genuine, impostor, far), "least": _least(highest_refused(impostor, far))}
                for far in TABLED
                if far * len(impostor) >= 1
            ],
            "open_set": {
                "gallery": identified.gallery,
                "mated": len(identified.mated),
                "others": len(identified.others),
                "rates": [{"fpir": fpir, "dir": rate, "least": _least(refused)} for fpir, (rate, refused) in open_set],
            },
        }

    def draw(self, page: Page, tables: Mapping[str, Any]) -> None:
        from .. import chart

        pairs, folds, open_set = tables["pairs"], tables["folds"], tables["open_set"]
        page.heading("Pairs")
        page.table(
            ("identities", "pairs of one identity", "of two"),
            [(tables["identities"], pairs["same"], pairs["different"])],
        )
        scores = tables["scores"]
        rows = zip(scores["edges"][:-1], scores["edges"][1:], scores["same"], scores["different"], strict=True)
        page.table(
            ("likeness from", "to", "one identity", "two"),
            [(round(a, 2), round(b, 2), s, d) for a, b, s, d in rows if s or d],
        )
        page.heading("Receiver operating characteristic")
        page.picture(chart.roc(tables["roc"]["far"], tables["roc"]["tar"]), "over all pairs")
        page.table(
            ("false acceptance rate at most", "true acceptance rate", "likeness at least"),
            [(f"{row['far']:g}", row["tar"], row["least"]) for row in tables["rates"]],
        )
        if open_set["rates"]:
            page.heading("Open-set identification")
            page.text(
                f"{open_set['gallery']:,} known identities with one picture each, {open_set['mated']:,} probes of them and "
                f"{open_set['others']:,} of others: the share of the first that are named rightly, where so many of the second are named at all."
            )
            page.table(
                (
                    "false positive identification rate at most",
                    "detection and identification rate",
                    "likeness at least",
                ),
                [(f"{row['fpir']:g}", row["dir"], row["least"]) for row in open_set["rates"]],
            )
        if folds["accuracies"]:
            page.heading("Folds")
            rows = zip(folds["pairs"], folds["accuracies"], strict=True)
            page.table(
                ("fold", "pairs of one identity", "of two", "accuracy"),
                [(k, *kinds, accuracy) for k, (kinds, accuracy) in enumerate(rows, 1)],
            )
            low, high = folds["interval"]
            told = "a single fold, decided by its own best threshold: no measure of others"
            if low is not None:
                told = f"95 % interval of the mean {low:.4f} to {high:.4f}"
            page.text(f"From {folds['from']}; {told}.")
            held = [sum(kinds) for kinds in folds["pairs"]]
            if max(held) > 2 * min(held):
                page.text(f"The folds hold {min(held):,} to {max(held):,} pairs, and the mean counts them alike.")
        if folds["missing"]:
            page.text(f"{folds['missing']:,} listed pairs name a picture that is not in this split: not counted.")

    def badness(self, states: Mapping[str, np.ndarray]) -> np.ndarray:
        """How much liker the likest row of another identity is than the likest of the same; 0 where it is not."""
        out = []
        for start, like, same in _blocks(states["embedding"], states["identity"]):
            rows = np.arange(len(like))
            own = same.copy()
            own[rows, start + rows] = False
            best = np.where(own, like, -np.inf).max(1)
            wrong = np.where(same, -np.inf, like).max(1)
            known = np.isfinite(best) & np.isfinite(wrong)
            out.append(np.where(known, np.maximum(wrong, -1) - np.maximum(best, -1), 0.0).clip(min=0))
        return np.concatenate(out)

    def nearest(self, states: Mapping[str, np.ndarray], row: int) -> list[tuple[int, float]]:
        """The `NEAREST` other rows that are likest to one, the likest first, with their likeness."""
        like = states["embedding"] @ states["embedding"][row]
        order = [k for k in np.argsort(-like, kind="stable").tolist() if k != row][:NEAREST]
        return [(k, float(like[k])) for k in order]

    def _scores(self, states: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        genuine, impostor = pair_scores(states["embedding"], states["identity"])
        if not len(genuine) or not len(impostor):
            what = "no two rows are of one identity" if not len(genuine) else "all rows are of one identity"
            raise UserError(
                f"verification over {len(states['identity'])} rows: {what}; it needs both: set data.<role>.splits larger, and data.<role>.group to keep whole identities together"
            )
        return genuine, impostor

    def _folds(self, states: Mapping[str, np.ndarray]) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
        if self.pairs:
            return listed_folds(states["embedding"], states["picture"], self.pairs)
        return drawn_folds(states["embedding"], states["identity"]), 0


def pair_scores(embedding: np.ndarray, identity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Products of every pair of rows, each pair once: those of one identity, and those of two, float32."""
    genuine, impostor = [], []
    for start, like, same in _blocks(embedding, identity):
        later = np.arange(like.shape[1])[None] > start + np.arange(len(like))[:, None]
        genuine.append(like[same & later])
        impostor.append(like[~same & later])
    return np.concatenate(genuine), np.concatenate(impostor)


def roc_auc(genuine: np.ndarray, impostor: np.ndarray) -> float:
    """The probability that a pair of one identity scores above a pair of two, a tie counting half (Mann and Whitney)."""
    ordered = np.sort(impostor)
    below, upto = np.searchsorted(ordered, genuine, "left"), np.searchsorted(ordered, genuine, "right")
    return float((below + upto).sum(dtype=np.float64) / (2.0 * len(genuine) * len(impostor)))


def tar_at_far(genuine: np.ndarray, impostor: np.ndarray, far: float) -> float:
    """The largest share of genuine pairs accepted by a threshold that accepts at most `far` of the impostors; pairs of
    one score are accepted or refused together."""
    return float((genuine > highest_refused(impostor, far)).mean())


def highest_refused(impostor: np.ndarray, far: float) -> float:
    """The score above which pairs are accepted, such that at most `far` of the impostors are; -inf: all may be."""
    allowed = int(np.floor(far * len(impostor) + 1e-9))
    if allowed >= len(impostor):
        return -math.inf
    return float(np.partition(impostor, len(impostor) - 1 - allowed)[len(impostor) - 1 - allowed])


def roc(genuine: np.ndarray, impostor: np.ndarray, points: int = POINTS) -> dict[str, list[float]]:
    """The receiver operating characteristic at thresholds whose false acceptance rates are spread evenly by their logarithm:
    `far` and `tar`, at most `points` of each, rising, 1 and 1 the last."""
    ordered, known = np.sort(impostor), np.sort(genuine)
    allowed = np.unique(np.geomspace(1, len(ordered), points - 1).round().astype(int)) - 1
    refused = np.unique(ordered[len(ordered) - 1 - allowed])[::-1]
    far = 1 - np.searchsorted(ordered, refused, "right") / len(ordered)
    tar = 1 - np.searchsorted(known, refused, "right") / len(known)
    return {"far": [*far.tolist(), 1.0], "tar": [*tar.tolist(), 1.0]}


def recall(embedding: np.ndarray, identity: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """k → the share of rows with another of their identity among their k nearest others; rows that are alone in their
    identity are no queries. Of equals the earlier row is nearer."""
    hits = dict.fromkeys(ks, 0)
    queries = 0
    for start, like, same in _blocks(embedding, identity):
        rows = np.arange(len(like))
        like[rows, start + rows] = -np.inf
        same[rows, start + rows] = False
        asked = same.any(1)
        queries += int(asked.sum())
        order = np.argsort(-like[asked], axis=1, kind="stable")[:, : max(ks)]
        found = np.take_along_axis(same[asked], order, 1)
        for k in ks:
            hits[k] += int(found[:, :k].any(1).sum())
    return {k: hits[k] / max(queries, 1) for k in ks}


def _least(refused: float) -> float:
    """The likeness from which on pairs pass, to four digits: rounded up, so that no more of them do than was allowed."""
    return math.floor(refused * 1e4 + 1) / 1e4


def _blocks(embedding: np.ndarray, identity: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(first row, products with all rows, whether of one identity), a block of rows at a time."""
    for start in range(0, len(embedding), BLOCK):
        part = slice(start, start + BLOCK)
        yield start, embedding[part] @ embedding.T, identity[part, None] == identity[None]
