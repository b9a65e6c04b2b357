"""Classifiers from a textbook: a feed-forward net, a convolutional one whose every piece is a setting, a recurrent one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
}
POOLING: Mapping[str, Callable[[int], nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


class Mlp(nn.Module):
    """forward(N×3×size×size float) → N×classes logits: every pixel into fully connected layers of `widths` units each."""

    def __init__(
        self,
        classes: int,
        size: int,
        widths: Sequence[int] = (256, 128),
        activation: str = "relu",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = 3 * size * size
        for width in widths:
            layers += [nn.Linear(inputs, width), ACTIVATIONS[activation](), nn.Dropout(drop_rate)]
            inputs = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(images))


class Cnn(nn.Module):
    """forward(N×3×H×W float) → N×classes logits: per entry of `widths` a convolution (`kernel`, `stride`, padded by
    kernel // 2), the activation, and pooling of 2×2, in the order of LeCun et al., Gradient-Based Learning Applied to
    Document Recognition (1998); then the mean over the places, and one linear layer.

    `pooling`: max, average or none. Raises ValueError where an image of `size` pixels is gone before the last layer.
    """

    def __init__(
        self,
        classes: int,
        size: int,
        widths: Sequence[int] = (32, 64, 128),
        kernel: int = 3,
        stride: int = 1,
        activation: str = "relu",
        pooling: str = "max",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, side = 3, size
        for width in widths:
            layers += [nn.Conv2d(inputs, width, kernel, stride, kernel // 2), ACTIVATIONS[activation]()]
            side = (side + 2 * (kernel // 2) - kernel) // stride + 1
            if pooling != "none":
                layers.append(POOLING[pooling](2))
                side //= 2
            if side < 1:
                raise ValueError(
                    f"{len(widths)} layers leave nothing of {size} pixels (kernel {kernel}, stride {stride})"
                )
            inputs = width
        self.layers = nn.Sequential(*layers)
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.layers(images).mean((2, 3))))


class Lstm(nn.Module):
    """forward(N×3×size×size float) → N×classes logits: the image as a sequence for an LSTM (Hochreiter and Schmidhuber,
    Long Short-Term Memory, 1997), read by its rows of pixels, top to bottom, or, with `patch`, by patches of that side in
    reading order; the last state of the last layer answers.

    `widths`: units of each layer. Raises ValueError where `patch` does not divide `size`.
    """

    def __init__(
        self, classes: int, size: int, widths: Sequence[int] = (128,), patch: int | None = None, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        if patch is not None and size % patch:
            raise ValueError(f"patches of {patch} pixels do not tile {size}")
        self.patch = patch
        inputs = [3 * (size if patch is None else patch * patch), *widths[:-1]]
        self.layers = nn.ModuleList(nn.LSTM(i, o, batch_first=True) for i, o in zip(inputs, widths, strict=True))
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(widths[-1], classes)

    def sequence(self, images: torch.Tensor) -> torch.Tensor:
        """N×3×H×W → N×steps×features."""
        if self.patch is None:
            return images.permute(0, 2, 1, 3).flatten(2)
        grid = images.unfold(2, self.patch, self.patch).unfold(3, self.patch, self.patch)
        return grid.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.sequence(images)
        for layer in self.layers:
            x, _ = layer(x)
        return self.head(self.drop(x[:, -1]))
