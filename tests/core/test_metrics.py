"""Against scikit-learn, SciPy and closed forms."""

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from mapsto.core.metrics.boundary import boundary_f
from mapsto.core.metrics.classification import ClassificationMetrics, calibration, rank
from mapsto.core.metrics.frechet import frechet
from mapsto.core.metrics.segmentation import SegmentationMetrics


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 80), classes=st.integers(2, 12))
@settings(max_examples=60, deadline=None)
def test_classification_equals_scikit_learn(seed, rows, classes):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, classes)).astype(np.float32)
    label = rng.integers(0, classes, rows)
    ours = ClassificationMetrics([str(i) for i in range(classes)]).compute({"logits": logits, "label": label})
    predicted = logits.argmax(1)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(label, predicted, average="macro", zero_division=0)
    assert ours["top1"] == pytest.approx(sk.accuracy_score(label, predicted))
    assert (ours["precision"], ours["recall"], ours["f1"]) == pytest.approx((precision, recall, f1))
    probability = scipy.special.softmax(logits.astype(np.float64), axis=1)
    assert ours["nll"] == pytest.approx(sk.log_loss(label, probability, labels=range(classes)), rel=1e-4)
    if classes > 5:
        assert ours["top5"] == pytest.approx(sk.top_k_accuracy_score(label, logits, k=5, labels=range(classes)))


def test_ties_are_no_hits_for_everyone():
    assert rank(np.zeros((3, 4), np.float32), np.array([0, 1, 3])).tolist() == [0, 1, 3]


def test_calibration_error_by_hand():
    probability = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    error, *_ = calibration(probability, np.array([0, 1, 0, 0]))
    # two at 0.9, half right; two at 0.6, half right
    assert error == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)


@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 6), absent=st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_segmentation_equals_scikit_learn(seed, classes, absent):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, classes + absent, 6, 5)).astype(np.float32)
    logits[:, classes:] = -9  # never answered, never true
    mask = rng.integers(0, classes, (3, 6, 5)).astype(np.uint8)
    mask[rng.random(mask.shape) < 0.2] = 255
    metrics = SegmentationMetrics([str(i) for i in range(classes + absent)])
    states = metrics.state({"logits": logits}, {"mask": mask})
    ours = metrics.compute(states)
    kept = mask != 255
    truth, predicted = mask[kept], logits.argmax(1)[kept]
    assert ours["mIoU"] == pytest.approx(sk.jaccard_score(truth, predicted, average="macro", zero_division=0))
    assert ours["dice"] == pytest.approx(sk.f1_score(truth, predicted, average="macro", zero_division=0))
    assert ours["pixel_accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted))
    assert ours["mean_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, predicted))
    table = metrics.tables(states)["per_class"]
    each = sk.f1_score(truth, predicted, average=None, labels=range(classes), zero_division=0)
    assert [row["dice"] for row in table[:classes]] == pytest.approx(each.tolist())
    assert all(row["dice"] is row["IoU"] is row["boundary_f"] is None for row in table[classes:])


def boundary_by_hand(predicted, truth, k, reach):
    """F of one class, pixel by pixel and pair by pair."""
    height, width = truth.shape

    def edge(mask):
        found = []
        for y, x in np.argwhere((mask == k) & (truth != 255)):
            beside = [(y + dy, x + dx) for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1))]
            inside = [(b, a) for b, a in beside if 0 <= b < height and 0 <= a < width and truth[b, a] != 255]
            if any(mask[place] != k for place in inside):
                found.append((y, x))
        return np.array(found, float).reshape(-1, 2)

    ours, theirs = edge(predicted), edge(truth)
    if not len(ours) or not len(theirs):
        return 0.0 if len(ours) or len(theirs) else np.nan
    apart = scipy.spatial.distance.cdist(ours, theirs)
    precision, recall = (apart.min(1) <= reach).mean(), (apart.min(0) <= reach).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@given(seed=st.integers(0, 2**32 - 1), tolerance=st.sampled_from([0.0075, 0.1, 1.0, 1.5, 3.0]), void=st.booleans())
@settings(max_examples=40, deadline=None)
def test_boundary_f_equals_all_pairs(seed, tolerance, void):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3, (2, 4, 3))
    truth, predicted = np.kron(coarse, np.ones((1, 4, 5), int)).astype(np.int64)
    predicted = np.where(rng.random(truth.shape) < 0.8, truth, predicted)
    if void:
        truth[rng.random(truth.shape) < 0.15] = 255
    reach = tolerance if tolerance >= 1 else np.ceil(tolerance * np.hypot(16, 15))
    expected = [boundary_by_hand(predicted, truth, k, reach) for k in range(4)]
    np.testing.assert_allclose(boundary_f(predicted, truth, 4, tolerance), expected, rtol=1e-6)


def test_boundaries_by_hand_and_over_images():
    truth = np.zeros((1, 8, 8), np.uint8)
    truth[:, :, 4:] = 1
    shifted = np.roll(truth, 1, 2)
    shifted[:, :, 0] = 0
    logits = np.stack([1.0 - shifted, shifted, np.full_like(shifted, -1, float)], 1)
    for tolerance, expected in ((1.0, 1.0), (2.0, 1.0)):
        metrics = SegmentationMetrics("abc", tolerance)
        assert metrics.compute(metrics.state({"logits": logits}, {"mask": truth}))["boundary_f"] == expected
    metrics = SegmentationMetrics("abc", 1.0)
    far = np.roll(shifted, 2, 2)  # class 1's edges are now three pixels off
    far[:, :, :3] = 0
    both = np.concatenate([logits, np.stack([1.0 - far, far, np.full_like(far, -1, float)], 1)])
    states = metrics.state({"logits": both}, {"mask": np.concatenate([truth, truth])})
    assert metrics.compute(states)["boundary_f"] == pytest.approx(0.5)


def test_a_set_of_void_only_measures_nothing():
    metrics = SegmentationMetrics("ab")
    states = metrics.state({"logits": np.zeros((2, 2, 4, 4))}, {"mask": np.full((2, 4, 4), 255, np.uint8)})
    assert set(metrics.compute(states).values()) == {0.0}
    assert metrics.badness(states).shape == (2,)


def test_frechet_equals_scipys_matrix_root():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(400, 6)), rng.normal(0.3, 1.4, size=(300, 6)) @ rng.normal(size=(6, 6))
    root = scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    theirs = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(
        np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root
    )
    assert frechet(a, b) == pytest.approx(theirs, rel=1e-6)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
