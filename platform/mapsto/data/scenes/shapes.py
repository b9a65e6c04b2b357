"""The solids: where a ray meets each one, and which way its surface faces there.

Every solid lives in its own frame, about two units across and centred near the origin, y up.
A scene's classes are these solids, in the order of `CLASSES`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
FAR = np.float32(1e9)  # what a ray that misses reports; finite, so arithmetic on it stays quiet
NEAR = 1e-3  # a hit nearer than this is the surface the ray starts on


@dataclass(frozen=True)
class Shape:
    """A solid in its own frame.

    hit: origins (3, N) and directions (3, N), not necessarily unit -> t (N,), `FAR` where missed.
    normal: surface points (3, N) -> outward normals (3, N), unit.
    hull: points (3, M) whose convex hull bounds the solid.
    poses: resting positions, as rotations about x and then z, in degrees.
    yaw: how far it may turn about the vertical from facing the camera, in degrees.
    stretch, tall: height varies about `tall` by up to the factor `stretch` either way, at the same volume.
    """

    name: str
    hit: Callable[[Floats, Floats], Floats]
    normal: Callable[[Floats], Floats]
    hull: Floats
    poses: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    yaw: float = 180.0
    stretch: float = 1.1
    tall: float = 1.0


def dot(a: Floats, b: Floats) -> Floats:
    """Inner products of the columns of two (3, N) arrays -> (N,)."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(v: Floats) -> Floats:
    """The columns of (3, N), or one (3,), scaled to length 1."""
    return v / np.maximum(np.sqrt(dot(v, v)), np.float32(1e-9))


def _roots(a: Floats, b: Floats, c: Floats) -> tuple[Floats, Floats]:
    """Both roots of a t^2 + 2 b t + c, smaller first where a > 0; `FAR` where there are none."""
    disc = b * b - a * c
    real = disc >= 0
    root = np.sqrt(np.where(real, disc, 0))
    a = np.where(np.abs(a) < 1e-9, np.float32(1e-9), a)
    return np.where(real, (-b - root) / a, FAR), np.where(real, (-b + root) / a, FAR)


def _nearest(*candidates: Floats) -> Floats:
    """The smallest candidate that lies ahead of the ray's start."""
    best = np.full_like(candidates[0], FAR)
    for t in candidates:
        np.minimum(best, np.where(t > NEAR, t, FAR), out=best)
    return best


def _sphere_hit(o: Floats, d: Floats) -> Floats:
    return _nearest(*_roots(dot(d, d), dot(o, d), dot(o, o) - 1))


def _cap(o: Floats, d: Floats, y: float, radius: float) -> Floats:
    """Where rays meet the disc of this radius at height y."""
    dy = np.where(np.abs(d[1]) < 1e-9, np.float32(1e-9), d[1])
    t = (np.float32(y) - o[1]) / dy
    x, z = o[0] + t * d[0], o[2] + t * d[2]
    return np.where(x * x + z * z <= radius * radius, t, FAR)


CYLINDER_RADIUS = 0.6


def _cylinder_hit(o: Floats, d: Floats) -> Floats:
    a = d[0] ** 2 + d[2] ** 2
    sides = _roots(a, o[0] * d[0] + o[2] * d[2], o[0] ** 2 + o[2] ** 2 - CYLINDER_RADIUS**2)
    sides = [np.where(np.abs(o[1] + t * d[1]) <= 1, t, FAR) for t in sides]
    return _nearest(*sides, _cap(o, d, 1, CYLINDER_RADIUS), _cap(o, d, -1, CYLINDER_RADIUS))


def _cylinder_normal(p: Floats) -> Floats:
    side = unit(np.stack([p[0], np.zeros_like(p[1]), p[2]]))
    on_cap = np.abs(p[1]) - 1 > np.hypot(p[0], p[2]) - CYLINDER_RADIUS
    cap = np.stack([np.zeros_like(p[1]), np.sign(p[1]), np.zeros_like(p[1])])
    return np.where(on_cap, cap, side)


