"""Generators' nets against closed forms."""

from __future__ import annotations

import math
import tempfile

import numpy as np
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from mapsto.models import diffaugment
from mapsto.models.diffusion import Diffusion, UNet
from mapsto.models.gan import gan, pixels, to_pixels
from mapsto.models.vae import VAE


@pytest.mark.parametrize("name", ["dcgan", "residual"])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("size", [16, 64])
def test_gans_of_every_size(name, classes, size):
    model = gan(name, 8, size, 4, classes, spectral=True)
    label = torch.tensor([0, 2, 1]) if classes else None
    image = model(torch.randn(3, 8), label)
    assert image.shape == (3, size, size, 3) and image.dtype == torch.uint8
    assert model.discriminator(torch.zeros(3, 3, size, size), label).shape == (3,)


@pytest.mark.parametrize("name", ["dcgan", "residual"])
@pytest.mark.parametrize("growth", [1, 10])
def test_the_class_cannot_drown_the_noise(name, growth):
    """However large its values grow, a share of the pictures' differences is the noise's: else one of each class is left."""
    torch.manual_seed(0)
    model = gan(name, 8, 16, 4, 3, spectral=True)
    for module in model.generator.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.data *= growth
    noise, classes = torch.randn(64, 8).repeat_interleave(3, 0), torch.arange(3).repeat(64)
    with torch.no_grad():
        drawn = model.generator(noise, classes).view(64, 3, -1)
    within, whole = drawn.var(0, correction=0).mean(), drawn.var((0, 1), correction=0).mean()
    assert 0.2 * whole < within < 0.95 * whole


@pytest.mark.parametrize("name", ["dcgan", "residual"])
def test_a_class_makes_a_difference(name):
    torch.manual_seed(0)
    model = gan(name, 8, 16, 4, 2, spectral=False).eval()
    z = torch.randn(1, 8).repeat(2, 1)
    first, second = model.generator(z, torch.tensor([0, 1]))
    assert not torch.allclose(first, second)
    scores = model.discriminator(torch.ones(2, 3, 16, 16), torch.tensor([0, 1]))
    assert scores[0] != scores[1]


def test_augmentation_stays_in_its_bounds_and_has_gradient():
    x = torch.rand(64, 3, 16, 16) * 2 - 1
    x.requires_grad_()
    generator = torch.Generator().manual_seed(0)
    for name in diffaugment.POLICIES:
        out = diffaugment.augment(x, (name,), generator)
        assert out.shape == x.shape and not torch.equal(out, x)
        (slope,) = torch.autograd.grad(out.square().sum(), x)
        assert slope.abs().sum((1, 2, 3)).min() > 0
    assert torch.equal(diffaugment.augment(x, (), generator), x)


def test_translation_and_cutout_by_hand():
    x = torch.arange(1, 257, dtype=torch.float32).view(1, 1, 16, 16).repeat(40, 3, 1, 1)
    moved = diffaugment.translation(x, torch.Generator().manual_seed(0)).numpy()
    ways = set()
    for image in moved[:, 0]:
        padded = np.pad(x[0, 0].numpy(), 2)
        found = [(y, c) for y in range(5) for c in range(5) if np.array_equal(padded[y : y + 16, c : c + 16], image)]
        assert len(found) == 1
        ways.add(found[0])
    assert len(ways) > 10
    cut = diffaugment.cutout(x, torch.Generator().manual_seed(0)).numpy()[:, 0]
    for image in cut:
        rows, columns = (np.flatnonzero((image == 0).any(axis)) for axis in (1, 0))
        assert 4 <= len(rows) <= 8 and 4 <= len(columns) <= 8  # a square of 8, cut off at the edges
        assert (image == 0).sum() == len(rows) * len(columns)


def test_the_vaes_losses_are_the_distributions_own():
    torch.manual_seed(0)
    model = VAE(16, 6, 4)
    image, z = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8), torch.randn(3, 6)
    model.log_sigma.data.fill_(-0.7)
    likelihood, divergence, apart = model.losses(image, z)
    mean, log_variance = model.encode(image)
    coded = torch.distributions.Normal(mean, (log_variance / 2).exp())
    kl = torch.distributions.kl_divergence(coded, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence, kl / (3 * 16 * 16))
    decoded = model.decode(mean + z * coded.scale)
    sigma = (-6 + torch.nn.functional.softplus(model.log_sigma.detach() + 6)).exp().item()
    assert sigma == pytest.approx(math.exp(-0.7), rel=0.01)
    wanted = -torch.distributions.Normal(decoded, sigma).log_prob(pixels(image)).mean((1, 2, 3))
    torch.testing.assert_close(likelihood, wanted)
    torch.testing.assert_close(apart, (decoded - pixels(image)).square().mean((1, 2, 3)))


