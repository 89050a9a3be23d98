"""Pictures to look at closely: objects, distractors and a small number on a texture.

Everything is drawn by numpy from one seed, so that a picture is the same on
every machine and at every size. Lengths are in units of which a picture is
``Scene.canvas`` wide (96 by default: a unit is a pixel of the mini model).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

COLORS = {
    "red": (215, 35, 40),
    "orange": (245, 140, 20),
    "yellow": (245, 225, 50),
    "green": (45, 160, 60),
    "cyan": (60, 210, 225),
    "blue": (45, 70, 215),
    "purple": (150, 50, 185),
    "black": (20, 20, 25),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
CANVAS = 96
SPLITS = ("train", "validation", "test")

_OVERSAMPLE = 3  # sub-pixels per side: soft edges
_CELL = 1.5  # units per dot of a digit
_DIGITS = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00110 01000 10000 11111",
    "11110 00001 00001 01110 00001 00001 11110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)
_PLATE = (9.5, 7.0)  # half width and half height of the plate behind a number


@dataclass(frozen=True, kw_only=True)
class Thing:
    """An object: its name, and where it is.

    Attributes:
        shape: One of :data:`SHAPES`.
        color: One of :data:`COLORS`.
        x: Center from the left, in units.
        y: Center from the top, in units.
        radius: In units.
        angle: Rotation in radians.
    """

    shape: str
    color: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True, kw_only=True)
class Plate:
    """A two-digit number on a light plate; center in units."""

    number: int
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is in a picture.

    Attributes:
        things: The objects; none overlaps another.
        plates: The numbers.
        canvas: Side of the picture in units.
        texture: Seed of the background, the distractors and the shades.
    """

    things: tuple[Thing, ...]
    plates: tuple[Plate, ...]
    canvas: int
    texture: int


def rng_of(split: str, seed: int, index: int) -> np.random.Generator:
    """The generator of one example; no other split, seed or index has the same."""
    return np.random.default_rng(np.random.SeedSequence([SPLITS.index(split), seed, index]))


def random_scene(rng: np.random.Generator, *, canvas: int = CANVAS) -> Scene:
    """A scene of two to six objects, fewer on a small canvas, and in most pictures a number."""
    boxes: list[tuple[float, float, float, float]] = []
    plates: tuple[Plate, ...] = ()
    if rng.random() < 0.7:
        x, y = _place(rng, canvas, _PLATE, boxes) or (canvas / 2, canvas / 2)
        plates = (Plate(number=int(rng.integers(10, 100)), x=x, y=y),)
    wanted = int(rng.integers(2, 4 if canvas < 72 else 7))
    repeated = SHAPES[rng.integers(len(SHAPES))] if rng.random() < 0.5 else None
    things = []
    for _ in range(wanted):
        radius = float(rng.uniform(6.5, 8.5) if rng.random() < 0.5 else rng.uniform(9.5, 12.0))
        place = _place(rng, canvas, (radius, radius), boxes)
        again = repeated is not None and rng.random() < 0.6
        shape = repeated if again else SHAPES[rng.integers(len(SHAPES))]
        color = list(COLORS)[rng.integers(len(COLORS))]
        angle = float(rng.uniform(-0.35, 0.35))
        if place is not None:
            things.append(
                Thing(shape=str(shape), color=color, x=place[0], y=place[1], radius=radius, angle=angle)
            )
    if len(things) < 2:  # no room was found
        return random_scene(rng, canvas=canvas)
    return Scene(things=tuple(things), plates=plates, canvas=canvas, texture=int(rng.integers(2**31)))


def _place(
    rng: np.random.Generator,
    canvas: int,
    half: tuple[float, float],
    boxes: list[tuple[float, float, float, float]],
) -> tuple[float, float] | None:
    """A free place for a box, which is then taken; None when twenty tries found none."""
    for _ in range(20):
        x = float(rng.uniform(half[0] + 1, canvas - half[0] - 1))
        y = float(rng.uniform(half[1] + 1, canvas - half[1] - 1))
        if all(abs(x - bx) > half[0] + bw + 1 or abs(y - by) > half[1] + bh + 1 for bx, by, bw, bh in boxes):
            boxes.append((x, y, *half))
            return x, y
    return None


