"""An image's vector is what the last layer looks at: put through that layer, it gives the logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mapsto.core.errors import UserError
from mapsto.models.backbones import classifier
from mapsto.models.normalize import Normalized
from mapsto.models.pooled import backbone, pooled
from mapsto.models.unet import UNet
from mapsto.models.views import Views

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
IMAGES = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "head", "width"),
    [("resnet10t", "fc", 512), ("resnet20", "linear", 64), ("airbench_tiny", "head", 128), ("mlp", "head", None)],
)
def test_the_last_layer_of_the_vector_is_the_logits(name: str, head: str, width: int | None) -> None:
    torch.manual_seed(0)
    net = classifier(name, 5, image_size=32)
    model = Normalized(net, MEAN, STD).eval()
    with torch.no_grad():
        vectors, logits = pooled(model, IMAGES), model(IMAGES)
        expected = getattr(net, head)(vectors) * getattr(net, "scale", 1)
        mirrored = pooled(Normalized(Views(net), MEAN, STD).eval(), IMAGES)
    assert width is None or vectors.shape == (3, width)
    np.testing.assert_allclose(expected, logits, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(mirrored, vectors, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_of_masks_the_mean_of_the_logits_over_the_pixels() -> None:
    model = Normalized(UNet(4, widths=(4, 8)), MEAN, STD).eval()
    with torch.no_grad():
        np.testing.assert_allclose(pooled(model, IMAGES), model(IMAGES).mean((2, 3)), atol=1e-6)


def test_an_embedding_is_taken_as_it_is_and_a_detector_is_refused() -> None:
    class Answers(nn.Module):
        def __init__(self, **out: torch.Tensor) -> None:
            super().__init__()
            self.out = out

        def forward(self, _: torch.Tensor) -> dict[str, torch.Tensor]:
            return self.out

    embedding = torch.eye(3)
    assert pooled(Answers(embedding=embedding, logits=torch.ones(3, 2)), IMAGES) is embedding
    for out in ({"boxes": torch.ones(3, 4, 4)}, {"logits": torch.ones(3, 9, 2)}):
        with pytest.raises(UserError, match="gives no vector for an image"):
            pooled(Answers(**out), IMAGES)


def test_an_untrained_backbone_is_always_the_same_and_leaves_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one = backbone("resnet10t", False, 32)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    other = backbone("resnet10t", False, 32)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(UserError, match=r"index\.pretrained: there are no weights of 'mlp'"):
        backbone("mlp", True, 32)