def _cone_hit(o: Floats, d: Floats) -> Floats:
    # x^2 + z^2 = ((1 - y) / 2)^2 between the base at y = -1, radius 1, and the apex at y = 1
    h, dh = (1 - o[1]) / 2, -d[1] / 2
    a = d[0] ** 2 + d[2] ** 2 - dh**2
    sides = _roots(a, o[0] * d[0] + o[2] * d[2] - h * dh, o[0] ** 2 + o[2] ** 2 - h**2)
    sides = [np.where(np.abs(o[1] + t * d[1]) <= 1, t, FAR) for t in sides]
    return _nearest(*sides, _cap(o, d, -1, 1))


def _cone_normal(p: Floats) -> Floats:
    radius = np.maximum(np.hypot(p[0], p[2]), np.float32(1e-6))
    side = unit(np.stack([p[0] / radius, np.full_like(radius, 0.5), p[2] / radius]))
    base = np.stack([np.zeros_like(radius), -np.ones_like(radius), np.zeros_like(radius)])
    return np.where(p[1] + 1 < np.abs(radius - (1 - p[1]) / 2), base, side)


TORUS_RING, TORUS_TUBE = 0.66, 0.32


def _torus_hit(o: Floats, d: Floats) -> Floats:
    """Sphere tracing (Hart 1996): step by the distance to the torus until it is small."""
    length = np.sqrt(dot(d, d))
    d = d / length
    b = dot(o, d)
    reach = np.sqrt(np.maximum(b * b - dot(o, o) + 1, 0))  # inside the unit sphere only
    t, end = np.maximum(-b - reach, NEAR), -b + reach
    out = np.full_like(t, FAR)
    live = np.flatnonzero(end > t)
    for _ in range(48):
        if live.size == 0:
            break
        p = o[:, live] + t[live] * d[:, live]
        gap = np.hypot(np.hypot(p[0], p[2]) - TORUS_RING, p[1]) - TORUS_TUBE
        t[live] += gap
        done = gap < 1e-3
        out[live[done]] = t[live[done]]
        live = live[~done & (t[live] < end[live])]
    return np.where(out < FAR, out / length, FAR)


def _torus_normal(p: Floats) -> Floats:
    ring = TORUS_RING / np.maximum(np.hypot(p[0], p[2]), np.float32(1e-6))
    return unit(np.stack([p[0] * (1 - ring), p[1], p[2] * (1 - ring)]))


class _Polytopes:
    """A union of convex bodies, each the intersection of half-spaces n . p <= offset."""

    def __init__(self, parts: list[list[tuple[float, float, float, float]]]) -> None:
        self.parts: list[tuple[Floats, Floats]] = []
        for part in parts:
            planes = np.array(part, np.float32)
            scale = np.linalg.norm(planes[:, :3], axis=1, keepdims=True)
            self.parts.append((planes[:, :3] / scale, planes[:, 3:] / scale))

    def hit(self, o: Floats, d: Floats) -> Floats:
        best = np.full(o.shape[1], FAR, np.float32)
        for normals, offsets in self.parts:
            toward = normals @ d
            toward[np.abs(toward) < 1e-9] = 1e-9
            t = (offsets - normals @ o) / toward
            enter = np.where(toward < 0, t, -FAR).max(0)
            leave = np.where(toward > 0, t, FAR).min(0)
            np.minimum(best, np.where((enter <= leave) & (enter > NEAR), enter, FAR), out=best)
        return best

    def normal(self, p: Floats) -> Floats:
        out, best = np.zeros_like(p), np.full(p.shape[1], FAR, np.float32)
        for normals, offsets in self.parts:
            height = normals @ p - offsets
            face = height.argmax(0)
            off = np.abs(np.take_along_axis(height, face[None], 0)[0])
            closer = off < best
            out[:, closer] = normals[face[closer]].T
            best[closer] = off[closer]
        return out


def _box(x: float, y: float, z: float) -> list[tuple[float, float, float, float]]:
    return [(1, 0, 0, x), (-1, 0, 0, x), (0, 1, 0, y), (0, -1, 0, y), (0, 0, 1, z), (0, 0, -1, z)]


def _corners(x: float, y: float, z: float) -> Floats:
    return np.array([(i * x, j * y, k * z) for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], np.float32).T


