"""Large pictures of numbered objects: rows and columns of fields, in most an object with a small number.

They are drawn as the pictures of `shapes` are. A dot of a digit is one pixel, so a number that can be
read in the picture cannot be read any more when the picture is made two or three times smaller.
"""

from dataclasses import dataclass

import numpy as np

from star_export.evaluation.shapes.scenes import COLORS, SHAPES, Picture, Plate, Scene, Thing, draw

#: Rows and columns of fields.
LAYOUTS = ((1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (2, 3), (3, 2), (3, 3), (3, 4), (4, 3))
#: Heights and widths that a field may have, in pixels. The largest sheets are 192 pixels long.
FIELDS = ((48, 48), (48, 44), (48, 40), (44, 48), (40, 48))
UNITS = 1.5  # units per pixel: as wide as a dot

_EMPTY = 0.15  # share of fields without an object
_RADIUS = (18.0, 24.0)  # of an object, in units, in one of FIELDS


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What is in a picture, and its size.

    Attributes:
        scene: Objects and numbers; no two objects share shape and color, no two numbers are the same.
            The number of an object is the plate of the same index, in its middle.
        height: In pixels.
        width: In pixels.
    """

    scene: Scene
    height: int
    width: int


def random_sheet(
    rng: np.random.Generator,
    *,
    layout: tuple[int, int],
    field: tuple[int, int],
    radius: tuple[float, float] = _RADIUS,
) -> Sheet:
    """A sheet of at least two objects.

    Args:
        rng: Chooses everything else.
        layout: Rows and columns of fields.
        field: Height and width of a field in pixels.
        radius: Least and largest radius of an object in units, less than half a field.
    """
    rows, columns = layout
    filled = np.flatnonzero(rng.random(rows * columns) > _EMPTY)
    if len(filled) < 2:
        filled = np.arange(rows * columns)
    names = rng.permutation(len(SHAPES) * len(COLORS))
    numbers = rng.permutation(np.arange(10, 100))
    things, plates = [], []
    for place, name, number in zip(filled, names, numbers, strict=False):
        size = float(rng.uniform(*radius))
        # In the middle of a pixel, so that each dot of a digit is one.
        y, x = (
            UNITS * (side * int(corner) + int(rng.uniform(size / UNITS + 1, side - size / UNITS - 1)) + 0.5)
            for corner, side in zip(divmod(place, columns), field, strict=True)
        )
        shape, color = SHAPES[name % len(SHAPES)], list(COLORS)[name // len(SHAPES)]
        angle = float(rng.uniform(-0.35, 0.35))
        things.append(Thing(shape=shape, color=color, x=x, y=y, radius=size, angle=angle))
        plates.append(Plate(number=int(number), x=x, y=y))
    height, width = rows * field[0], columns * field[1]
    canvas, texture = int(UNITS * max(height, width)), int(rng.integers(2**31))
    scene = Scene(things=tuple(things), plates=tuple(plates), canvas=canvas, texture=texture)
    return Sheet(scene=scene, height=height, width=width)


def draw_sheet(sheet: Sheet) -> Picture:
    """The picture of a sheet: uint8 ``[height, width, 3]``."""
    return draw(sheet.scene, size=max(sheet.height, sheet.width))[: sheet.height, : sheet.width]
