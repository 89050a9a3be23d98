"""Questions about a scene whose answers depend on where one looks."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from star_export.evaluation.shapes.scenes import COLORS, SHAPES, Scene, Thing

KINDS = ("color", "shape", "position", "presence", "count", "comparison", "number")
COUNTS = range(5)

# Units that a thing must be off a line, or another thing, before one asks on which side it is.
_MARGIN, _APART = 5.0, 10.0


@dataclass(frozen=True)
class Question:
    """A question about a picture.

    Attributes:
        kind: One of :data:`KINDS`.
        text: The question.
        answer: Its only right answer, in lower case.
    """

    kind: str
    text: str
    answer: str


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """A question of a kind, or None when the scene has none with one right answer.

    Args:
        scene: What is in the picture.
        kind: One of :data:`KINDS`.
        rng: Chooses among the questions that could be asked.
    """
    asked = _ASK[kind](scene, rng)
    return None if asked is None else Question(kind, *asked)


T = TypeVar("T")


def _choose(options: list[T], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]


def _single(scene: Scene, name_of: Callable[[Thing], str]) -> list[Thing]:
    """Things whose shape, or whose color, nothing else in the scene has."""
    counts = Counter(name_of(thing) for thing in scene.things)
    return [thing for thing in scene.things if counts[name_of(thing)] == 1]


def _color(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    if not (single := _single(scene, lambda thing: thing.shape)):
        return None
    thing = _choose(single, rng)
    return f"What color is the {thing.shape}?", thing.color


def _shape(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    if not (single := _single(scene, lambda thing: thing.color)):
        return None
    thing = _choose(single, rng)
    return f"What shape is the {thing.color} object?", thing.shape


def named(scene: Scene) -> list[tuple[str, Thing]]:
    """Things that a short name singles out, with that name."""
    shapes = Counter(thing.shape for thing in scene.things)
    pairs = Counter((thing.shape, thing.color) for thing in scene.things)
    found = []
    for thing in scene.things:
        if pairs[thing.shape, thing.color] == 1:
            found.append((f"{thing.color} {thing.shape}", thing))
        if shapes[thing.shape] == 1:
            found.append((thing.shape, thing))
    return found


def _position(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    middle = scene.canvas / 2
    clear = [
        (name, thing)
        for name, thing in named(scene)
        if abs(thing.x - middle) > _MARGIN and abs(thing.y - middle) > _MARGIN
    ]
    if not clear:
        return None
    name, thing = _choose(clear, rng)
    vertical = "top" if thing.y < middle else "bottom"
    return f"Where is the {name}?", f"{vertical} {'left' if thing.x < middle else 'right'}"


def _presence(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    there = {(thing.color, thing.shape) for thing in scene.things}
    if rng.random() < 0.5:
        color, shape = _choose(sorted(there), rng)
        return f"Is there a {color} {shape}?", "yes"
    # Half of the absent things share their color or their shape with one that is there.
    absent = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in there]
    near = [pair for pair in absent if any(pair[0] == c or pair[1] == s for c, s in there)]
    color, shape = _choose(near if near and rng.random() < 0.5 else absent, rng)
    return f"Is there a {color} {shape}?", "no"


def _count(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    shapes = Counter(thing.shape for thing in scene.things)
    colors = Counter(thing.color for thing in scene.things)
    options = [(f"{shape}s" if shape != "cross" else "crosses", shapes[shape]) for shape in SHAPES]
    options += [(f"{color} objects", colors[color]) for color in COLORS]
    options = [(name, count) for name, count in options if count in COUNTS]
    count = _choose(sorted({count for _, count in options}), rng)
    name, _ = _choose([option for option in options if option[1] == count], rng)
    return f"How many {name} are there?", str(count)


_SIDES: dict[str, Callable[[Thing, Thing], float]] = {
    "above": lambda a, b: b.y - a.y,
    "below": lambda a, b: a.y - b.y,
    "left of": lambda a, b: b.x - a.x,
    "right of": lambda a, b: a.x - b.x,
}


def _comparison(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    names = named(scene)
    pairs = [
        (first, second, side)
        for first in names
        for second in names
        for side in _SIDES
        if first[1] is not second[1] and abs(_SIDES[side](first[1], second[1])) > _APART
    ]
    if not pairs:
        return None
    first, second, side = _choose(pairs, rng)
    answer = "yes" if _SIDES[side](first[1], second[1]) > 0 else "no"
    return f"Is the {first[0]} {side} the {second[0]}?", answer


def _number(scene: Scene, _: np.random.Generator) -> tuple[str, str] | None:
    return ("What number is written?", str(scene.plates[0].number)) if scene.plates else None


_ASK: dict[str, Callable[[Scene, np.random.Generator], tuple[str, str] | None]] = {
    "color": _color,
    "shape": _shape,
    "position": _position,
    "presence": _presence,
    "count": _count,
    "comparison": _comparison,
    "number": _number,
}
