"""Everything around the solids: the sky or the wall, the ground, and the light."""

from dataclasses import dataclass

import numpy as np

from mapsto.data.scenes.materials import Material, of_ground, of_wall
from mapsto.data.scenes.noise import fractal_tile, look_up
from mapsto.data.scenes.shapes import Floats, dot, unit


@dataclass(frozen=True)
class Stage:
    """A place to stand solids in.

    wall: None outdoors. wall_normal: (3,), toward the camera; wall_offset: wall_normal . p on the wall.
    zenith, horizon: linear RGB (3,) of the sky overhead and at the horizon. sun: (3,) unit, toward the light.
    sunlight: linear RGB (3,). softness: the light's angular radius. haze: per unit of distance. clouds: in [0, 1].
    """

    ground: Material
    wall: Material | None
    wall_normal: Floats
    wall_offset: float
    zenith: Floats
    horizon: Floats
    sun: Floats
    lit_from: str
    sunlight: Floats
    softness: float
    haze: float
    clouds: float
    shift: float

    def sky(self, d: Floats) -> Floats:
        """What is seen far away along unit directions (3, N) -> linear RGB (3, N)."""
        rise = np.clip(d[1], 0, 1)
        mix = np.sqrt(rise)[None]
        colour = self.horizon[:, None] * (1 - mix) + self.zenith[:, None] * mix
        flat = 1 / (rise + 0.25)
        cover = look_up(fractal_tile(), d[0] * flat + self.shift, d[2] * flat)
        cloud = np.clip(cover[0] + self.clouds - 0.5, 0, 1) * np.minimum(rise * 5, 1)
        colour = colour * (1 - cloud) + np.float32(0.85) * cloud
        bearing = np.arctan2(d[0], np.maximum(d[2], 1e-3)).astype(np.float32)
        ridge = look_up(fractal_tile(), bearing + self.shift, np.full_like(bearing, 2.5))
        hill = np.clip((0.05 + 0.06 * ridge[1] - d[1]) * 120, 0, 1)
        shade = (self.horizon * np.float32(0.35) + np.array([0.02, 0.035, 0.03], np.float32))[:, None] * (
            1 + 0.3 * cover[3]
        )
        return (colour * (1 - hill) + shade * hill).astype(np.float32)

    def ambient(self, n: Floats) -> Floats:
        """Light from all round on surfaces that face n (3, N) -> (3, N)."""
        up = (0.5 + 0.5 * n[1])[None]
        below = (0.4 * self.ground.first * (self.sunlight.mean() + 0.3))[:, None]
        above = (0.5 * self.zenith + 0.5 * self.horizon)[:, None]
        return (above * up + below * (1 - up)).astype(np.float32)

    def mirrored(self, d: Floats) -> Floats:
        """What a glossy surface reflects along unit directions (3, N) -> (3, N); smooth, with one bright window."""
        up = np.clip(0.5 + 2.5 * d[1], 0, 1)[None]
        above = self.horizon[:, None] * (1 - np.clip(d[1], 0, 1)) + self.zenith[:, None] * np.clip(d[1], 0, 1)
        window = np.clip((dot(d, self.window_at()[:, None]) - 0.9) * 25, 0, 1)
        return (above * up + (0.5 * self.ground.first)[:, None] * (1 - up) + window).astype(np.float32)

    def window_at(self) -> Floats:
        """The middle of the bright window that reflections show: (3,) unit, beside the sun."""
        return unit(self.sun + np.array([0.35, 0.2, -0.35], np.float32))


BEARINGS = {"left": -90.0, "right": 90.0, "front": 180.0, "back": 0.0}


def _sun(rng: np.random.Generator, camera_yaw: float) -> tuple[Floats, str]:
    """A direction toward the light (3,) and the word for it, as the camera sees it."""
    word = ("left", "right", "left", "right", "front", "back")[rng.integers(6)]
    bearing = np.radians(BEARINGS[word] + rng.uniform(-35, 35)) + camera_yaw
    height = np.radians(rng.uniform(28, 62))
    flat = np.cos(height)
    return np.array([flat * np.sin(bearing), np.sin(height), flat * np.cos(bearing)], np.float32), word


def build(rng: np.random.Generator, camera_yaw: float) -> Stage:
    """A random stage for a camera turned by `camera_yaw` (radians) about the vertical."""
    indoors = rng.random() < 0.5
    sun, word = _sun(rng, camera_yaw)
    warmth = rng.uniform(-0.12, 0.2)
    tint = np.array([1 + warmth, 1, 1 - warmth])
    if indoors:
        level = rng.uniform(0.15, 0.5)
        zenith, horizon = level * tint, level * tint * rng.uniform(0.6, 1.0)
    else:
        zenith = np.array([0.12, 0.28, 0.65]) * rng.uniform(0.5, 1.2)
        grey = rng.uniform(0, 1)
        zenith = zenith * (1 - grey) + grey * rng.uniform(0.3, 0.7)
        horizon = np.array([0.72, 0.78, 0.85]) * tint * rng.uniform(0.6, 1.1)
    angle = camera_yaw + np.radians(rng.uniform(-25, 25))
    normal = -np.array([np.sin(angle), 0, np.cos(angle)], np.float32)
    return Stage(
        of_ground(rng),
        of_wall(rng) if indoors else None,
        normal,
        -float(rng.uniform(3.3, 6.5)),
        zenith.astype(np.float32),
        horizon.astype(np.float32),
        sun,
        word,
        (tint * rng.uniform(0.7, 1.5)).astype(np.float32),
        float(rng.uniform(0.02, 0.12)),
        0.0 if indoors else float(rng.uniform(0.002, 0.02)),
        float(rng.uniform(0, 1)),
        float(rng.uniform(0, 8)),
    )
