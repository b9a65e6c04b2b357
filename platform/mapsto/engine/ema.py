"""An exponential moving average of the weights (Polyak and Juditsky 1992), evaluated and kept instead of the last."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


class Ema:
    """Averages parameters and floating buffers; other buffers (counters) are taken as they are.

    `decay` is the steady value; step n uses min(decay, (1 + n) / (10 + n)), so that a short run is not an average
    with its random start (as TensorFlow's ExponentialMovingAverage with num_updates).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.tensors = {name: value.detach().clone() for name, value in _floating(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.tensors.values()), list(_floating(model).values()), 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Generator[None]:
        """Within, the model has the averaged weights; after it, its own again, to the bit."""
        own = {name: value.detach().clone() for name, value in _floating(model).items()}
        try:
            _copy(self.tensors, model)
            yield
        finally:
            _copy(own, model)

    def copy_to(self, model: nn.Module) -> None:
        _copy(self.tensors, model)

    def state(self) -> dict[str, object]:
        return {"steps": self.steps, "tensors": self.tensors}

    def load(self, steps: int, tensors: Mapping[str, torch.Tensor]) -> None:
        self.steps = steps
        for name, value in self.tensors.items():
            value.copy_(tensors[name])


@torch.no_grad()
def _copy(values: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    for name, target in _floating(model).items():
        target.copy_(values[name])


def _floating(model: nn.Module) -> dict[str, torch.Tensor]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach() for name, value in tensors.items() if value.is_floating_point()}
