"""The mean field against a direct computation over all pairs of pixels."""

import numpy as np
import pytest
import scipy.special
import torch

from mapsto.models.crf import CRF, WithCRF, _exported, _Message, _message


def direct(unary, image, crf):
    """Mean field of one image (C×H×W logits, H×W×3) pair by pair: Zheng et al., algorithm 1, with the kernels cut at the
    window."""
    classes, height, width = unary.shape
    places = [(y, x) for y in range(height) for x in range(width)]
    kernels = np.zeros((2, len(places), len(places)))
    for i, (yi, xi) in enumerate(places):
        for j, (yj, xj) in enumerate(places):
            if i == j or max(abs(yi - yj), abs(xi - xj)) > crf.radius:
                continue
            apart, colour = (yi - yj) ** 2 + (xi - xj) ** 2, ((image[yi, xi] - image[yj, xj]) ** 2).sum()
            kernels[0, i, j] = np.exp(-apart / (2 * crf.gamma**2))
            kernels[1, i, j] = np.exp(-apart / (2 * crf.alpha**2) - colour / (2 * crf.beta**2))
    kernels /= kernels.sum(2, keepdims=True)
    flat = unary.reshape(classes, -1).T  # pixels × classes
    weights = [p.detach().double().numpy() for p in (crf.smoothness, crf.appearance)]
    compatibility, out = crf.compatibility.detach().double().numpy(), flat
    for _ in range(crf.iterations):
        q = scipy.special.softmax(out, axis=1)
        message = sum((kernel @ q) * weight for kernel, weight in zip(kernels, weights, strict=True))
        out = flat - message @ compatibility.T
    return out.T.reshape(unary.shape)


@pytest.mark.parametrize(("window", "size"), [(3, (5, 6)), (5, (6, 4)), (15, (5, 7))])
def test_mean_field_equals_all_pairs_within_the_window(window, size):
    rng = np.random.default_rng(window)
    crf = CRF(4, iterations=3, window=window, alpha=6.0, beta=40.0, gamma=1.5)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(1, 0.5, parameter.shape)))
    logits = rng.normal(0, 2, (2, 4, *size)).astype(np.float32)
    image = rng.integers(0, 120, (2, *size, 3), np.uint8)
    ours = crf(torch.from_numpy(logits), torch.from_numpy(image)).detach().numpy()
    for row in range(2):
        theirs = direct(logits[row].astype(np.float64), image[row].astype(np.float64), crf)
        np.testing.assert_allclose(ours[row], theirs, atol=2e-5)


def test_the_messages_gradient_is_their_derivative():
    generator = torch.Generator().manual_seed(0)
    q = torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    kernel = torch.rand(2, 9, 4, 5, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda x: _Message.apply(x, kernel, 1), (q,))
    torch.testing.assert_close(_exported(q, kernel, 1), _message(q.detach(), kernel, 1))
    one = kernel[:1]  # a kernel that all rows share
    assert torch.autograd.gradcheck(lambda x: _Message.apply(x, one, 1), (q,))


def test_a_stray_pixel_follows_those_of_its_colour():
    image = np.zeros((9, 10, 3), np.uint8)
    image[:, 5:] = 200
    logits = np.full((1, 2, 9, 10), -1.0, np.float32)
    logits[0, 0, :, :5] = logits[0, 1, :, 5:] = 1.0
    logits[0, :, 4, 4] = (0.0, 0.5)  # at the edge, inside the dark half, slightly for the wrong class
    out = CRF(2)(torch.from_numpy(logits), torch.from_numpy(image[None])).argmax(1)[0].numpy()
    assert np.array_equal(out, (image[..., 0] > 0).astype(int))


def test_every_parameter_learns_under_autocast_too():
    net = torch.nn.Conv2d(3, 3, 1)
    door = torch.nn.Module()
    door.net, door.forward = net, lambda image: net(image.permute(0, 3, 1, 2).float() / 255)
    model = WithCRF(door, CRF(3, iterations=2, window=3))
    image = torch.randint(0, 256, (2, 6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        out = model(image)
    assert out.dtype == torch.float32
    out.square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters())
