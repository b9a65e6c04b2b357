"""The losses against torch, torchvision's formula and a computation by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mapsto.models.segmentation_loss import segmentation_loss, soft_dice


def drawn(seed, classes=4):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 2, (3, classes, 5, 4)))
    mask = rng.integers(0, classes, (3, 5, 4))
    counted = rng.random(mask.shape) > 0.3
    counted[2] = False  # a row of void only
    mask[~counted] = 255
    return logits, torch.from_numpy(mask), torch.from_numpy(counted), torch.from_numpy(rng.uniform(0.1, 3, classes))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_weighted_cross_entropy_is_torchs(seed):
    logits, mask, counted, weights = drawn(seed)
    for w in (None, weights):
        total, weight = segmentation_loss(logits, mask, counted, weights=w)
        theirs = F.cross_entropy(logits, mask, weight=w, ignore_index=255)
        assert float(total / weight.sum()) == pytest.approx(float(theirs), rel=1e-6)


@given(seed=st.integers(0, 2**32 - 1), gamma=st.sampled_from([0.0, 0.5, 2.0, 5.0]))
@settings(max_examples=25, deadline=None)
def test_focal_loss_by_its_formula(seed, gamma):
    logits, mask, counted, weights = drawn(seed)
    total, _ = segmentation_loss(logits, mask, counted, cross_entropy=0, focal=1, gamma=gamma, weights=weights)
    p = torch.softmax(logits, 1).movedim(1, 3)[counted]
    truth = mask[counted]
    p = p[torch.arange(len(p)), truth]
    assert float(total) == pytest.approx(float((-weights[truth] * (1 - p) ** gamma * p.log()).sum()), rel=1e-6)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_soft_dice_class_by_class(seed):
    logits, mask, counted, _ = drawn(seed)
    ours = soft_dice(logits, mask.masked_fill(~counted, 0), counted)
    for row in range(2):
        p, t = torch.softmax(logits[row], 0)[:, counted[row]].numpy(), mask[row][counted[row]].numpy()
        scores = [2 * p[k][t == k].sum() / (p[k].sum() + (t == k).sum()) for k in np.unique(t)]
        assert float(ours[row]) == pytest.approx(1 - np.mean(scores), rel=1e-5)
    assert float(ours[2]) == 0


def test_a_perfect_answer_costs_nothing_and_void_has_no_gradient():
    mask = torch.tensor([[[0, 1], [2, 255]]])
    counted = mask != 255
    logits = 60.0 * F.one_hot(mask.masked_fill(~counted, 0), 3).movedim(3, 1).float()
    logits.requires_grad_(True)
    total, _ = segmentation_loss(logits, mask, counted, focal=1, dice=1)
    assert float(total.detach()) == pytest.approx(0, abs=1e-5)
    noisy = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    segmentation_loss(noisy, mask, counted, focal=1, dice=1)[0].backward()
    assert noisy.grad[0, :, 1, 1].abs().max() == 0
    assert noisy.grad[0, :, 0, 0].abs().max() > 0