def draw(scene: Scene, *, size: int | None = None) -> Picture:
    """The picture of a scene.

    Args:
        scene: What to draw.
        size: Side in pixels; one pixel a unit by default.

    Returns:
        uint8 ``[size, size, 3]``.
    """
    size = size or scene.canvas
    rng = np.random.default_rng(scene.texture)
    units = (np.arange(size * _OVERSAMPLE) + 0.5) * scene.canvas / (size * _OVERSAMPLE)
    background = _background(rng, scene.canvas, units[_OVERSAMPLE // 2 :: _OVERSAMPLE])
    picture = background.repeat(_OVERSAMPLE, axis=0).repeat(_OVERSAMPLE, axis=1)
    _strokes(rng, scene.canvas, units, picture)
    for thing in scene.things:
        color = np.array(COLORS[thing.color]) + rng.normal(0, 9, 3)
        window = _window(units, thing.x, thing.y, 1.2 * thing.radius)
        picture[window][thing_mask(thing, *(units[part] for part in window))] = color
    for plate in scene.plates:
        window = _window(units, plate.x, plate.y, _PLATE[0])
        area, digits = plate_masks(plate, *(units[part] for part in window))
        picture[window][area] = rng.uniform(225, 245)
        picture[window][digits] = rng.uniform(10, 40)
    picture = picture.reshape(size, _OVERSAMPLE, size, _OVERSAMPLE, 3).mean(axis=(1, 3))
    return np.asarray(np.clip(picture + 0.5, 0, 255), dtype=np.uint8)


def _background(rng: np.random.Generator, canvas: int, units: Floats) -> Floats:
    """Three gratings and some grain in a muted colour, ``[size, size, 3]``."""
    base = rng.uniform(105, 185) + rng.normal(0, 10, 3)
    x, y = units[None, :], units[:, None]
    texture = np.zeros((len(units), len(units)))
    for _ in range(3):
        angle, period = rng.uniform(0, np.pi), rng.uniform(5, 40)
        wave = 2 * np.pi / period * (np.cos(angle) * x + np.sin(angle) * y) + rng.uniform(0, 7)
        texture += rng.uniform(2, 9) * np.sin(wave)
    grain = rng.normal(0, 5, (canvas, canvas))
    cell = np.minimum(units.astype(int), canvas - 1)
    texture += grain[cell[:, None], cell[None, :]]
    return base + texture[:, :, None]


def _strokes(rng: np.random.Generator, canvas: int, units: Floats, picture: Floats) -> None:
    """Distractors: thin grey lines and dots, which no question asks about."""
    for _ in range(int(rng.integers(2, 8)) * canvas // CANVAS + 1):
        (ax, ay), angle = rng.uniform(0, canvas, 2), rng.uniform(0, 2 * np.pi)
        length, width = rng.choice([0.0, rng.uniform(4, 18)]), rng.uniform(0.5, 1.1)
        window = _window(units, ax, ay, length + width)
        y, x = units[window[0]][:, None] - ay, units[window[1]][None, :] - ax
        along = np.clip(x * np.cos(angle) + y * np.sin(angle), 0, length)
        distance = np.hypot(x - along * np.cos(angle), y - along * np.sin(angle))
        picture[window][distance < width] = rng.uniform(60, 220) + rng.normal(0, 8, 3)


def _window(units: Floats, x: float, y: float, reach: float) -> tuple[slice, slice]:
    """Rows and columns within ``reach`` of a point."""
    low, high = np.searchsorted(units, [[y - reach, x - reach], [y + reach, x + reach]])
    return slice(low[0], high[0]), slice(low[1], high[1])


def thing_mask(thing: Thing, rows: Floats, columns: Floats) -> Mask:
    """Where an object is: bool ``[rows, columns]`` at points that are given in units."""
    x, y = columns[None, :] - thing.x, rows[:, None] - thing.y
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    u, v = (cos * x + sin * y) / thing.radius, (cos * y - sin * x) / thing.radius
    return np.asarray(_INSIDE[thing.shape](u, v), dtype=np.bool_)


def _star(u: Floats, v: Floats) -> Mask:
    sector = np.pi / 5
    angle = np.abs((np.arctan2(u, -v) + sector) % (2 * sector) - sector)
    radius = np.hypot(u, v)
    inner, across = 0.42, radius * np.sin(angle)
    edge = np.array([inner * np.cos(sector) - 1, inner * np.sin(sector)])
    return np.asarray((radius * np.cos(angle) - 1) * edge[1] - across * edge[0] < 0)


def _cross(u: Floats, v: Floats) -> Mask:
    u, v = np.abs(u), np.abs(v)
    return np.asarray((np.minimum(u, v) < 0.28) & (np.maximum(u, v) < 0.95))


_INSIDE: dict[str, Callable[[Floats, Floats], Mask]] = {
    "circle": lambda u, v: np.hypot(u, v) < 0.95,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) < 0.8,
    "triangle": lambda u, v: (v < 0.7) & (np.abs(u) < (v + 1.0) * 0.56),
    "star": _star,
    "cross": _cross,
    "ring": lambda u, v: (np.hypot(u, v) < 1.0) & (np.hypot(u, v) > 0.55),
}


def plate_masks(plate: Plate, rows: Floats, columns: Floats) -> tuple[Mask, Mask]:
    """Where the plate and the strokes of its two digits are: bool ``[rows, columns]`` each."""
    x, y = columns[None, :] - plate.x, rows[:, None] - plate.y
    area = (np.abs(x) < _PLATE[0]) & (np.abs(y) < _PLATE[1])
    dots = np.zeros((7, 12), dtype=bool)
    for column, digit in zip((0, 6), divmod(plate.number, 10), strict=True):
        dots[:, column : column + 5] = [[dot == "1" for dot in row] for row in _DIGITS[digit].split()]
    across, down = np.floor(x / _CELL + 5.5).astype(int), np.floor(y / _CELL + 3.5).astype(int)
    inside = (down >= 0) & (down < 7) & (across >= 0) & (across < 11)
    strokes = inside & dots[down.clip(0, 6), across.clip(0, 11)]
    return area, strokes
