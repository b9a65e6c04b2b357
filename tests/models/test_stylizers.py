"""Features of pictures, losses by hand, normalisation over tiles."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mapsto.core.errors import UserError
from mapsto.models.backbones import classifier
from mapsto.models.perceptual import Perceptual, content_loss, gram, moments_loss, roughness, style_loss
from mapsto.models.stylizers import AdaIn, FeedForward, Optimised, SharedNorm, TransformNet, luma

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image(rows: int = 2, size: int = 32, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (rows, size, size, 3), np.uint8))


def small() -> Perceptual:
    """conv, relu and pool, twice."""
    torch.manual_seed(3)
    net = classifier("cnn", 3, image_size=32, settings={"widths": (8, 12)})
    return Perceptual(net, ("layers.1", "layers.4"), MEAN, STD)


def test_layers_are_what_the_whole_network_computes_there():
    torch.manual_seed(0)
    net = classifier("vgg11", 10, image_size=32).eval()
    untouched = copy.deepcopy(net.features)
    cut = Perceptual(net, ("features.0", "features.4", "features.6"), MEAN, STD)
    x = (image().float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    x = x.permute(0, 3, 1, 2)
    with torch.no_grad():
        found = cut(image())
        first = F.conv2d(F.pad(x, (1, 1, 1, 1), "replicate"), net.features[0].weight, net.features[0].bias)
        torch.testing.assert_close(
            found["features.0"], first, rtol=1e-4, atol=1e-5
        )  # not as the ReLU after it leaves it
        inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))  # where no border is seen
        torch.testing.assert_close(found["features.6"][inner], untouched[:7](x)[inner], rtol=1e-4, atol=1e-5)
    assert set(cut.state_dict()) == {
        "net.scale",
        "net.shift",
        *(f"net.net.features.{k}.{part}" for k in (0, 3, 6) for part in ("weight", "bias")),
    }
    assert cut.shape("features.6") == (256, 4)


def test_it_is_never_trained_and_gradients_reach_the_pixels():
    net = Perceptual(classifier("resnet20", 10, image_size=32), ("layer1.2",), MEAN, STD).train()
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    pixels = image().float().requires_grad_(True)
    net(pixels)["layer1.2"].sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


def test_a_layer_that_is_none_is_named():
    with pytest.raises(UserError, match=r"no layer 'layers\.11'.*did you mean"):
        Perceptual(classifier("cnn", 3, image_size=32), ("layers.11",), MEAN, STD)
    with pytest.raises(UserError, match="'head' gives 1 dimensions, not maps"):
        Perceptual(classifier("cnn", 3, image_size=32), ("head",), MEAN, STD).shape("head", 32)


def test_losses_by_hand():
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.standard_normal((2, 3, 4, 5)).astype(np.float32)) for _ in range(2))
    by_hand = torch.einsum("nchw,ndhw->ncd", a, a) / 20
    torch.testing.assert_close(gram(a), by_hand)
    ours = style_loss({"x": a}, {"x": b}, ("x",))
    other = torch.einsum("nchw,ndhw->ncd", b, b) / 20
    theirs = ((by_hand - other) ** 2).sum((1, 2)) / (other**2).sum((1, 2))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        content_loss({"x": a, "y": b}, {"x": b, "y": b}, ("x", "y")),
        ((a - b) ** 2).sum((1, 2, 3)) / (b**2).sum((1, 2, 3)) / 2,
    )
    moved = b * 2 + 1
    mean, deviation = b.mean((2, 3)), b.var((2, 3), unbiased=False).sqrt()
    wanted = ((mean + 1) ** 2 + deviation**2).sum(1) / (mean**2 + deviation**2).sum(1)
    torch.testing.assert_close(moments_loss({"x": moved}, {"x": b}, ("x",)), wanted, rtol=1e-3, atol=1e-4)
    # a loss does not change with the scale of the network's activations
    torch.testing.assert_close(style_loss({"x": 50 * a}, {"x": 50 * b}, ("x",)), ours)
    assert roughness(torch.full((1, 8, 8, 3), 99.0)).item() == 0


def test_the_norm_is_torchs_and_shared_rows_take_the_first_ones_statistics():
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal((3, 4, 6, 6)).astype(np.float32)) * 3 + 1
    norm = SharedNorm(4)
    torch.testing.assert_close(norm(x, None), nn.InstanceNorm2d(4)(x), rtol=1e-4, atol=1e-5)
    shared = norm(x, torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(shared[[0, 2]], norm(x[[0, 2]], None))
    mean, std = x[:1].mean((2, 3), keepdim=True), (x[:1].var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(shared[1:2], (x[1:2] - mean) / std)


def test_a_new_net_leaves_the_picture_as_it_is():
    with torch.no_grad():
        torch.testing.assert_close(TransformNet(4)(image().float()), image().float())


def test_strength_and_the_photographs_colours():
    net = FeedForward(small(), luminance=False, width=4).eval()
    nn.init.normal_(net.net.last.weight, std=0.05)
    content, shared = image(), torch.zeros(2)
    with torch.no_grad():
        full, half, none = (net(content, shared, torch.full((2,), a)).float() for a in (1.0, 0.5, 0.0))
        assert torch.equal(none, content.float())
        assert (full - content).abs().mean() > 3
        raw = net.net(content.float(), shared)
        wanted = (content + (raw - content) / 2).clamp(0, 255)
        assert (half - wanted).abs().max() <= 0.5001
        net.luminance = True
        mild = 64 + content // 2  # far from where pixels end
        kept = net(mild, shared, torch.full((2,), 0.2)).float() - mild.float()
    assert (kept[..., 0] - kept[..., 1]).abs().max() <= 1 and (kept[..., 0] - kept[..., 2]).abs().max() <= 1
    assert kept.abs().mean() > 0.5
    assert net.took is not None and net.took > 0
    torch.testing.assert_close(luma(torch.full((1, 2, 2, 3), 7.0)), torch.full((1, 2, 2, 1), 7.0))


def test_adain_gives_the_maps_the_styles_moments_and_mixes_styles():
    torch.manual_seed(0)
    net = AdaIn(small(), False, "layers.4", 24).eval()
    content, style = image(2, 32, 1), image(3, 24, 2)
    maps, aim = net.features(content)["layers.4"], net.features(style[:2])["layers.4"]
    mean, deviation = aim.mean((2, 3), keepdim=True), aim.std((2, 3), keepdim=True, correction=0)
    alive = maps.std((2, 3), keepdim=True) > 1e-2
    target = net.target(maps, mean, deviation)
    assert ((target.mean((2, 3), keepdim=True) - mean).abs() < 1e-4)[alive].all()
    assert ((target.std((2, 3), keepdim=True, correction=0) - deviation).abs() < 1e-3 + 1e-2 * deviation)[alive].all()
    assert torch.equal(net.target(maps, mean, deviation, torch.zeros(2)), maps)

    def ask(styles, shares):
        n, one = len(content), torch.tensor(styles)
        with torch.no_grad():
            return net(
                content,
                torch.zeros(n),
                torch.ones(n),
                style[one][None].expand(n, -1, -1, -1, -1),
                torch.tensor([shares] * n),
            ).float()

    first, second, both = ask([0], [1.0]), ask([1], [1.0]), ask([0, 1], [1.0, 1.0])
    assert torch.equal(ask([0, 1], [1.0, 0.0]), first) and torch.equal(ask([0, 1], [0.0, 3.0]), second)
    assert not torch.equal(first, second) and not torch.equal(both, first)
    net.style.copy_(style[1:2])
    assert torch.equal(ask([0], [0.0]), second)  # no share: the style kept in the model


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_optimised_pixels_come_nearer_to_the_style(optimizer):
    features, layers = small(), (("layers.4",), ("layers.1", "layers.4"))
    net = Optimised(features, False, 32, *layers, (1.0, 10.0, 0.0), optimizer, 15).eval()
    net.style.copy_(image(1, 32, 5) // 3)
    content = image(1, 32, 6)
    with torch.inference_mode():
        result = net(content, torch.zeros(1), torch.ones(1))
    with torch.no_grad():
        style = features(net.style)
        before, after = (float(style_loss(features(x), style, layers[1])) for x in (content, result))
    assert after < 0.6 * before
    assert result.dtype == torch.uint8 and result.shape == content.shape
