"""The networks against their papers' numbers of parameters and torch's own operations."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import vgg16_bn

from mapsto.core.errors import UserError
from mapsto.models import deeplab, segformer, segnet, unet


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("net", "side"),
    [
        (unet.build(5, (4, 8, 8)), 12),
        (segnet.build(5, (4, 8, 8)), 16),
        (deeplab.build(5, "resnet10t", width=16), 40),
        (deeplab.build(5, "mobilenetv3_small_050", output_stride=8, width=16), 36),
        (segformer.build(5, (32, 32, 32, 32), width=16), 64),
    ],
    ids=["unet", "segnet", "deeplab", "deeplab-dilated", "segformer"],
)
def test_logits_have_the_inputs_size_and_every_parameter_learns(net, side):
    out = net(torch.randn(1, 3, side, side))  # one row, in training mode
    assert out.shape == (1, 5, side, side)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_segnets_encoder_is_vgg16s():
    with torch.device("meta"):  # shapes only
        full, vgg = segnet.SegNet(11, (64, 128, 256, 512, 512)), vgg16_bn()
    conv = [m for m in full.down.modules() if isinstance(m, torch.nn.Conv2d)]
    theirs = [m for m in vgg.features if isinstance(m, torch.nn.Conv2d)]
    assert [m.weight.shape for m in conv] == [m.weight.shape for m in theirs]
    assert count(full) == pytest.approx(29.46e6, rel=0.001)  # the paper's table 4: 29.45 million and the classifier


def test_unpooling_is_torchs():
    x = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    pooled, places = F.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(segnet.unpool(pooled, places), F.max_unpool2d(pooled, places, 2))


def test_segformer_b0_has_the_papers_size():
    with torch.device("meta"):
        net = segformer.build(150, width=256)
    assert count(net.stages) / 1e6 == pytest.approx(3.4, abs=0.1)  # table 6: 3.4 million in MiT-B0, 0.4 in the decoder
    assert (count(net) - count(net.stages)) / 1e6 == pytest.approx(0.4, abs=0.1)


def test_deeplabs_deep_features_keep_a_sixteenth_and_atrous_rates_the_papers():
    net = deeplab.build(3, "resnet10t", width=8)
    low, deep = net.backbone(torch.randn(1, 3, 64, 64))
    assert (low.shape[2:], deep.shape[2:]) == ((16, 16), (4, 4))
    rates = {m.dilation for m in net.aspp.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1}
    assert rates == {(6, 6), (12, 12), (18, 18)}


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ("resnet81", r"'resnet81' is no timm model, did you mean"),
        ("vit_tiny_patch16_224", r"gives no feature maps at strides \[4, 16\]"),
    ],
)
def test_a_backbone_that_does_not_fit_is_named(backbone, said):
    with pytest.raises(UserError, match=said):
        deeplab.build(3, backbone)
