"""One drawn photograph and everything that is true of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mapsto.data.scenes import camera as cameras
from mapsto.data.scenes import lens, materials, stage
from mapsto.data.scenes.bodies import Body, rest
from mapsto.data.scenes.camera import Camera
from mapsto.data.scenes.caption import describe
from mapsto.data.scenes.shading import shade
from mapsto.data.scenes.shapes import CLASSES, FAR, Floats
from mapsto.data.scenes.tracing import SAMPLES, distances, meet, visible

SMALLEST = 16  # pixels along a side


@dataclass(frozen=True)
class Scene:
    """A photograph and its ground truth.

    image: (H, W, 3) uint8 RGB. label: the main body's class.
    boxes: (N, 4) float32 xyxy in pixels, right and bottom exclusive, tight about each body's visible pixels.
    box_labels: N class names; the main body comes first.
    mask: (H, W) uint8, 0 for background, else the visible body's index in `CLASSES` plus 1.
    instances: (H, W) uint8, 0 for background, else the row in `boxes` plus 1.
    """

    image: npt.NDArray[np.uint8]
    label: str
    boxes: Floats
    box_labels: list[str]
    mask: npt.NDArray[np.uint8]
    instances: npt.NDArray[np.uint8]
    caption: str


def known(classes: Sequence[str] | None) -> tuple[str, ...]:
    """The classes asked for, or all of them; raises ValueError on a name that is none, or on none at all."""
    if classes is None:
        return CLASSES
    unknown = [name for name in classes if name not in CLASSES]
    if unknown or not classes:
        raise ValueError(f"unknown classes {unknown}; a scene can show {', '.join(CLASSES)}")
    return tuple(dict.fromkeys(classes))


def _place(rng: np.random.Generator, classes: Sequence[str], camera: Camera, main: Body, yaw: float) -> list[Body]:
    """The main body and up to three smaller ones about it, no two of them in the same place."""
    bodies = [main]
    for _ in range((0, 0, 1, 1, 1, 2, 3)[int(rng.integers(7))]):
        name = classes[int(rng.integers(len(classes)))]
        radius = float(rng.uniform(0.3, 0.55))
        bearing, gap = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.7)
        if rng.random() < 0.5:  # between the main body and the camera, where it hides a part
            bearing, gap = (np.radians(rng.uniform(-130, -50) - yaw), rng.uniform(0.8, 1.1))
        x, z = (gap * (1 + radius) * np.cos(bearing), gap * (1 + radius) * np.sin(bearing))
        body = rest(rng, name, materials.of_solid(rng), x, z, radius, yaw)
        room = [np.linalg.norm(body.centre - b.centre) - 0.85 * (body.radius + b.radius) for b in bodies]
        near_eye = np.linalg.norm(body.centre - camera.eye) < 1.5 + 2 * radius
        if min(room) > 0 and not near_eye:
            bodies.append(body)
    return bodies


def _keep(bodies_t: Floats, height: int, width: int) -> list[int]:
    """Which bodies to keep, by index: drops those that hide the main one, outshine it, or barely show."""
    kept = list(range(len(bodies_t)))
    alone = max(int((bodies_t[0] < FAR).sum()), 1)
    for index in range(len(bodies_t) - 1, 0, -1):
        hides = (bodies_t[index] < bodies_t[0]) & (bodies_t[0] < FAR)
        if hides.sum() > 0.22 * alone or (bodies_t[index] < FAR).sum() > 0.6 * alone:
            kept.remove(index)
    while True:
        seen = visible(_first(bodies_t[kept]), len(kept), height, width)
        area = np.bincount(seen.ravel(), minlength=len(kept) + 1)[1:]
        whole = (bodies_t[kept] < FAR).sum(1) / SAMPLES**2
        enough = np.maximum(0.25 * whole, 0.002 * height * width + 6)
        if area[0] < 0.7 * whole[0] and len(kept) > 1:
            kept.pop()
            continue
        hidden = [k for k, a, least in zip(kept[1:], area[1:], enough[1:], strict=True) if a < least]
        if not hidden:
            return kept
        kept.remove(hidden[0])


def _first(bodies_t: Floats) -> npt.NDArray[np.int16]:
    """The nearest body along each ray, -1 for none: (N,)."""
    first = bodies_t.argmin(0)
    return np.where(bodies_t.min(0) < FAR, first, -1).astype(np.int16)


def _boxes(instances: npt.NDArray[np.uint8], count: int) -> Floats:
    """Tight boxes (count, 4) xyxy about the pixels of instances 1 to count."""
    out = np.zeros((count, 4), np.float32)
    for index in range(count):
        rows = np.flatnonzero((instances == index + 1).any(1))
        columns = np.flatnonzero((instances == index + 1).any(0))
        out[index] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return out


def draw(
    rng: np.random.Generator, size: tuple[int, int], classes: Sequence[str] | None = None, *, label: str | None = None
) -> Scene:
    """Draw a scene of `size` (height, width) pixels, whose bodies are of `classes` (all of them for None).

    label: the main body's class; one of `classes` at random for None.
    Raises ValueError on unknown classes and on a size under 16 pixels.
    """
    names = known(classes)
    height, width = size
    if min(size) < SMALLEST:
        raise ValueError(f"a scene of {height} x {width} pixels is too small; give at least {SMALLEST} each way")
    (label,) = known([label]) if label is not None else (names[rng.integers(len(names))],)

    yaw = float(rng.uniform(-25, 25))
    main = rest(rng, label, materials.of_solid(rng), 0, 0, 1.0, yaw)
    camera = cameras.aim(rng, main.centre, main.radius, yaw)
    place = stage.build(rng, np.radians(yaw))
    bodies = _place(rng, names, camera, main, yaw)

    fine = height * SAMPLES, width * SAMPLES
    rays = camera.rays(*fine)
    bodies_t = distances(camera, bodies, rays, *fine)
    kept = _keep(bodies_t, height, width)
    bodies, bodies_t = [bodies[k] for k in kept], bodies_t[kept]
    hits = meet(camera, place, rays, bodies_t, *fine)
    instances = visible(hits.what, len(bodies), height, width)

    light = shade(camera, place, bodies, hits)
    light = light.reshape(3, height, SAMPLES, width, SAMPLES).mean((2, 4)).transpose(1, 2, 0)
    ahead = np.minimum(hits.t, np.float32(60)).reshape(fine)[::SAMPLES, ::SAMPLES]
    focal = float(np.linalg.norm(main.centre - camera.eye))
    blur = (np.abs(ahead - focal) - 1.3) / np.maximum(ahead, focal) * 2 * (instances != 1)
    image = lens.expose(rng, lens.focus(rng, light, blur.astype(np.float32)))

    ids = np.array([0, *(CLASSES.index(body.shape.name) + 1 for body in bodies)], np.uint8)
    return Scene(
        image=image,
        label=label,
        boxes=_boxes(instances, len(bodies)),
        box_labels=[body.shape.name for body in bodies],
        mask=ids[instances],
        instances=instances,
        caption=describe(camera, place, bodies),
    )
