"""What a training photograph may go through, whatever is learnt from it."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field as Setting

from ..core.section import Section
from ..data.transforms import GaussianBlur, RandomFlip, RandomPerspective, RandomRotate, Step


class Changes(Section):
    """Settings that tasks share; each begins with the strengths that it needs."""

    flip: float = Setting(0.5, ge=0, le=1)
    """Probability of a mirror image, left and right exchanged."""
    vertical_flip: float = Setting(0.0, ge=0, le=1)
    """Probability of top and bottom exchanged."""
    rotate: float = Setting(0.0, ge=0, le=180)
    """Largest angle, degrees; of a mask, what turns in from outside is void."""
    perspective: float = Setting(0.0, ge=0, le=1)
    """Largest way of a corner inward, as a share of half the side."""
    brightness: float = Setting(0.0, ge=0, le=1)
    contrast: float = Setting(0.0, ge=0, le=1)
    saturation: float = Setting(0.0, ge=0, le=1)
    hue: float = Setting(0.0, ge=0, le=0.5)
    """Largest turn of the hue, as a share of the circle."""
    blur: float = Setting(0.0, ge=0, le=1)
    """Probability of a Gaussian blur by 0.1 to 2 pixels."""

    def turns(self) -> Iterator[Step]:
        """What moves pixels, after the crop and the mirror."""
        if self.vertical_flip:
            yield RandomFlip(self.vertical_flip, "vertical")
        if self.rotate:
            yield RandomRotate(self.rotate)
        if self.perspective:
            yield RandomPerspective(self.perspective)

    def blurs(self) -> Iterator[Step]:
        if self.blur:
            yield GaussianBlur(self.blur)
