"""LPIPS against torchmetrics' network, which is the paper's, on the same random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.image.lpips import _LPIPS

from mapsto.core.errors import UserError
from mapsto.models.lpips import Lpips
from mapsto.tasks.likeness import Likeness

NAMES = {"alexnet": "alex", "vgg16": "vgg"}


def weights(network: str) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Theirs, and the same weights as the published files have them."""
    torch.manual_seed(0)
    theirs: Any = _LPIPS(pretrained=False, net=NAMES[network], pnet_rand=True, eval_mode=True)  # type: ignore[arg-type]
    linear = {}
    for number, each in enumerate(theirs.lins):
        each.model[1].weight.data.uniform_(0, 1)  # as the published ones, none is negative
        linear[f"lin{number}.model.1.weight"] = each.model[1].weight.data
    backbone = {}
    for name, value in theirs.net.state_dict().items():
        backbone[f"features.{name.split('.', 1)[1]}"] = value
    return theirs, backbone, linear


def pictures(size: tuple[int, int] = (70, 64)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (2, *size, 3), np.uint8)
    return a, np.clip(a + rng.normal(0, 30, a.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("network", ["alexnet", "vgg16"])
def test_it_is_the_published_one(network: str, tmp_path: Path) -> None:
    theirs, backbone, linear = weights(network)
    a, b = pictures()
    torch.save(backbone | {"classifier.6.weight": torch.zeros(3)}, tmp_path / "net.pth")
    torch.save(linear, tmp_path / "lin.pth")
    measure = Likeness(network=network, backbone=str(tmp_path / "net.pth"), linear=str(tmp_path / "lin.pth"))  # type: ignore[arg-type]
    scaled = [torch.from_numpy(each).permute(0, 3, 1, 2).float() / 127.5 - 1 for each in (a, b)]
    with torch.no_grad():
        expected = theirs(*scaled).flatten().numpy()
    found = measure(a, b)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert (found > 1e-3).all() and measure(a, a).tolist() == [0, 0]
    if network == "alexnet":
        with pytest.raises(UserError, match=r"task.lpips: pictures of 8x8 pixels are too small for alexnet"):
            measure(*pictures((8, 8)))


def test_other_weights_are_refused_by_name(tmp_path: Path) -> None:
    _, backbone, linear = weights("alexnet")
    with pytest.raises(ValueError, match=r"no alexnet by torchvision's names: features.0.weight is missing"):
        Lpips("alexnet", {}, linear)
    with pytest.raises(ValueError, match=r"no vgg16 by torchvision's names: features.0.weight is \[64, 3, 11, 11\]"):
        Lpips("vgg16", backbone, linear)
    torch.save(backbone, tmp_path / "net.pth")
    torch.save(linear | {"lin2.model.1.weight": torch.zeros(1, 3, 1, 1)}, tmp_path / "lin.pth")
    measure = Likeness(backbone=str(tmp_path / "net.pth"), linear=str(tmp_path / "lin.pth"))
    with pytest.raises(UserError, match=r"task.lpips: .*lin.pth: no linear .* lin2.model.1.weight is \[1, 3, 1, 1\]"):
        measure(*pictures())
