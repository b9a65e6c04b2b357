"""Against the packages that papers measure with: torchmetrics (pixels, calibration, curves, reconstruction) and
torch-fidelity (generated images), on random predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kernel_poly, mmd2
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.functional import classification as tm
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.functional.regression import r2_score

from mapsto.core.metrics.classification import ClassificationMetrics
from mapsto.core.metrics.frechet import frechet
from mapsto.core.metrics.generation import ReconstructionMetrics, pixels8
from mapsto.core.metrics.kernel import kernel_distance
from mapsto.core.metrics.manifold import precision_recall
from mapsto.core.metrics.multilabel import UNKNOWN, MultiLabelMetrics
from mapsto.core.metrics.regression import RegressionMetrics
from mapsto.core.metrics.segmentation import VOID, SegmentationMetrics
from mapsto.core.metrics.verification import roc_auc, tar_at_far

seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds, classes=st.integers(2, 6), absent=st.integers(0, 2), void=st.sampled_from([0.0, 0.3, 0.95]))
@settings(max_examples=25, deadline=None)
def test_segmentation_is_torchmetrics_with_void_ids_and_images_of_void_alone(
    seed: int, classes: int, absent: int, void: float
) -> None:
    rng, every = np.random.default_rng(seed), classes + absent
    logits = rng.normal(size=(4, every, 6, 5)).astype(np.float32)
    logits[:, classes:] = -9  # never answered, never true
    mask = rng.integers(0, classes, (4, 6, 5)).astype(np.uint8)
    mask[rng.random(mask.shape) < void] = VOID
    mask[1] = VOID
    mask[0, 0, 0] = 0  # something is counted
    metrics = SegmentationMetrics([str(k) for k in range(every)])
    states = metrics.state({"logits": logits}, {"mask": mask})
    ours, table = metrics.compute(states), metrics.tables(states)["per_class"]
    predicted, truth = torch.from_numpy(logits.argmax(1)), torch.from_numpy(mask.astype(np.int64))
    options = {"num_classes": every, "ignore_index": VOID}
    occurs = np.array([((truth == k) | ((predicted == k) & (truth != VOID))).any() for k in range(every)])
    true = np.array([(truth == k).any() for k in range(every)])
    for name, score, among in (
        ("IoU", tm.multiclass_jaccard_index, occurs),
        ("dice", tm.multiclass_f1_score, occurs),
        ("accuracy", tm.multiclass_accuracy, true),
    ):
        theirs = score(predicted, truth, average="none", **options).numpy()
        assert [row[name] for row, held in zip(table, among) if held] == pytest.approx(theirs[among].tolist(), rel=1e-5)
        assert all(row[name] is None for row, held in zip(table, among) if not held)
        total = {"IoU": "mIoU", "dice": "dice", "accuracy": "mean_accuracy"}[name]
        assert ours[total] == pytest.approx(theirs[among].mean(), rel=1e-5)
    right = tm.multiclass_accuracy(predicted, truth, average="micro", **options)
    assert ours["pixel_accuracy"] == pytest.approx(float(right), rel=1e-5)


@given(seed=seeds, rows=st.integers(1, 200), classes=st.integers(2, 8), sharp=st.sampled_from([0.3, 1.0, 5.0]))
@settings(max_examples=25, deadline=None)
def test_calibration_error_is_torchmetrics(seed: int, rows: int, classes: int, sharp: float) -> None:
    rng = np.random.default_rng(seed)
    logits, label = sharp * rng.normal(size=(rows, classes)).astype(np.float32), rng.integers(0, classes, rows)
    ours = ClassificationMetrics([str(k) for k in range(classes)]).compute({"logits": logits, "label": label})
    probability = (
        torch.from_numpy(logits).double().softmax(1)
    )  # logits that all lie in 0..1 they take for probabilities
    theirs = tm.multiclass_calibration_error(probability, torch.from_numpy(label), classes, n_bins=15)
    assert ours["calibration_error"] == pytest.approx(float(theirs), abs=1e-5)


@given(seed=seeds, rows=st.integers(1, 60), unknown=st.sampled_from([0.0, 0.3]))
@settings(max_examples=25, deadline=None)
def test_multilabel_is_torchmetrics_with_unknown_labels(seed: int, rows: int, unknown: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, 4)).astype(np.float32).round(1)
    target = rng.integers(0, 2, (rows, 4)).astype(np.int8)
    target[rng.random(target.shape) < unknown] = UNKNOWN
    target[0] = rng.integers(0, 2, 4)  # theirs needs something known of each class
    found = MultiLabelMetrics("abcd").compute({"logits": logits, "target": target})
    theirs = tm.multilabel_average_precision(
        torch.from_numpy(logits), torch.from_numpy(target.astype(np.int64)), 4, average="none", ignore_index=UNKNOWN
    ).numpy()
    occurs = (target == 1).any(0)
    expected = theirs[occurs].mean() if occurs.any() else 0.0
    assert found["mAP"] == pytest.approx(float(expected), rel=1e-5)


@given(seed=seeds, genuine=st.integers(1, 60), impostor=st.integers(1, 200), ties=st.booleans())
@settings(max_examples=25, deadline=None)
def test_areas_and_rates_of_verification_are_torchmetrics(seed: int, genuine: int, impostor: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    same, other = rng.normal(0.6, 0.2, genuine).clip(0, 1), rng.normal(0.4, 0.2, impostor).clip(0, 1)
    if ties:
        same, other = same.round(1), other.round(1)
    scores = torch.from_numpy(np.concatenate([same, other]))
    truth = torch.from_numpy(np.repeat([1, 0], [genuine, impostor]))
    assert roc_auc(same, other) == pytest.approx(float(tm.binary_auroc(scores, truth)), rel=1e-5)
    far, tar, _ = (values.numpy() for values in tm.binary_roc(scores, truth))
    for rate in (1e-3, 1e-2, 0.2):
        assert tar_at_far(same, other, rate) == pytest.approx(tar[far <= rate + 1e-7].max(), rel=1e-5)


@given(seed=seeds, rows=st.integers(3, 60))
@settings(max_examples=20, deadline=None)
def test_r2_is_torchmetrics(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    answer, value = rng.normal(size=(2, rows))
    ours = RegressionMetrics().compute({"answer": answer, "value": value})["r2"]
    assert ours == pytest.approx(float(r2_score(torch.from_numpy(answer), torch.from_numpy(value))), rel=1e-9)


@given(seed=seeds, level=st.integers(0, 80))
@settings(max_examples=15, deadline=None)
def test_reconstruction_is_torchmetrics(seed: int, level: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (3, 12, 10, 3), np.uint8)
    decoded = (image + rng.integers(-level - 1, level + 2, image.shape)).clip(0, 255).astype(np.uint8)
    decoded[0] = 255 - image[0]  # no image is an exact copy
    decoded[1, 0, 0], decoded[2, 0, 0] = 255 - image[1, 0, 0], 255 - image[2, 0, 0]
    metrics = ReconstructionMetrics("pixels8", pixels8, neighbours=2)
    states = metrics.state({"generated": image, "decoded": decoded}, {"image": image})
    seen, truth = (torch.from_numpy(each).double() / 255 for each in (decoded, image))
    ratio = peak_signal_noise_ratio(seen, truth, data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean")
    assert metrics.compute(states)["psnr"] == pytest.approx(float(ratio), rel=1e-4)
    assert metrics.compute(states)["mse"] == pytest.approx(float((seen - truth).square().mean()), rel=1e-4)


@given(seed=seeds, rows=st.integers(6, 60), others=st.integers(6, 60), width=st.sampled_from([2, 5, 12]))
@settings(max_examples=25, deadline=None)
def test_distances_of_generated_images_are_torch_fidelitys(seed: int, rows: int, others: int, width: int) -> None:
    """With fewer rows than dimensions, too, where the covariance has no inverse."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width))
    real, made = rng.normal(size=(rows, width)), rng.normal(0.3, 1.4, (others, width)) @ mixing
    first, second = (fid_features_to_statistics(torch.from_numpy(each)) for each in (real, made))
    theirs = fid_statistics_to_metric(first, second, False)["frechet_inception_distance"]
    assert frechet(real, made) == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    kernel = {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
    within, across, beyond = (kernel_poly(a, b, **kernel) for a, b in ((real, real), (real, made), (made, made)))
    if rows == others:  # theirs takes equally many
        assert kernel_distance(real, made) == pytest.approx(mmd2(within, across, beyond), rel=1e-7, abs=1e-9)
    shared = min(rows, others)
    theirs = mmd2(within[:shared, :shared], across[:shared, :shared], beyond[:shared, :shared])
    assert kernel_distance(real[:shared], made[:shared]) == pytest.approx(theirs, rel=1e-7, abs=1e-9)
    theirs = prc_features_to_metric(
        torch.from_numpy(made), torch.from_numpy(real), prc_neighborhood=3, prc_batch_size=7, verbose=False
    )
    assert precision_recall(real, made) == pytest.approx((theirs["precision"], theirs["recall"]))