def test_a_codes_weights_say_what_is_decoded():
    torch.manual_seed(0)
    model = VAE(16, 6, 4).eval()
    a, b = torch.randint(0, 256, (2, 1, 16, 16, 3), dtype=torch.uint8)
    z = torch.randn(1, 6)
    with torch.no_grad():
        codes = [model.encode(a)[0], model.encode(b)[0], z]
        for weight in ([1.0, 0, 0], [0.25, 0.75, 0], [0, 0, 1.0]):
            out = model(a, b, torch.tensor([weight]), z)
            code = sum(w * c for w, c in zip(weight, codes, strict=True))
            assert torch.equal(out["decoded"], to_pixels(model.decode(code)))
            assert torch.equal(out["generated"], to_pixels(model.decode(z)))
        assert torch.equal(model(a)["embedding"], codes[0])


class Oracle(torch.nn.Module):
    """The exact v of a data set that holds one image per class: E[x] is that image, whatever the noise."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__()
        self.images = images

    def forward(self, seen, t, label=None):
        x = seen[:, :3]
        a, s = (t * math.pi / 2).cos()[:, None, None, None], (t * math.pi / 2).sin()[:, None, None, None]
        image = self.images[torch.zeros(len(x), dtype=torch.int64) if label is None else label]
        return (a * x - image) / s  # from x = a image + s e and v = a e - s image


def sampler(steps=5, classes=0, fills=False, guidance=1.0):
    return Diffusion(8, (4, 8), 1, classes, fills, steps, guidance).eval()


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_with_a_perfect_net_the_sampler_finds_the_image(steps):
    image = torch.rand(1, 3, 8, 8) * 1.8 - 0.9
    model = sampler(steps)
    model.net = Oracle(image)
    out = model(torch.randn(3, 3, 8, 8))
    assert (out.int() - to_pixels(image).int()).abs().max() <= 1


def test_a_perfect_net_has_no_loss():
    image = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    model = sampler()
    model.net = Oracle(pixels(image))
    label = torch.tensor([0, 1])
    each = model.losses(image, torch.randn(2, 3, 8, 8), torch.tensor([0.2, 0.9]), label)
    torch.testing.assert_close(each, torch.zeros(2), atol=1e-5, rtol=0)


def test_guidance_goes_further_from_no_class_to_the_class():
    images = torch.stack([torch.full((3, 8, 8), value) for value in (0.2, 0.0)])  # class 0, and no class
    for guidance, expected in ((0.0, 0.0), (1.0, 0.2), (2.0, 0.4)):
        model = sampler(steps=6, classes=1, guidance=guidance)
        model.net = Oracle(images)
        out = model(torch.randn(2, 3, 8, 8), torch.tensor([0, 0]))
        assert (out.int() - round((expected + 1) * 127.5)).abs().max() <= 1


def test_what_is_known_stays_and_the_loss_is_of_the_hole():
    torch.manual_seed(0)
    model = sampler(steps=3, fills=True)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    image = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    mask = torch.zeros(2, 8, 8, dtype=torch.uint8)
    mask[0, 2:5, 3:7], mask[1] = 255, 255
    z, t = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.6])
    with torch.no_grad():
        out = model(z, None, image, mask)
        assert torch.equal(out[mask < 128], image[mask < 128])
        assert not torch.equal(out[mask >= 128], image[mask >= 128])
        each = model.losses(image, z, t, None, mask)
        other = z.clone()
        other[0, :, 0, 0] += 5  # noise of a known pixel: never seen
        torch.testing.assert_close(model.losses(image, other, t, None, mask), each)


def test_the_unet_begins_by_predicting_nothing_and_uses_time_and_class():
    torch.manual_seed(0)
    net = UNet(3, (8, 16), 1, 2, 16)
    x, t, label = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 0.9]), torch.tensor([0, 2])
    assert net(x, t, label).abs().max() == 0
    for parameter in net.parameters():
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    out = net(x, t, label)
    assert not torch.allclose(out, net(x, t.flip(0), label)) and not torch.allclose(out, net(x, t, label.flip(0)))


def test_inceptions_pools_are_fids():
    """Averages leave the padding out, and the last block takes the maximum: what sets FID's network apart."""
    import torch.nn.functional as F
    from torchvision.models import inception_v3

    from mapsto.models.extractors import Inception

    torch.manual_seed(0)
    plain = inception_v3(weights=None, aux_logits=True, init_weights=False, num_classes=1008).eval()
    fid = Inception(plain.state_dict()).eval()
    for name, low, pool in (("5b", 192, F.avg_pool2d), ("6c", 768, F.avg_pool2d), ("7c", 2048, F.max_pool2d)):
        x = torch.randn(1, low, 5, 5)
        without = {"count_include_pad": False} if pool is F.avg_pool2d else {}
        block = getattr(plain, f"Mixed_{name}")
        with torch.no_grad():
            ours, theirs = getattr(fid.net, f"Mixed_{name}")(x), block(x)
            pooled = block.branch_pool(pool(x, 3, 1, 1, **without))
        width = pooled.shape[1]
        torch.testing.assert_close(ours[:, :-width], theirs[:, :-width])
        torch.testing.assert_close(ours[:, -width:], pooled)
        assert not torch.allclose(ours[:, -width:], theirs[:, -width:], atol=1e-4)
    with torch.no_grad():
        assert fid(torch.zeros(1, 20, 20, 3, dtype=torch.uint8)).shape == (1, 2048)
    with pytest.raises(ValueError, match="no weights of an Inception v3"):
        Inception({"fc.weight": torch.zeros(1008, 2048)})
    seen = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 40, 70, 3), np.uint8))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        kept = {name: value for name, value in plain.state_dict().items() if not name.startswith("AuxLogits.")}
        torch.save(kept, f"{folder}/weights.pth")
        theirs = FeatureExtractorInceptionV3("fid", ["2048"], feature_extractor_weights_path=f"{folder}/weights.pth")
        (expected,) = theirs(seen.permute(0, 3, 1, 2))
        torch.testing.assert_close(fid(seen), expected.float(), rtol=1e-3, atol=1e-5)


