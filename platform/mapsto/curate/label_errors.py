"""Likely label errors by confident learning (Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in
Dataset Labels", JAIR 2021, arXiv 1911.00068), from predictions of models that have not seen the row."""

from __future__ import annotations

import numpy as np


def suspects(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, scores, likely labels), worst first.

    `probabilities`: N×C, out of sample, NaN where there is none; `labels`: N, -1 for none. A class's threshold is its mean
    predicted probability over the rows that bear its label. A row is confidently another class when that class's
    probability reaches its threshold and is the largest of those that do. The score, 0..1, is the margin by which the other class's
    probability exceeds the given one's.
    """
    usable = (labels >= 0) & np.isfinite(probabilities).all(1)
    thresholds = class_thresholds(probabilities, labels)
    above = np.where(probabilities >= thresholds, probabilities, -np.inf)
    likely = above.argmax(1)
    confident = np.isfinite(above.max(1, initial=-np.inf)) & usable
    rows = np.flatnonzero(confident & (likely != labels))
    margin = probabilities[rows, likely[rows]] - probabilities[rows, labels[rows]]
    order = np.argsort(-margin, kind="stable")
    return rows[order], margin[order].astype(np.float32), likely[rows][order].astype(np.int64)


def class_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """C: a class's mean probability over the rows that bear its label; infinite for a class without rows."""
    usable = np.isfinite(probabilities).all(1)
    out = np.full(probabilities.shape[1], np.inf)
    for k in range(probabilities.shape[1]):
        mine = usable & (labels == k)
        if mine.any():
            out[k] = probabilities[mine, k].mean()
    return out


def confident_joint(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """C×C int64: rows by given label and confident class; what lies off the diagonal is likely wrong."""
    classes = probabilities.shape[1]
    usable = (labels >= 0) & np.isfinite(probabilities).all(1)
    above = np.where(probabilities >= class_thresholds(probabilities, labels), probabilities, -np.inf)
    confident = usable & np.isfinite(above.max(1, initial=-np.inf))
    joint = np.zeros((classes, classes), np.int64)
    np.add.at(joint, (labels[confident], above[confident].argmax(1)), 1)
    return joint
