"""What surfaces are made of: procedural colour and relief at any point, for solids, grounds and walls."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mapsto.data.scenes.noise import cell_tile, fractal_tile, look_up, solid
from mapsto.data.scenes.shapes import Floats

PALETTE: dict[str, tuple[int, int, int]] = {  # sRGB
    "red": (196, 40, 36),
    "orange": (226, 122, 32),
    "yellow": (228, 196, 52),
    "green": (62, 142, 60),
    "teal": (34, 140, 136),
    "blue": (44, 84, 182),
    "purple": (120, 62, 152),
    "pink": (222, 128, 156),
    "brown": (122, 80, 50),
    "white": (226, 224, 216),
    "grey": (132, 132, 132),
    "black": (40, 40, 44),
}


@dataclass(frozen=True)
class Material:
    """A surface: `look` names its pattern, `word` and `colour` say it in a caption.

    first, second: linear RGB (3,) in [0, 1]. scale: pattern per unit of length. shift: (3,), where the pattern starts.
    gloss: strength of highlights and reflections, [0, 1]. shine: Blinn-Phong exponent. bump: relief, radians or so.
    """

    look: str
    word: str
    colour: str
    first: Floats
    second: Floats
    scale: float
    shift: Floats
    gloss: float
    shine: float
    bump: float


def linear(srgb: tuple[int, int, int] | Floats) -> Floats:
    """sRGB in [0, 255] -> linear light in [0, 1], by the plain 2.2 power."""
    return np.power(np.asarray(srgb, np.float32) / 255, 2.2, dtype=np.float32)


Pattern = Callable[[Floats, Floats, Floats], tuple[Floats, Floats]]
# points (3, N), normals (3, N), noise (4, N) -> weight of the second colour (N,), brightness (N,)


def _flat(p: Floats, n: Floats, noise: Floats) -> tuple[Floats, Floats]:
    return np.full_like(p[0], 0.08), 1 + np.float32(0.06) * noise[3]


def _rough(p: Floats, n: Floats, noise: Floats) -> tuple[Floats, Floats]:
    grain = look_up(fractal_tile(), 5 * (p[0] + p[1]), 5 * (p[2] - p[1]))
    return np.clip(0.35 + 0.3 * noise[3] + 0.4 * grain[0], 0, 1), 1 + np.float32(0.25) * (noise[0] + 2 * grain[1])


def _wood(p: Floats, n: Floats, noise: Floats) -> tuple[Floats, Floats]:
    rings = np.hypot(p[0] + 0.15 * noise[0], p[2] * 1.2 + 0.15 * noise[1]) * 6 + 0.5 * noise[2]
    saw = rings - np.floor(rings)
    return saw * saw, 1 + np.float32(0.12) * noise[3]


def _marble(p: Floats, n: Floats, noise: Floats) -> tuple[Floats, Floats]:
    vein = 1 - np.abs(np.sin(2.2 * (p[0] + 0.6 * p[1] + 0.4 * p[2]) + 2.6 * noise[3]))
    return vein**5, 1 + np.float32(0.1) * noise[1]


def _stripes(p: Floats, n: Floats, noise: Floats) -> tuple[Floats, Floats]:
    wave = np.sin(9 * (0.8 * p[1] + 0.5 * p[0] - 0.33 * p[2]) + 0.35 * noise[0])
    return np.clip(0.5 + 5 * wave, 0, 1), 1 + np.float32(0.1) * noise[3]


def _checks(p: Floats, n: Floats, noise: Floats) -> tuple[Floats, Floats]:
    wave = np.sin(6.3 * p[0]) * np.sin(6.3 * p[1]) * np.sin(6.3 * p[2])
    return np.clip(0.5 + 14 * wave, 0, 1), 1 + np.float32(0.12) * noise[3]


def _spots(p: Floats, n: Floats, noise: Floats) -> tuple[Floats, Floats]:
    cell = (p * np.float32(2.2)) - np.floor(p * np.float32(2.2)) - np.float32(0.5)
    return np.clip((0.36 - np.sqrt((cell * cell).sum(0))) * 12, 0, 1), 1 + np.float32(0.08) * noise[3]


def _across(p: Floats, n: Floats) -> tuple[Floats, Floats]:
    """Two coordinates along the surface: the two axes it faces least."""
    axis = np.abs(n).argmax(0)
    return np.where(axis == 0, p[2], p[0]), np.where(axis == 1, p[2], p[1])


def _courses(u: Floats, v: Floats, length: float) -> tuple[Floats, Floats]:
    """Blocks laid in courses, half a length apart -> joint (N,) in [0, 1], a random number per block (N,)."""
    row = np.floor(v)
    along = u / length + 0.5 * (row % 2)
    column = np.floor(along)
    du, dv = np.abs(along - column - 0.5) * length, np.abs(v - row - 0.5)
    joint = np.clip((np.maximum(du - length / 2, dv - 0.5) + 0.09) * 20, 0, 1)
    block = np.sin(column * 12.9898 + row * 78.233) * 437.58
    return joint.astype(np.float32), (block - np.floor(block) - 0.5).astype(np.float32)


def _bricks(p: Floats, n: Floats, noise: Floats) -> tuple[Floats, Floats]:
    u, v = _across(p, n)
    joint, block = _courses(u * 3.6, v * 3.6, 2.1)
    return joint, 1 + np.float32(0.25) * noise[3] + (1 - joint) * block * np.float32(0.5)


def _planks(p: Floats, n: Floats, noise: Floats) -> tuple[Floats, Floats]:
    u, v = _across(p, n)
    joint, block = _courses(u * 1.5, v * 1.5, 6.0)
    grain = np.sin(38 * v + 6 * block + 1.5 * noise[0])
    return np.clip(0.25 + 0.2 * grain + 0.25 * noise[2], 0, 1), (1 - 0.75 * joint) * (1 + 0.45 * block)


def _tiles(p: Floats, n: Floats, noise: Floats) -> tuple[Floats, Floats]:
    u, v = _across(p, n)
    fu, fv = u * 1.2 - np.floor(u * 1.2), v * 1.2 - np.floor(v * 1.2)
    joint = np.clip((np.maximum(np.abs(fu - 0.5), np.abs(fv - 0.5)) - 0.47) * 60, 0, 1)
    odd = (np.floor(u * 1.2) + np.floor(v * 1.2)) % 2
    return odd.astype(np.float32), (1 - 0.5 * joint) * (1 + np.float32(0.15) * noise[3])


def _pebbles(p: Floats, n: Floats, noise: Floats) -> tuple[Floats, Floats]:
    u, v = _across(p, n)
    height, _, _, own = look_up(cell_tile(), u, v)
    return np.clip(0.5 + 0.5 * own + 0.3 * noise[0], 0, 1), (0.25 + 0.75 * height) * (1 + np.float32(0.3) * noise[3])


def _grass(p: Floats, n: Floats, noise: Floats) -> tuple[Floats, Floats]:
    blades = look_up(fractal_tile(), p[0] * 5, p[2] * 5)
    return np.clip(0.25 + 0.35 * noise[0] + 0.3 * blades[0], 0, 1), 1 + np.float32(0.7) * blades[1] + 0.2 * noise[3]


PATTERNS: dict[str, tuple[Pattern, str]] = {
    "plain": (_flat, "smooth"),
    "rough": (_rough, "rough"),
    "wood": (_wood, "wooden"),
    "marble": (_marble, "marble"),
    "stripes": (_stripes, "striped"),
    "checks": (_checks, "checked"),
    "spots": (_spots, "spotted"),
    "bricks": (_bricks, "brick"),
    "planks": (_planks, "planked"),
    "tiles": (_tiles, "tiled"),
    "pebbles": (_pebbles, "pebbled"),
    "grass": (_grass, "grassy"),
    "sand": (_rough, "sandy"),
    "concrete": (_flat, "concrete"),
}
SOLID_LOOKS = ("plain", "plain", "rough", "wood", "marble", "stripes", "checks", "spots", "bricks")
GROUND_LOOKS: dict[str, tuple[str, str]] = {  # look: its two colours
    "pebbles": ("grey", "brown"),
    "grass": ("green", "brown"),
    "sand": ("yellow", "brown"),
    "concrete": ("grey", "black"),
    "planks": ("brown", "black"),
    "tiles": ("white", "grey"),
    "bricks": ("brown", "grey"),
    "rough": ("grey", "black"),
}
WALL_LOOKS = ("plain", "rough", "bricks", "stripes", "tiles", "planks")


def _tint(rng: np.random.Generator, name: str, spread: float = 0.25) -> Floats:
    """A palette colour, made lighter or darker and a little off in hue: linear RGB (3,)."""
    base = linear(PALETTE[name])
    return np.clip(base * np.exp(rng.normal(0, spread)) * np.exp(rng.normal(0, 0.1, 3)), 0.01, 0.9).astype(np.float32)


def _shift(rng: np.random.Generator) -> Floats:
    return rng.uniform(0, 8, 3).astype(np.float32)


def _calm(colour: Floats, share: float) -> Floats:
    """A linear RGB colour (3,) with this share of its saturation left: surroundings are duller than solids."""
    grey = colour.mean()
    return (grey + (colour - grey) * np.float32(share)).astype(np.float32)


def of_solid(rng: np.random.Generator) -> Material:
    """A random material for a solid; neither colour nor pattern knows which solid it is."""
    look = SOLID_LOOKS[rng.integers(len(SOLID_LOOKS))]
    colour, other = rng.choice(list(PALETTE), 2, replace=False)
    first, second = _tint(rng, colour), _tint(rng, other)
    if look in ("rough", "wood", "plain"):
        second = first * np.float32(rng.uniform(0.25, 0.6))
    elif look == "marble":
        second = first * np.float32(0.15) if first.mean() > 0.12 else 0.5 + 0.5 * first
    elif look == "bricks":
        second = linear(PALETTE["grey"]) * np.float32(rng.uniform(0.5, 1.3))
    if look in ("stripes", "checks", "spots"):
        second = first + (second - first) * np.float32(rng.uniform(0.25, 0.7))
    glossy = look not in ("rough", "bricks") and rng.random() < 0.6
    return Material(
        look,
        PATTERNS[look][1],
        str(colour),
        first,
        np.asarray(second, np.float32),
        float(rng.uniform(0.7, 1.2)),
        _shift(rng),
        float(rng.uniform(0.3, 1.0) if glossy else rng.uniform(0.0, 0.12)),
        float(rng.uniform(20, 140) if glossy else rng.uniform(4, 14)),
        float({"rough": 0.5, "bricks": 0.2, "wood": 0.06}.get(look, 0.02) * rng.uniform(0.6, 1.4)),
    )


def of_ground(rng: np.random.Generator) -> Material:
    """A random material for the ground."""
    look = list(GROUND_LOOKS)[rng.integers(len(GROUND_LOOKS))]
    colour, other = GROUND_LOOKS[look]
    bump = {"pebbles": 0.9, "grass": 0.6, "sand": 0.25, "rough": 0.4, "bricks": 0.15}.get(look, 0.04)
    gloss = float(rng.uniform(0.1, 0.5)) if look in ("tiles", "planks") else 0.03
    first, second = _tint(rng, colour, 0.35), _tint(rng, other, 0.35)
    if look == "rough":
        second = first * np.float32(0.5)
    if look == "grass":
        first = first * np.array([1.1, 0.6, 0.8], np.float32)
    if look == "sand":
        first, second = (
            first * np.array([0.6, 0.6, 0.9], np.float32) + 0.08,
            first * np.array([0.4, 0.36, 0.6], np.float32),
        )
    scale = float(rng.uniform(0.6, 1.3))
    first, second = _calm(first, 0.45), _calm(second, 0.45)
    second = first + (second - first) * np.float32(rng.uniform(0.3, 0.8))
    return Material(look, PATTERNS[look][1], colour, first, second, scale, _shift(rng), gloss, 30.0, bump)


def of_wall(rng: np.random.Generator) -> Material:
    """A random material for the wall behind."""
    look = WALL_LOOKS[rng.integers(len(WALL_LOOKS))]
    colour = str(rng.choice(list(PALETTE)))
    first = _calm(_tint(rng, colour), 0.5) * np.float32(0.6) + np.float32(0.1)
    second = first * np.float32(rng.uniform(0.4, 0.8))
    scale = float(rng.uniform(0.25, 0.8))
    return Material(look, PATTERNS[look][1], colour, first, second, scale, _shift(rng), 0.03, 10.0, 0.05)


def surface(material: Material, p: Floats, n: Floats, fade: Floats | float = 1.0) -> tuple[Floats, Floats]:
    """Colour and relief at points (3, N) with normals (3, N) -> linear RGB (3, N), tilted normals (3, N), not unit.

    fade: (N,) or a number in [0, 1]; 0 gives the pattern's mean, as where it is too fine to see.
    """
    q = p * np.float32(material.scale) + material.shift[:, None]
    noise = solid(q)
    weight, bright = PATTERNS[material.look][0](q, n, noise)
    weight = 0.35 + (weight - 0.35) * fade
    bright = np.clip(1 + (bright - 1) * fade, 0.05, 2)
    colour = (material.first[:, None] * (1 - weight) + material.second[:, None] * weight) * bright
    if material.look == "pebbles":
        _, slope_x, slope_y, _ = look_up(cell_tile(), *_across(q, n))
        relief = np.stack([-slope_x, np.zeros_like(slope_x), -slope_y])
    else:
        relief = noise[:3]
    return colour.astype(np.float32), n + np.float32(material.bump) * relief * fade