def _star_parts(inner: float, depth: float) -> list[list[tuple[float, float, float, float]]]:
    """Five extruded kites, each from the centre out to one point of the star."""
    parts = []
    for k in range(5):
        angles = np.pi / 2 + 2 * np.pi * k / 5 + np.array([-np.pi / 5, 0, np.pi / 5])
        radii = np.array([inner, 1, inner])
        (x0, x1, x2), (y0, y1, y2) = radii * np.cos(angles), radii * np.sin(angles)
        ring = [(0, 0), (x0, y0), (x1, y1), (x2, y2)]  # counter-clockwise
        planes = [(0.0, 0.0, 1.0, depth), (0.0, 0.0, -1.0, depth)]
        for (ax, ay), (bx, by) in zip(ring, ring[1:] + ring[:1], strict=True):
            nx, ny = by - ay, ax - bx
            planes.append((nx, ny, 0.0, nx * ax + ny * ay))
        parts.append(planes)
    return parts


def _disc(radius: float, y: float) -> Floats:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([radius * np.cos(angle), np.full(48, y), radius * np.sin(angle)]).astype(np.float32)


def _torus_hull() -> Floats:
    tube = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    return np.concatenate([_disc(TORUS_RING + TORUS_TUBE * np.cos(a), TORUS_TUBE * np.sin(a)) for a in tube], 1)


def _sphere_hull() -> Floats:
    return np.concatenate([_disc(np.cos(a), np.sin(a)) for a in np.linspace(-np.pi / 2, np.pi / 2, 25)], 1)


def _star_hull(depth: float) -> Floats:
    angle = np.pi / 2 + 2 * np.pi * np.arange(5) / 5
    flat = np.stack([np.cos(angle), np.sin(angle)])
    return np.concatenate([np.vstack([flat, np.full((1, 5), z)]) for z in (-depth, depth)], 1).astype(np.float32)


_CUBE = _Polytopes([_box(0.85, 0.85, 0.85)])
_PYRAMID = _Polytopes(
    [[(0, -1, 0, 1), (2, 0.95, 0, 0.95), (-2, 0.95, 0, 0.95), (0, 0.95, 2, 0.95), (0, 0.95, -2, 0.95)]]
)
_CROSS = _Polytopes([_box(1, 0.33, 0.33), _box(0.33, 1, 0.33)])
_STAR = _Polytopes(_star_parts(0.45, 0.28))
_PYRAMID_HULL = np.array(
    [(0, 1, 0), (0.95, -1, 0.95), (0.95, -1, -0.95), (-0.95, -1, 0.95), (-0.95, -1, -0.95)], np.float32
).T
_CROSS_HULL = np.concatenate([_corners(1, 0.33, 0.33), _corners(0.33, 1, 0.33)], 1)

SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("sphere", _sphere_hit, unit, _sphere_hull(), stretch=1.06),
        Shape("cube", _CUBE.hit, _CUBE.normal, _corners(0.85, 0.85, 0.85)),
        Shape(
            "cylinder",
            _cylinder_hit,
            _cylinder_normal,
            np.concatenate([_disc(CYLINDER_RADIUS, 1), _disc(CYLINDER_RADIUS, -1)], 1),
            poses=((0, 0), (0, 0), (0, 0), (90, 0)),
            stretch=1.2,
        ),
        Shape(
            "cone",
            _cone_hit,
            _cone_normal,
            np.concatenate([_disc(1, -1), np.array([[0], [1], [0]], np.float32)], 1),
            poses=((0, 0), (0, 0), (0, 0), (0, 0), (108.7, 0)),  # on its base, seldom on its side
            stretch=1.12,
            tall=1.3,
        ),
        Shape("torus", _torus_hit, _torus_normal, _torus_hull(), poses=((0, 0), (90, 0), (55, 0)), yaw=40),
        Shape("pyramid", _PYRAMID.hit, _PYRAMID.normal, _PYRAMID_HULL, tall=0.85),
        Shape("cross", _CROSS.hit, _CROSS.normal, _CROSS_HULL, poses=((0, 0), (0, 45)), yaw=40),
        Shape("star", _STAR.hit, _STAR.normal, _star_hull(0.28), yaw=40),
    )
}
CLASSES: tuple[str, ...] = tuple(SHAPES)