def by_matrices(image: np.ndarray, side: int) -> np.ndarray:
    """TensorFlow 1's bilinear resize of H×W×C, as a matrix of weights along each axis."""

    def weights(length: int) -> np.ndarray:
        out = np.zeros((side, length))
        for i in range(side):
            at = np.float32(i) * np.float32(length / side)
            low = int(at)
            out[i, low] += 1 - (at - low)
            out[i, min(low + 1, length - 1)] += at - low
        return out

    return np.einsum(
        "ih,hwc,jw->ijc", weights(image.shape[0]), image.astype(np.float64), weights(image.shape[1]), optimize=True
    )


@pytest.mark.parametrize("shape", [(32, 32), (64, 48), (299, 299), (301, 700), (1, 5)])
def test_inception_sees_images_as_fids_own_graph_did(shape):
    from mapsto.models.extractors import Inception

    fid = Inception.__new__(Inception)  # without its layers, which take seconds to make
    torch.nn.Module.__init__(fid)
    images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)
    fid.net = torch.nn.Identity()
    seen = fid(torch.from_numpy(images)).permute(0, 2, 3, 1).numpy()
    for ours, image in zip(seen, images, strict=True):
        np.testing.assert_allclose(ours, (by_matrices(image, 299) - 128) / 128, atol=2e-5)
    if shape == (299, 299):
        assert (seen == (images.astype(np.float32) - 128) / 128).all()


def test_tensorflows_grid_has_no_half_pixel():
    from mapsto.models.extractors import resize_as_tensorflow_1

    row = torch.tensor([0.0, 10.0, 40.0]).expand(1, 1, 3, 3)
    assert resize_as_tensorflow_1(row, 2)[0, 0, 0].tolist() == [0.0, 25.0]
    assert resize_as_tensorflow_1(row, 6)[0, 0, 0].tolist() == [0.0, 5.0, 10.0, 25.0, 40.0, 40.0]
