"""The textbook nets and the CIFAR ResNets against torch's functions and the paper's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mapsto.core.errors import UserError
from mapsto.models.backbones import OWN, classifier
from mapsto.models.cifar_resnet import Block, CifarResNet
from mapsto.models.plain import Cnn, Lstm, Mlp

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def close(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    np.testing.assert_allclose(mine.detach(), theirs.detach(), rtol=1e-4, atol=1e-5)


def test_an_mlp_is_its_matrices() -> None:
    net = Mlp(4, 12, (7, 5), "tanh").eval()
    w = list(net.parameters())
    x = torch.tanh(F.linear(IMAGES.flatten(1), w[0], w[1]))
    close(net(IMAGES), F.linear(torch.tanh(F.linear(x, w[2], w[3])), w[4], w[5]))
    assert sum(p.numel() for p in w) == (432 + 1) * 7 + (7 + 1) * 5 + (5 + 1) * 4


@pytest.mark.parametrize("kernel", [1, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("activation", "f"), [("relu", F.relu), ("sigmoid", torch.sigmoid), ("tanh", torch.tanh)])
@pytest.mark.parametrize("pooling", ["max", "average", "none"])
def test_a_cnns_settings_are_torchs_functions(kernel, stride, activation, f, pooling) -> None:
    net = Cnn(4, 12, (5,), kernel, stride, activation, pooling)
    weight, bias, head, head_bias = net.parameters()
    x = f(F.conv2d(IMAGES, weight, bias, stride, kernel // 2))
    pools = {"max": F.max_pool2d, "average": F.avg_pool2d, "none": lambda x, size: x}
    close(net(IMAGES), F.linear(pools[pooling](x, 2).mean((2, 3)), head, head_bias))


def test_an_lstm_reads_rows_or_patches_in_reading_order() -> None:
    count = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    rows = Lstm(4, 4, (5,)).sequence(count)
    assert rows.shape == (2, 4, 12)
    assert rows[1, 2].tolist() == count[1, :, 2, :].flatten().tolist()
    patches = Lstm(4, 4, (5,), patch=2).sequence(count)
    assert patches.shape == (2, 4, 12)
    for i, (y, x) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        assert patches[1, i].tolist() == count[1, :, y : y + 2, x : x + 2].flatten().tolist()


def test_an_lstm_is_the_gates_equations() -> None:
    net = Lstm(4, 12, (6,))
    w_in, w_state, b_in, b_state = net.layers[0].parameters()
    h = c = torch.zeros(2, 6)
    for row in range(12):
        gates = F.linear(IMAGES[:, :, row].flatten(1), w_in, b_in) + F.linear(h, w_state, b_state)
        i, f, g, o = gates.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    close(net(IMAGES), net.head(h))


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_cifar_resnets_have_the_papers_size(depth: int, millions: float) -> None:
    """Table 6 of arXiv 1512.03385."""
    net = CifarResNet(10, depth)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.035 if depth == 110 else 0.0051
    )
    weighted = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(weighted) == depth


def test_the_shortcut_is_every_second_pixel_between_zeros() -> None:
    block = Block(2, 4, 2).eval()
    for parameter in block.bn2.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.rand(1, 2, 6, 6)
    out = block(x)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert (out[:, [0, 3]] == 0).all()


@pytest.mark.parametrize("name", [*OWN, "vgg11_bn", "resnet18", "test_vit"])
def test_every_classifier_learns_a_gradient_for_each_parameter(name: str) -> None:
    net = classifier(name, 3, image_size=32)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    logits = net(images)
    assert logits.shape == (4, 3)
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_inception_has_one_output_in_training() -> None:
    from timm.models import InceptionV3

    net = classifier("inception_v3", 3, image_size=75)
    assert isinstance(net, InceptionV3)
    assert not any(name.startswith("AuxLogits") for name, _ in net.named_modules())


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("cnn", {"settings": {"widths": (4,) * 6}}, "6 layers leave nothing of 32 pixels"),
        ("lstm", {"settings": {"patch": 5}}, "patches of 5 pixels do not tile 32"),
        ("resnet20", {"pretrained": True}, "no weights of 'resnet20'"),
        ("vgg11", {"drop_path": 0.1}, "'vgg11' does not take .*drop_path_rate"),
        ("vgg11", {"options": {"depth": 3}}, "'vgg11' does not work with .*TypeError: .*depth"),
        ("resnet18", {"options": {"act_layer": "nosuch"}}, "'resnet18' does not work with .*nosuch.*KeyError"),
        ("resnet18", {"options": {"global_pool": ""}}, "'resnet18' does not work with .*RuntimeError"),
        (
            "resnet18",
            {"options": {"output_stride": 7}},
            "'resnet18' does not work with {'output_stride': 7} .AssertionError.$",
        ),
        ("cnn", {"options": {"depth": 3}}, "options: they are a timm model's; 'cnn' is mapsto's own"),
        ("resnet21", {}, "'resnet21' is no timm model.*did you mean 'resnet"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, more: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        classifier(name, 3, image_size=32, **more)


def test_options_reach_timms_model() -> None:
    from timm.models import VGG

    net = classifier("vgg11_bn", 3, image_size=32, options={"mlp_ratio": 0.125})
    assert isinstance(net, VGG)
    assert net.pre_logits.fc1.out_channels == 512


def test_drop_path_reaches_timms_blocks() -> None:
    from timm.layers import DropPath

    rates = [
        m.drop_prob
        for m in classifier("test_vit", 3, image_size=32, drop_path=0.2).modules()
        if isinstance(m, DropPath)
    ]
    assert max(rates) == pytest.approx(0.2)
