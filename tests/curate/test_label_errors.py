"""Confident learning against the worked example of its definition, and planted errors."""

import numpy as np

from mapsto.curate.label_errors import class_thresholds, confident_joint, suspects


def test_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6], [0.1, 0.9], [0.95, 0.05]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(class_thresholds(probabilities, labels), [0.6, (0.6 + 0.9 + 0.05) / 3])
    assert confident_joint(probabilities, labels).tolist() == [[2, 1], [1, 2]]
    rows, scores, likely = suspects(probabilities, labels)
    assert rows.tolist() == [5, 2] and likely.tolist() == [0, 1]
    np.testing.assert_allclose(scores, [0.9, 0.6], rtol=1e-6)


def test_rows_without_label_or_prediction_are_no_suspects():
    probabilities = np.array([[0.1, 0.9], [0.1, 0.9], [np.nan, np.nan], [0.9, 0.1], [0.1, 0.9]])
    rows, _, _ = suspects(probabilities, np.array([0, -1, 0, 0, 1]))
    assert rows.tolist() == [0]


def test_planted_errors_come_first():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 2000)
    logits = rng.normal(0, 1, (2000, 4))
    logits[np.arange(2000), truth] += 4
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = truth.copy()
    wrong = rng.choice(2000, 100, replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, 4, 100)) % 4
    rows, _, likely = suspects(probabilities, labels)
    hits = np.isin(rows[:100], wrong)
    assert hits.mean() > 0.9
    assert (likely[:100][hits] == truth[rows[:100][hits]]).mean() > 0.95
