"""Against scikit-learn, SciPy and closed forms."""

import numpy as np
import pytest
import scipy.linalg
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

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


@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_segmentation_equals_scikit_learn(seed, classes):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, classes, 6, 5)).astype(np.float32)
    mask = rng.integers(0, classes, (3, 6, 5)).astype(np.uint8)
    mask[rng.random(mask.shape) < 0.2] = 255
    metrics = SegmentationMetrics([str(i) for i in range(classes)])
    ours = metrics.compute(metrics.state({"logits": logits}, {"mask": mask}))
    kept = mask != 255
    truth, predicted = mask[kept], logits.argmax(1)[kept]
    assert ours["mIoU"] == pytest.approx(sk.jaccard_score(truth, predicted, average="macro", zero_division=0))
    assert ours["dice"] == pytest.approx(sk.f1_score(truth, predicted, average="macro", zero_division=0))
    assert ours["pixel_accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted))
    assert ours["mean_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, predicted))


def test_frechet_equals_scipys_matrix_root():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(400, 6)), rng.normal(0.3, 1.4, size=(300, 6)) @ rng.normal(size=(6, 6))
    root = scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    theirs = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(
        np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root
    )
    assert frechet(a, b) == pytest.approx(theirs, rel=1e-6)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
