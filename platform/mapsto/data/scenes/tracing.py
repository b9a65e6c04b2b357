"""Which surface each ray meets first, and which of those points the light reaches."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from mapsto.data.scenes.bodies import Body
from mapsto.data.scenes.camera import Camera
from mapsto.data.scenes.shapes import FAR, Floats, dot, unit
from mapsto.data.scenes.stage import Stage

SKY, GROUND, WALL = -3, -2, -1  # surfaces that are no body; bodies count from 0
SAMPLES = 2  # rays per pixel along each side


@dataclass(frozen=True)
class Hits:
    """What each ray meets: `rays` (3, N) unit, `t` (N,) distance, `what` (N,) body index or SKY, GROUND, WALL."""

    rays: Floats
    t: Floats
    what: npt.NDArray[np.int16]
    height: int
    width: int


def distances(camera: Camera, bodies: Sequence[Body], rays: Floats, height: int, width: int) -> Floats:
    """How far along each ray each body lies: (bodies, height * width), `FAR` where missed."""
    out = np.full((len(bodies), height, width), FAR, np.float32)
    grid = rays.reshape(3, height, width)
    for place, body in zip(out, bodies, strict=True):
        rows, columns = camera.window(body.centre, body.radius, height, width)
        part = grid[:, rows, columns]
        if part.size:
            place[rows, columns] = body.hit(camera.eye[:, None], part.reshape(3, -1)).reshape(part.shape[1:])
    return out.reshape(len(bodies), -1)


def meet(camera: Camera, stage: Stage, rays: Floats, bodies_t: Floats, height: int, width: int) -> Hits:
    """The nearest of the bodies (at `bodies_t`, (bodies, N)), the ground and the wall along each ray."""
    down = np.minimum(rays[1], -1e-6)
    t = np.where(rays[1] < -1e-4, -camera.eye[1] / down, FAR).astype(np.float32)
    what = np.where(t < FAR, np.int16(GROUND), np.int16(SKY))
    if stage.wall is not None:
        toward = np.minimum(stage.wall_normal @ rays, -1e-6)
        wall_t = ((stage.wall_offset - stage.wall_normal @ camera.eye) / toward).astype(np.float32)
        nearer = (wall_t > 0) & (wall_t < t)
        t, what = np.where(nearer, wall_t, t), np.where(nearer, np.int16(WALL), what)
    if len(bodies_t):
        first = bodies_t.argmin(0)
        body_t = np.take_along_axis(bodies_t, first[None], 0)[0]
        nearer = body_t < t
        t, what = (np.where(nearer, body_t, t), np.where(nearer, first.astype(np.int16), what))
    return Hits(rays, t, what, height, width)


def visible(what: npt.NDArray[np.int16], bodies: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Instance ids per pixel (height, width), 0 for none, from the surfaces its rays meet: the most frequent wins."""
    counts = np.zeros((bodies + 1, height, width), np.uint8)
    grid = what.reshape(height, SAMPLES, width, SAMPLES)
    for index in range(bodies):
        counts[index + 1] = (grid == index).sum((1, 3))
    counts[0] = SAMPLES**2 - counts[1:].sum(0)
    return counts.argmax(0).astype(np.uint8)


def _toward_lights(stage: Stage, height: int, width: int, pattern: int) -> Floats:
    """Directions toward points of a round light, one per ray, repeating every pattern x pattern rays: (3, N)."""
    side = unit(np.cross(stage.sun, np.array([0, 1, 0], np.float32)))
    over = np.cross(side, stage.sun)
    index = np.arange(pattern**2)
    radius = np.sqrt((index + 0.5) / pattern**2) * stage.softness  # Vogel's spiral fills a disc evenly
    angle = index * np.pi * (3 - np.sqrt(5))
    lights = stage.sun + (radius * np.cos(angle))[:, None] * side + (radius * np.sin(angle))[:, None] * over
    lights = unit(lights.astype(np.float32).T).reshape(3, pattern, pattern)
    tiled = np.tile(lights, (1, -(-height // pattern), -(-width // pattern)))
    return tiled[:, :height, :width].reshape(3, -1)


def lit(stage: Stage, bodies: Sequence[Body], hits: Hits, p: Floats, n: Floats) -> Floats:
    """How much of the light reaches points p (3, N) that face n (3, N): (N,) in [0, 1].

    Each ray looks toward one point of the light; a blur as wide as the pattern of points averages over all of them.
    """
    pattern = 3 if min(hits.height, hits.width) < 384 else 5
    toward = _toward_lights(stage, hits.height, hits.width, pattern)
    reached = np.ones(p.shape[1], np.float32)
    facing = np.flatnonzero((hits.what != SKY) & (dot(n, toward) > 0))
    start, direction = p[:, facing] + n[:, facing] * np.float32(3e-3), toward[:, facing]
    blocked = np.zeros(facing.size, bool)
    for body in bodies:
        blocked |= body.hit(start, direction) < FAR
    reached[facing[blocked]] = 0
    return _blur_apart(reached, hits, pattern)


def _blur_apart(values: Floats, hits: Hits, side: int) -> Floats:
    """Blur values (N,) over side x side rays, bodies and their surroundings each among themselves."""
    shape, window = (hits.height, hits.width), (side, side)
    solid = (hits.what >= 0).astype(np.float32).reshape(shape)
    both = cv2.blur(values.reshape(shape), window)
    inner, share = (cv2.blur(values.reshape(shape) * solid, window), cv2.blur(solid, window))
    inside = inner / np.maximum(share, np.float32(1e-3))
    outside = (both - inner) / np.maximum(1 - share, np.float32(1e-3))
    return np.clip(np.where(solid > 0, inside, outside), 0, 1).reshape(-1)
