"""A solid put somewhere in the world, and rays against it."""

from dataclasses import dataclass

import numpy as np

from mapsto.data.scenes.materials import Material
from mapsto.data.scenes.shapes import FAR, SHAPES, Floats, Shape, dot, unit


@dataclass(frozen=True)
class Body:
    """One solid of a scene, resting on the ground y = 0.

    centre: (3,) world. turn: (3, 3), own frame to world. size: (3,), the scale along its own axes.
    radius: of the bounding sphere about `centre`.
    """

    shape: Shape
    material: Material
    centre: Floats
    turn: Floats
    size: Floats
    radius: float

    def to_own(self, p: Floats) -> Floats:
        """World points (3, N) -> the solid's own frame (3, N)."""
        return (self.turn.T @ (p - self.centre[:, None])) / self.size[:, None]

    def hit(self, o: Floats, d: Floats) -> Floats:
        """Rays from o (3, N) or (3, 1) along d (3, N) -> t (N,) in units of d, `FAR` where missed."""
        out = np.full(d.shape[1], FAR, np.float32)
        toward = self.centre[:, None] - o
        along = dot(toward, d)
        aside = dot(toward, toward) - along * along
        near = np.flatnonzero((aside < self.radius**2 * 1.001) & (along > -self.radius))  # for unit d
        if near.size:
            start = o[:, near] if o.shape[1] > 1 else np.broadcast_to(o, (3, near.size))
            out[near] = self.shape.hit(self.to_own(start), (self.turn.T @ d[:, near]) / self.size[:, None])
        return out

    def normal(self, own: Floats) -> Floats:
        """Points of its surface in its own frame (3, N) -> outward normals in the world (3, N), unit."""
        return unit(self.turn @ (self.shape.normal(own) / self.size[:, None]))


def _about(axis: int, degrees: float) -> Floats:
    """The rotation matrix (3, 3) about a coordinate axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    turn = np.eye(3)
    turn[i, i], turn[j, j], turn[i, j], turn[j, i] = c, c, -s, s
    return turn.astype(np.float32)


def rest(
    rng: np.random.Generator, name: str, material: Material, x: float, z: float, radius: float, lean: float = 0.0
) -> Body:
    """A body of class `name` resting on the ground at (x, z), its bounding sphere of about this radius.

    lean: the camera's own angle about the vertical in degrees, which flat solids face.
    """
    shape = SHAPES[name]
    about_x, about_z = shape.poses[rng.integers(len(shape.poses))]
    turn = _about(1, lean + rng.uniform(-shape.yaw, shape.yaw)) @ _about(2, about_z) @ _about(0, about_x)
    tall = shape.tall * np.exp(rng.uniform(-1, 1) * np.log(shape.stretch))
    size = np.array([tall**-0.5, tall, tall**-0.5], np.float32)
    hull = turn @ (shape.hull * size[:, None])
    reach = float(np.sqrt(dot(hull, hull)).max())
    scale = np.float32(radius / reach)
    centre = np.array([x, -hull[1].min() * scale, z], np.float32)
    return Body(shape, material, centre, turn, size * scale, radius)
