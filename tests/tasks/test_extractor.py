"""Where generated images' features come from."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mapsto.core.errors import UserError
from mapsto.core.metrics.frechet import frechet
from mapsto.core.metrics.generation import pixels8
from mapsto.tasks.extractor import Extractor

models: Any = SourceFileLoader("saved_models", str(Path(__file__).parents[1] / "serving" / "models.py")).load_module()
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def test_fixed_features_are_the_same_everywhere():
    first = Extractor()(IMAGES)
    assert first.shape == (5, 352) and first.dtype == np.float32
    np.testing.assert_allclose(Extractor()(IMAGES[2:3])[0], first[2], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(Extractor(name="pixels8")(IMAGES), pixels8(IMAGES))


def test_random_filters_see_texture_where_eight_pixels_do_not():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 40, (2, 80, 32, 32, 3))
    flat = 128 + np.kron(rng.normal(0, 10, (2, 80, 4, 4, 1)), np.ones((8, 8, 3)))
    rough = (flat[0] + noise[0] - noise[0].mean((1, 2), keepdims=True)).clip(0, 255).astype(np.uint8)
    plain, again = (x.clip(0, 255).astype(np.uint8) for x in flat)
    ratios = []
    for name in ("random_conv", "pixels8"):
        look = Extractor(name=name)
        ratios.append(
            frechet(look(rough)[:, :32], look(plain)[:, :32]) / frechet(look(again)[:, :32], look(plain)[:, :32])
        )
    assert ratios[0] > 5 * ratios[1]


def test_a_trained_models_features(tmp_path):
    from mapsto.models.pooled import pooled

    task = models.task("classify", model={"name": "resnet10t"})
    artifact = models.train_artifact(tmp_path, task)
    features = Extractor(name="mine", artifact=artifact.uri)(IMAGES)
    torch.manual_seed(0)
    with torch.inference_mode():
        wanted = pooled(task.build({}).eval(), torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(features, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"task\.extractor\.artifact: .*no finished train artifact"):
        Extractor(name="mine", artifact=str(tmp_path / "none"))(IMAGES)


def test_weights_that_are_none_of_inceptions_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"fc.bias": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"task\.extractor\.weights: .*fc\.weight is missing"):
        Extractor(name="inception", weights=str(path))(IMAGES)
    path.write_bytes(b"no state")
    with pytest.raises(UserError, match="no PyTorch state dict"):
        Extractor(name="inception", weights=str(path))(IMAGES)
