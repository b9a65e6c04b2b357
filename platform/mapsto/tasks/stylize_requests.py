"""A request for a stylised picture as rows of a model's inputs, and the rows' answers as pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..core.preprocess import Preprocess, resize
from ..core.sample import Batch, Geometry, Sample
from ..core.task import image_of
from ..core.tiles import Tiles

ROWS = 8
"""Rows of one call of the model, for pictures that become several."""


@dataclass(frozen=True)
class Requests:
    """Pictures of any size, each as one row or, where it is larger than a tile, as several: the whole of it first, then its
    tiles, which are normalised by the whole's statistics."""

    size: int
    """Side of a tile."""
    longest_side: int
    """Larger pictures are shrunk to this."""
    overlap: int
    alpha: float
    """Strength where a request does not say."""
    count: int
    """Most style pictures of a request; 0 where the model knows its style."""
    style_size: int
    colour: str

    @property
    def names(self) -> tuple[str, ...]:
        """The model's inputs."""
        return ("image", "shared", "alpha", *(("style", "mix") if self.count else ()))

    @property
    def styles(self) -> list[tuple[str, str]]:
        """Names of a request's style pictures and of their weights."""
        ends = ["", *(f"_{k}" for k in range(2, self.count + 1))][: self.count]
        return [(f"style{end}", f"weight{end}") for end in ends]

    def prepare(self, request: Mapping[str, Any]) -> tuple[Sample, Geometry]:
        """The rows of a picture, each with its strength and style."""
        from ..core import codecs
        from ..core.picture import recolour

        data = image_of(request)
        image = data if isinstance(data, np.ndarray) else codecs.decode(data)
        geometry = Geometry(np.eye(3), *image.shape[:2])
        tiles = self._tiles(geometry)
        image = resize(image, tiles.width, tiles.height)
        rows = tiles.cut(image)
        if len(tiles) > 1:
            rows = np.concatenate([resize(image, self.size, self.size)[None], rows])
        shared = np.zeros(len(rows), np.float32)
        shared[1:] = 1
        strength = _number(request, "alpha", self.alpha, 1.0)
        sample: Sample = {"image": rows, "shared": shared, "alpha": np.full(len(rows), strength, np.float32)}
        if self.count:
            pictures, shares = self._styles(request)
            if self.colour == "lab":
                pictures = np.stack([recolour(picture, image) for picture in pictures])
            sample["style"] = np.broadcast_to(pictures, (len(rows), *pictures.shape))
            sample["mix"] = np.broadcast_to(shares, (len(rows), *shares.shape))
        return sample, geometry

    def parts(self, batch: Batch) -> Iterator[dict[str, Any]]:
        """Pictures of one row go together; of a larger one, some tiles at a time, each time after the whole picture."""
        waiting: list[int] = []
        for start, stop in itertools.pairwise(batch["image_offsets"].tolist()):
            if stop - start == 1:
                waiting.append(start)
            if waiting and (stop - start > 1 or len(waiting) == ROWS):
                yield {name: batch[name][waiting] for name in self.names}
                waiting = []
            for first in range(start + 1, stop, ROWS):
                index = [start, *range(first, min(first + ROWS, stop))]
                yield {name: batch[name][index] for name in self.names}
        if waiting:
            yield {name: batch[name][waiting] for name in self.names}

    def pictures(self, rows: np.ndarray, geometry: Sequence[Geometry]) -> Iterator[np.ndarray]:
        """The answers to `parts`, end to end, as pictures."""
        place = 0
        for one in geometry:
            tiles, mine = self._tiles(one), []
            for first in range(0, len(tiles), ROWS):
                place += len(tiles) > 1  # past the whole picture
                mine.extend(rows[place : place + min(ROWS, len(tiles) - first)])
                place += min(ROWS, len(tiles) - first)
            yield tiles.join(np.stack(mine))

    def _tiles(self, geometry: Geometry) -> Tiles:
        scale = min(1.0, self.longest_side / max(geometry.height, geometry.width))
        height, width = (max(1, round(side * scale)) for side in (geometry.height, geometry.width))
        return Tiles(height, width, self.size, self.overlap)

    def _styles(self, request: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """(K×S×S×3 uint8, K shares): all shares 0 where the request has no style."""
        size, given = self.style_size, 0
        pictures, shares = np.zeros((self.count, size, size, 3), np.uint8), np.zeros(self.count, np.float32)
        for k, (style, weight) in enumerate(self.styles):
            data = request.get(style)
            if data is not None and len(data):
                pictures[k] = Preprocess(size, "crop")(data)[0]
                shares[k] = _number(request, weight, 1.0, None)
                given += 1
            elif request.get(weight) is not None:
                raise UserError(f"`{weight}` is given, and no `{style}`")
        if given and not shares.any():
            raise UserError("every weight is 0: give one of the styles a share")
        return pictures, shares


def _number(request: Mapping[str, Any], name: str, default: float, most: float | None) -> float:
    given = request.get(name)
    try:
        value = default if given is None else float(given)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 <= value <= (most if most is not None else 1e6):
        raise UserError(
            f"`{name}` must be a number from 0{f' to {most:g}' if most is not None else ' on'}, not {given!r}"
        )
    return value
