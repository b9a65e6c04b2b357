"""The losses against their formulas, angle by angle and triplet by triplet."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mapsto.models.embedder import arcface, batch_hard, cosface


def test_margins_move_the_true_class_only():
    angles = torch.tensor([[0.3, 1.0], [2.0, 1.5], [3.0, 0.2]], dtype=torch.float64)
    label = torch.tensor([0, 1, 0])
    ours = arcface(angles.cos(), label, 10.0, 0.5)
    assert ours[0].tolist() == pytest.approx([10 * math.cos(0.8), 10 * math.cos(1.0)])
    assert ours[1].tolist() == pytest.approx([10 * math.cos(2.0), 10 * math.cos(2.0)])
    assert float(ours[2, 0]) == pytest.approx(10 * (math.cos(3.0) - 0.5 * math.sin(0.5)))  # 3.5 is past pi
    ours = cosface(angles.cos(), label, 10.0, 0.35)
    assert ours[1].tolist() == pytest.approx([10 * math.cos(2.0), 10 * (math.cos(1.5) - 0.35)])
    fine = torch.linspace(0, math.pi, 500, dtype=torch.float64).cos()[:, None].expand(-1, 2)
    assert (arcface(fine, torch.zeros(500, dtype=torch.int64), 1.0, 0.5)[:, 0].diff() < 0).all()  # falls all the way
    edge = torch.tensor([[1.0, -1.0]], requires_grad=True)
    arcface(edge, torch.tensor([0]), 32.0, 0.5).sum().backward()
    assert edge.grad.isfinite().all()


@given(seed=st.integers(0, 2**32 - 1), margin=st.sampled_from([0.2, None]), first=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_batch_hard_triplet_by_triplet(seed, margin, first):
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(9, 4))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    keys, valid = rng.integers(0, 3, 9), rng.random(9) < 0.8
    part = slice(first, first + 5)
    everyone, names = torch.from_numpy(v), torch.from_numpy(keys)
    each, counted = batch_hard(everyone[part], names[part], first, everyone, names, torch.from_numpy(valid), margin)
    for row in range(5):
        a = first + row
        apart = [np.linalg.norm(v[a] - v[j]) for j in range(9)]
        near = [apart[j] for j in range(9) if valid[j] and j != a and keys[j] == keys[a]]
        far = [apart[j] for j in range(9) if valid[j] and keys[j] != keys[a]]
        assert bool(counted[row]) == bool(valid[a] and near and far)
        gap = max(near) - min(far) if counted[row] else 0.0
        expected = (math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin)) if counted[row] else 0.0
        assert float(each[row]) == pytest.approx(expected, abs=1e-6)


def test_equal_embeddings_have_a_finite_gradient():
    same = torch.ones(4, 2, requires_grad=True)
    v = torch.nn.functional.normalize(same, dim=1)
    keys = torch.tensor([0, 0, 1, 1])
    batch_hard(v, keys, 0, v, keys, torch.ones(4, dtype=torch.bool), 0.2)[0].sum().backward()
    assert same.grad.isfinite().all()
