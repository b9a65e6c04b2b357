"""From what the rays meet to linear light: material, lamp, sky, highlights, contact shadow and haze."""

from collections.abc import Sequence

import numpy as np

from mapsto.data.scenes.bodies import Body
from mapsto.data.scenes.camera import Camera
from mapsto.data.scenes.materials import surface
from mapsto.data.scenes.shapes import Floats, dot, unit
from mapsto.data.scenes.stage import Stage
from mapsto.data.scenes.tracing import GROUND, SKY, WALL, Hits, lit


def _open(bodies: Sequence[Body], hits: Hits, p: Floats, n: Floats) -> Floats:
    """Ambient occlusion by the bodies' bounding spheres: (N,) in [0, 1], 1 where nothing stands near."""
    out = np.ones(p.shape[1], np.float32)
    for index, body in enumerate(bodies):
        way = body.centre[:, None] - p
        square = dot(way, way) + np.float32(1e-6)
        radius = np.float32(body.radius * 0.8)
        shut = np.maximum(dot(n, way), 0) / np.sqrt(square) * np.minimum(radius**2 / square, 1)
        out *= np.where(hits.what == index, 1, 1 - np.float32(0.85) * shut)
    low = np.clip(p[1] * 1.6, 0, 1)
    return out * np.where(hits.what >= 0, 0.45 + 0.55 * low, 1)  # the ground shades a body's foot


def shade(camera: Camera, stage: Stage, bodies: Sequence[Body], hits: Hits) -> Floats:
    """Linear RGB along each ray: (3, N), from 0 up, about 1 for a white surface in the light."""
    count = hits.t.size
    t = np.minimum(hits.t, np.float32(200))
    p = camera.eye[:, None] + hits.rays * t
    face = np.zeros((3, count), np.float32)  # the surface's own normal, without relief
    face[1] = 1
    normal, colour = face.copy(), np.zeros((3, count), np.float32)
    gloss, shine = np.zeros(count, np.float32), np.ones(count, np.float32)

    at = np.flatnonzero(hits.what == GROUND)
    if at.size:
        fade = 1 / (1 + (t[at] * np.float32(0.05 * stage.ground.scale / camera.zoom)) ** 2)
        colour[:, at], normal[:, at] = surface(stage.ground, p[:, at], face[:, at], fade)
        gloss[at], shine[at] = stage.ground.gloss, stage.ground.shine
    at = np.flatnonzero(hits.what == WALL)
    if at.size and stage.wall is not None:
        side = np.array([stage.wall_normal[2], 0, -stage.wall_normal[0]], np.float32)
        flat = np.stack([side @ p[:, at], p[1, at], np.zeros(at.size, np.float32)])
        own = np.zeros((3, at.size), np.float32)
        own[2] = 1
        face[:, at] = stage.wall_normal[:, None]
        colour[:, at], _ = surface(stage.wall, flat, own)
        normal[:, at] = face[:, at]
    for index, body in enumerate(bodies):
        at = np.flatnonzero(hits.what == index)
        if at.size:
            own = body.to_own(p[:, at])
            own_normal = body.shape.normal(own)
            colour[:, at], relief = surface(body.material, own, own_normal)
            face[:, at] = unit(body.turn @ (own_normal / body.size[:, None]))
            normal[:, at] = unit(body.turn @ (relief / body.size[:, None]))
            gloss[at], shine[at] = body.material.gloss, body.material.shine

    light = _surface_light(stage, bodies, hits, p, face, normal, colour, gloss, shine)
    if stage.haze > 0:
        light += (stage.horizon[:, None] - light) * (1 - np.exp(-np.float32(stage.haze) * t))
    sky = np.flatnonzero(hits.what == SKY)
    if sky.size:
        light[:, sky] = stage.sky(hits.rays[:, sky])
    return light


def _surface_light(
    stage: Stage,
    bodies: Sequence[Body],
    hits: Hits,
    p: Floats,
    face: Floats,
    normal: Floats,
    colour: Floats,
    gloss: Floats,
    shine: Floats,
) -> Floats:
    """Light sent to the eye by surfaces: Lambert and Blinn-Phong under the sun, and sky from all round: (3, N)."""
    normal = unit(normal)
    sun, view = stage.sun[:, None], -hits.rays
    reached = lit(stage, bodies, hits, p, face)
    lambert = np.clip(dot(normal, sun), 0, 1) * reached
    half = unit(view + sun)
    highlight = np.clip(dot(normal, half), 0, 1) ** shine * gloss * reached * np.clip(4 * lambert, 0, 1)
    open_sky = _open(bodies, hits, p, face)
    light = colour * (stage.sunlight[:, None] * lambert + stage.ambient(normal) * open_sky)
    light += stage.sunlight[:, None] * highlight * np.float32(0.7)
    glossy = np.flatnonzero(gloss > 0.15)
    if glossy.size:
        facing = np.clip(dot(normal[:, glossy], view[:, glossy]), 0, 1)
        mirror = 2 * facing * normal[:, glossy] - view[:, glossy]
        fresnel = (0.05 + 0.95 * (1 - facing) ** 5) * gloss[glossy]  # Schlick 1994
        fresnel = fresnel * np.clip(open_sky[glossy], 0.2, 1)
        light[:, glossy] += (stage.mirrored(mirror) - light[:, glossy] * np.float32(0.5)) * fresnel
    return light
