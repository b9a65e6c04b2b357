"""A pinhole camera: which ray each pixel looks along, and where a sphere lands in the picture."""

from dataclasses import dataclass

import numpy as np

from mapsto.data.scenes.shapes import Floats, unit


@dataclass(frozen=True)
class Camera:
    """Where the picture is taken from.

    eye: (3,) world. axes: (3, 3), rows right, up and forward in the world.
    zoom: focal length over half the image's shorter side. centre: (2,), principal point in half shorter sides.
    """

    eye: Floats
    axes: Floats
    zoom: float
    centre: tuple[float, float]

    def rays(self, height: int, width: int) -> Floats:
        """Unit directions through the pixel centres, row by row: (3, height * width)."""
        half = min(height, width) / 2
        x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / half - self.centre[0]
        y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / half - self.centre[1]
        own = np.empty((3, height, width), np.float32)
        own[0], own[1], own[2] = x[None] / self.zoom, -y[:, None] / self.zoom, 1
        return unit(self.axes.T @ own.reshape(3, -1))

    def window(self, centre: Floats, radius: float, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns that hold every pixel in which a sphere may be seen; the whole picture if it is close."""
        x, y, z = self.axes @ (centre - self.eye)
        if z <= radius * 1.05:
            return slice(0, height), slice(0, width)
        half = min(height, width) / 2
        depths = np.array([z - radius, z + radius])
        across = np.array([x - radius, x + radius])[:, None] / depths * self.zoom + self.centre[0]
        down = np.array([-y - radius, -y + radius])[:, None] / depths * self.zoom + self.centre[1]
        left, right = across.min() * half + width / 2, across.max() * half + width / 2
        top, bottom = down.min() * half + height / 2, down.max() * half + height / 2
        rows = slice(int(np.clip(top - 1, 0, height)), int(np.clip(bottom + 2, 0, height)))
        return rows, slice(int(np.clip(left - 1, 0, width)), int(np.clip(right + 2, 0, width)))


def aim(rng: np.random.Generator, target: Floats, radius: float, yaw: float) -> Camera:
    """A camera that sees a sphere across 68 to 90 % of the shorter side, from above the ground, near the middle.

    The solid inside is smaller than its sphere: about 45 to 80 % of the side.
    yaw: the angle about the vertical, in degrees.
    """
    pitch = np.radians(rng.uniform(12, 36))
    yaw = np.radians(yaw)
    zoom = float(rng.uniform(1.9, 3.2))
    share = rng.uniform(0.68, 0.9)
    distance = radius * np.hypot(1, zoom / share)
    forward = np.array([np.sin(yaw) * np.cos(pitch), -np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    right = np.array([np.cos(yaw), 0, -np.sin(yaw)])
    up = np.cross(forward, right)
    roll = np.radians(rng.normal(0, 2.5))
    right, up = (right * np.cos(roll) + up * np.sin(roll), up * np.cos(roll) - right * np.sin(roll))
    slack = (1 - share) * 0.4
    centre = (float(rng.uniform(-slack, slack)), float(rng.uniform(-slack, slack)))
    return Camera(
        (target - distance * forward).astype(np.float32),
        np.stack([right, up, forward]).astype(np.float32),
        zoom,
        centre,
    )
