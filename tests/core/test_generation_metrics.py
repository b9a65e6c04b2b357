"""Distances between sets of features, against pairs taken one by one."""

import numpy as np
import pytest
import scipy.spatial
from hypothesis import given, settings
from hypothesis import strategies as st

from mapsto.core.errors import UserError
from mapsto.core.metrics import kernel
from mapsto.core.metrics.frechet import frechet
from mapsto.core.metrics.generation import GenerationMetrics, ReconstructionMetrics, pixels8
from mapsto.core.metrics.kernel import kernel_distance
from mapsto.core.metrics.manifold import precision_recall


def mmd_by_pairs(a, b):
    d = a.shape[1]

    def k(x, y):
        return (float(x @ y) / d + 1) ** 3

    n, m = len(a), len(b)
    within = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within + other - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


def share_covered(points, centres, k):
    """By the definition: within the distance of a centre to its k-th neighbour, itself not counted."""
    apart = scipy.spatial.distance.cdist(centres, centres)
    reach = [np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(apart)]
    return np.mean([any(np.linalg.norm(p - c) <= r for c, r in zip(centres, reach, strict=True)) for p in points])


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(5, 14), others=st.integers(5, 14), k=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_all_pairs_give_the_same(seed, rows, others, k):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rows, 4)).astype(np.float32), rng.normal(0.5, 1.3, (others, 4)).astype(np.float32)
    assert kernel_distance(a, b) == pytest.approx(mmd_by_pairs(a.astype(float), b.astype(float)), rel=1e-6, abs=1e-9)
    expected = share_covered(b, a, k), share_covered(a, b, k)
    assert precision_recall(a, b, k) == pytest.approx(expected)


def test_too_few_rows_are_refused():
    metrics, rows = GenerationMetrics("pixels8", pixels8), np.eye(3, dtype=np.float32)
    with pytest.raises(UserError, match=r"3 rows are too few .* need 4 or more"):
        metrics.compute({"real": rows, "generated": rows})


def test_many_rows_go_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 3)), rng.normal(0.2, 1, (43, 3))
    whole = kernel_distance(a, b), *precision_recall(a, b)
    monkeypatch.setattr(kernel, "ROWS_AT_ONCE", 7)
    assert (kernel_distance(a, b), *precision_recall(a, b)) == pytest.approx(whole)


def test_one_distribution_is_at_no_distance_and_copies_are_precise():
    rng = np.random.default_rng(0)
    draws = [kernel_distance(*rng.normal(size=(2, 60, 5))) for _ in range(60)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(60)
    a = rng.normal(size=(40, 5))
    assert precision_recall(a, a) == (1, 1)
    assert precision_recall(a, a + 100) == (0, 0)
    precision, recall = precision_recall(a, a[:5])  # few, all of them real
    assert precision == 1 > recall


def test_too_few_rows_are_not_a_number():
    one = np.zeros((1, 3))
    assert np.isnan(
        [frechet(one, one), kernel_distance(one, one), *precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))]
    ).all()


def test_only_inceptions_are_called_fid_and_kid():
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
    for name, expected in (("inception", {"FID", "KID"}), ("pixels8", {"FD_pixels8", "KD_pixels8"})):
        metrics = GenerationMetrics(name, pixels8)
        states = metrics.state({"generated": images}, {"image": images})
        values = metrics.compute(states)
        assert set(values) == expected | {"precision", "recall"}
        assert metrics.primary in values and values[metrics.primary] == pytest.approx(0, abs=1e-6)
        assert metrics.tables(states) == {"rows": 12, "dimensions": 192}


def test_reconstruction_by_hand():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 200, (6, 16, 16, 3), np.uint8)
    metrics = ReconstructionMetrics("pixels8", pixels8)
    states = metrics.state({"generated": image, "decoded": image + np.uint8(51)}, {"image": image})
    values = metrics.compute(states)
    assert (values["mse"], values["mae"], values["psnr"]) == pytest.approx((0.04, 0.2, -10 * np.log10(0.04)), rel=1e-5)
    assert metrics.badness(states) == pytest.approx(np.full(6, 0.04), rel=1e-5)
