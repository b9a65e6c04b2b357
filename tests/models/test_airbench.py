"""The AirBench net: shapes, gradients, initialisation."""

import numpy as np
import pytest
import torch
from torch import nn

from mapsto.models.airbench import AirBench, identity_conv


def small() -> AirBench:
    torch.manual_seed(0)
    return AirBench(7, widths=(24, 32, 40))


def correlated_images(count: int) -> torch.Tensor:
    """Noise (count, 3, 32, 32), smoothed in space and mixed across channels, as photographs are."""
    noise = torch.randn(count, 3, 34, 34, generator=torch.Generator().manual_seed(1))
    smooth = nn.functional.avg_pool2d(noise, 3, stride=1) * 3
    mix = torch.tensor([[1.0, 0.9, 0.8], [0.0, 0.3, 0.2], [0.0, 0.0, 0.1]])
    return torch.einsum("nchw,cd->ndhw", smooth, mix)


def test_logits_have_one_column_per_class_at_any_batch_size() -> None:
    net = small().eval()
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert net(torch.zeros(5, 3, 40, 28)).shape == (5, 7)


def test_default_net_has_the_paper_s_parameter_count() -> None:
    # Weights of the seven convolutions and the head, plus a scale and a shift per channel.
    convs = 24 * 12 + 9 * (24 * 64 + 64 * 64 + 64 * 256 + 256 * 256 + 256 * 256 + 256 * 256)
    norms = 2 * (24 + 64 + 64 + 256 * 4)
    assert sum(p.numel() for p in AirBench(10).parameters()) == convs + norms + 256 * 10


def test_the_stem_is_frozen_and_orthonormal() -> None:
    stem = small().stem[0]
    assert not stem.weight.requires_grad
    flat = stem.weight.detach().flatten(1)
    np.testing.assert_allclose(flat[:12] @ flat[:12].T, np.eye(12), atol=1e-6)
    np.testing.assert_array_equal(flat[12:], -flat[:12])


def test_gradient_reaches_every_other_parameter() -> None:
    net = small()
    images = correlated_images(8)
    nn.functional.cross_entropy(net(images), torch.arange(8) % 7).backward()
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            assert name == "stem.0.weight" or torch.equal(parameter, torch.ones_like(parameter)), name
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_scale_multiplies_the_logits() -> None:
    net, images = small().eval(), correlated_images(2)
    before = net(images)
    net.scale *= 2
    # numpy.testing: the first torch.testing.assert_close imports 500 modules, seconds of CPU time.
    np.testing.assert_allclose(net(images).detach(), before.detach() * 2, rtol=1e-5)


def test_identity_conv_copies_its_inputs() -> None:
    images = torch.randn(2, 5, 6, 6)
    np.testing.assert_allclose(identity_conv(5, 9)(images)[:, :5].detach(), images, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("widths", [(64, 256), (16, 64, 64), (64, 32, 64)])
def test_widths_that_cannot_carry_an_identity_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="widths"):
        AirBench(10, widths=widths)
