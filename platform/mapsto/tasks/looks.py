"""How often a model looks at an image when it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field as Setting

from ..core.section import Section

if TYPE_CHECKING:
    from torch import nn


class Looks(Section):
    """Settings of a `task.model` that can look more than once."""

    mirror: bool = False
    """Outside training, look at the image and at its mirror image, and put both answers together (of pixels, the mean of
    their logits; of boxes, all of them), for twice the time: part of the model, and exported with it."""
    scales: tuple[Annotated[float, Setting(ge=0.25, le=4)], ...] = ()
    """Outside training, look at the input resized by each of these factors, too, as `mirror` does: `[0.75, 1.0, 1.5]`.
    Default: at its own size alone."""

    def sides(self, size: int, step: int) -> tuple[int, ...]:
        """Of an input of this size, one for each of the scales: multiples of `step`, pixels; at least one step."""
        return tuple(step * max(1, round(scale * size / step)) for scale in self.scales or (1.0,))

    def around(self, net: nn.Module, size: int, step: int) -> nn.Module:
        """The net as it is, or one that looks with it as often as the settings say."""
        from ..models.views import Views

        sides = self.sides(size, step)
        return Views(net, self.mirror, sides) if self.mirror or sides != (size,) else net
