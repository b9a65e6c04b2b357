"""Open-set identification against every threshold, and scores written by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapsto.core.metrics import identification
from mapsto.core.metrics.identification import Probes, dir_at_fpir, probes
from mapsto.core.metrics.verification import VerificationMetrics


def by_hand(found: Probes, fpir: float) -> float:
    """The best share over all thresholds whose answers to probes without a mate are at most so many."""
    best = 0.0
    for least in [*found.mated, *found.others, np.inf]:
        if sum(score >= least for score in found.others) <= fpir * len(found.others) + 1e-9:
            hits = sum(right and score >= least for score, right in zip(found.mated, found.right, strict=True))
            best = max(best, hits / len(found.mated))
    return best


@given(seed=st.integers(0, 2**32 - 1), mated=st.integers(1, 40), others=st.integers(10, 150), ties=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_rate_is_the_best_of_all_thresholds(seed, mated, others, ties):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-1, 1, mated + others).astype(np.float32)
    scores[:mated] += np.float32(0.3)
    if ties:
        scores = scores.round(1)
    found = Probes(scores[:mated], rng.random(mated) < 0.8, scores[mated:], 5)
    for fpir in (0.1, 0.01):
        rate = dir_at_fpir(found, fpir)
        if others * fpir < 1:
            assert rate is None
        else:
            assert rate is not None and rate[0] == pytest.approx(by_hand(found, fpir))
            assert (found.others > rate[1]).mean() <= fpir


def test_scores_by_hand():
    others = np.linspace(0, 0.9, 10).astype(np.float32)  # one of ten may be answered: what is above 0.8
    found = Probes(np.array([0.95, 0.85, 0.81, 0.8], np.float32), np.array([True, False, True, True]), others, 3)
    assert dir_at_fpir(found, 0.1) == (0.5, pytest.approx(0.8))
    assert dir_at_fpir(found, 0.01) is None
    assert dir_at_fpir(found._replace(mated=np.empty(0, np.float32), right=np.empty(0, bool)), 0.1) is None


@given(seed=st.integers(0, 2**32 - 1), people=st.integers(1, 12), rows=st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_half_are_known_by_their_first_picture_and_every_other_row_asks_once(seed, people, rows):
    rng = np.random.default_rng(seed)
    identity = rng.integers(0, people, rows) * 7 - 3
    embedding = rng.normal(size=(rows, 5)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    found = probes(embedding, identity)
    names = np.unique(identity)
    assert found.gallery == (len(names) + 1) // 2
    assert found.gallery + len(found.mated) + len(found.others) == rows
    first = {name: int(np.flatnonzero(identity == name)[0]) for name in names}
    order = np.random.default_rng(0).permutation(len(names))
    known = sorted(names[order[: found.gallery]])
    mated, right, others = [], [], []
    for row in range(rows):
        if row == first[identity[row]] and identity[row] in known:
            continue
        best = max(known, key=lambda name: (float(embedding[row] @ embedding[first[name]]), -first[name]))
        score = float(embedding[row] @ embedding[first[best]])
        if identity[row] in known:
            mated.append(score)
            right.append(best == identity[row])
        else:
            others.append(score)
    np.testing.assert_allclose(found.mated, mated, atol=1e-5)
    np.testing.assert_allclose(found.others, others, atol=1e-5)
    assert found.right.tolist() == right


def test_blocks_change_nothing_and_the_metrics_have_what_the_probes_allow(monkeypatch):
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(60, 4)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    metrics, identity = VerificationMetrics("label"), np.repeat(np.arange(12), 5)
    values = metrics.compute(metrics.state({"embedding": embedding}, {"label": identity}))
    assert "dir@fpir=0.1" in values and "dir@fpir=0.01" not in values  # 30 probes without a mate
    whole = probes(embedding, identity)
    monkeypatch.setattr(identification, "BLOCK", 7)
    for ours, theirs in zip(probes(embedding, identity), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
