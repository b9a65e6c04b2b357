"""Mixup and CutMix: the labels' shares are the pixels', padding takes no part, and the generator decides all."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mapsto.data.order import StreamPlan
from mapsto.data.plan import Run
from mapsto.models.mixing import Mixing, rectangle


def batch(rows: int, valid: list[bool] | None = None, size=(20, 30)):
    """Row k is one level of k + 1 everywhere, and its class is k: pixels say whose they are."""
    images = torch.arange(1, rows + 1, dtype=torch.uint8)[:, None, None, None].expand(rows, *size, 3).clone()
    return images, torch.arange(rows), torch.tensor(valid if valid else [True] * rows)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10**6), st.floats(0.1, 3), st.data())
def test_cutmix_gives_each_label_its_share_of_the_pixels(rows, seed, alpha, data):
    valid = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    images, labels, mask = batch(rows, valid)
    before = images.clone()
    mixed, target = Mixing(cutmix=alpha)(images, labels, mask, rows, seed)
    assert mixed.dtype == torch.uint8 and torch.equal(images, before)
    for k in range(rows):
        share = torch.stack([(mixed[k, ..., 0] == level + 1).float().mean() for level in range(rows)])
        if valid[k]:
            torch.testing.assert_close(target[k], share, atol=1e-6, rtol=0)
            assert all(valid[j] for j in torch.nonzero(share).flatten().tolist())
        else:
            assert torch.equal(mixed[k], images[k])
    torch.testing.assert_close(target.sum(1), torch.ones(rows))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10**6), st.floats(0.1, 3), st.booleans())
def test_mixup_blends_pixels_and_labels_alike(rows, seed, alpha, as_float):
    images, labels, mask = batch(rows)
    images = images.float() / 7 if as_float else images
    mixed, target = Mixing(mixup=alpha)(images, labels, mask, rows, seed)
    assert mixed.dtype == torch.float32
    levels = images[:, 0, 0, 0].float()
    torch.testing.assert_close(mixed, (target @ levels)[:, None, None, None].expand_as(mixed), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(target.sum(1), torch.ones(rows))
    torch.testing.assert_close(target.sum(0), torch.ones(rows))  # every row is a partner once


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.4), Mixing(cutmix=1.0), Mixing(0.4, 1.0)])
def test_padding_and_its_labels_change_nothing(mixing):
    images, labels, _ = batch(6)
    short = mixing(images[:4], labels[:4], torch.ones(4, dtype=torch.bool), 6, 3)
    padded = labels.clone()
    padded[4:] = -1
    full = mixing(images, padded, torch.tensor([True] * 4 + [False] * 2), 6, 3)
    for a, b in zip(short, full, strict=True):
        assert torch.equal(a, b[:4])
    nothing = mixing(images, padded, torch.zeros(6, dtype=torch.bool), 6, 3)
    assert torch.equal(nothing[0].float(), images.float())


@given(st.integers(2, 40), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_any_number_of_workers_mixes_alike(rows, world):
    """By the plan of a task that mixes."""
    main = StreamPlan("main", np.array([rows]), 100 * rows, "sequential", pairs=True)
    run = Run((main,), batch_size=rows, world=world)
    images, labels, valid = batch(rows)
    for mix in (Mixing(mixup=0.4), Mixing(cutmix=1.0)):
        whole, parts = mix(images, labels, valid, rows, 7), []
        for g in range(len(run)):
            drawn = run.draws(g)["main"]
            keep = torch.from_numpy(drawn.valid)
            parts.append([part[keep] for part in mix(images[drawn.rows], labels[drawn.rows], keep, rows, 7)])
        for a, b in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(a, torch.cat([part.to(a.dtype) for part in b]))


def test_workers_and_microbatches_with_even_numbers_of_rows_mix_alike():
    images, labels, valid = batch(12)
    for mix in (Mixing(mixup=0.4), Mixing(cutmix=1.0)):
        whole = mix(images, labels, valid, 12, 7)
        for size in (2, 4, 6):
            parts = [mix(images[k : k + size], labels[k : k + size], valid[:size], 12, 7) for k in range(0, 12, size)]
            for a, b in zip(whole, zip(*parts, strict=True), strict=True):
                assert torch.equal(a, torch.cat(b))


def test_the_seed_decides():
    images, labels, valid = batch(8)
    mix = Mixing(0.8, 1.0)
    first = mix(images, labels, valid, 8, 5)
    again = mix(images, labels, valid, 8, 5)
    other = mix(images, labels, valid, 8, 6)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    kinds = [mix(images, labels, valid, 8, seed)[0].dtype for seed in range(200)]
    assert 60 < kinds.count(torch.uint8) < 140
    assert not Mixing() and Mixing(mixup=0.1) and Mixing(cutmix=0.1)


def test_lambda_is_of_the_beta_distribution():
    from scipy import stats

    images, labels, valid = batch(2, size=(2, 2))
    found = [float(Mixing(mixup=0.4)(images, labels, valid, 2, seed)[1][0, 0]) for seed in range(1500)]
    assert stats.kstest(found, stats.beta(0.4, 0.4).cdf).pvalue > 0.01


def test_the_rectangle_is_centred_evenly_and_cut_at_the_rim():
    rng = np.random.default_rng(0)
    boxes = np.array([rectangle(40, 80, 0.75, rng) for _ in range(4000)])
    top, left, bottom, right = boxes.T
    assert top.min() >= 0 and left.min() >= 0 and bottom.max() <= 40 and right.max() <= 80
    inner = (top > 0) & (left > 0) & (bottom < 40) & (right < 80)
    assert ((bottom - top)[inner] == 20).all() and ((right - left)[inner] == 40).all()
    covered = np.zeros((40, 80))
    for y0, x0, y1, x1 in boxes:
        covered[y0:y1, x0:x1] += 1
    np.testing.assert_allclose(covered[20, 40] / 4000, 0.25, rtol=0.1)
    np.testing.assert_allclose(covered, covered[::-1, ::-1], atol=5 * np.sqrt(4000 * 0.25))
    for kept, area in ((1.0, 0), (0.0, 40 * 80)):
        top, left, bottom, right = rectangle(40, 80, kept, rng)
        assert (bottom - top) * (right - left) <= area
