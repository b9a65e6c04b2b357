"""The mirrored classifier: a mean over both sides outside training."""

import torch
from torch import nn

from mapsto.models.views import Views


def net() -> Views:
    torch.manual_seed(0)
    return Views(nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5)))


def test_an_answer_is_the_mean_over_both_sides_and_the_same_for_either() -> None:
    model, images = net().eval(), torch.randn(6, 3, 4, 4)
    both = model(images)
    torch.testing.assert_close(both, (model.net(images) + model.net(torch.flip(images, [-1]))) / 2)
    torch.testing.assert_close(both, model(images.flip(3)))


def test_training_sees_one_side() -> None:
    model, images = net().train(), torch.randn(6, 3, 4, 4)
    torch.testing.assert_close(model(images), model.net(images), rtol=0, atol=0)
