"""A scene in words."""

from collections.abc import Sequence

from mapsto.data.scenes.bodies import Body
from mapsto.data.scenes.camera import Camera
from mapsto.data.scenes.stage import Stage

_LIGHT = {"left": "the left", "right": "the right", "front": "the front", "back": "behind"}


def _noun(body: Body) -> str:
    return f"a {body.material.word} {body.material.colour} {body.shape.name}".replace("a orange", "an orange")


def _where(camera: Camera, main: Body, other: Body) -> str:
    """Where the main body stands as seen from the camera, relative to another."""
    right, _, ahead = camera.axes @ (main.centre - other.centre)
    if abs(right) > abs(ahead):
        return "to the right of" if right > 0 else "to the left of"
    return "behind" if ahead > 0 else "in front of"


def describe(camera: Camera, stage: Stage, bodies: Sequence[Body]) -> str:
    """One line on the main body (the first), those beside it, the ground and the light."""
    main, others = bodies[0], bodies[1:]
    beside: dict[str, list[str]] = {}
    for other in others:
        beside.setdefault(_where(camera, main, other), []).append(_noun(other))
    relations = [f"{where} {' and '.join(nouns)}" for where, nouns in beside.items()]
    parts = [" ".join([_noun(main), " and ".join(relations)]).strip(), f"on a {stage.ground.word} ground"]
    if stage.wall is not None:
        parts.append(f"against a {stage.wall.word} {stage.wall.colour} wall".replace("a orange", "an orange"))
    return f"{' '.join(parts)}, lit from {_LIGHT[stage.lit_from]}"
