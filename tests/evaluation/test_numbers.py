"""The task ``numbers``: sheets of numbered objects and questions about them."""

import numpy as np
import pytest

from star_export.evaluation.numbers import Numbers
from star_export.evaluation.numbers.questions import KINDS, ask
from star_export.evaluation.numbers.sheets import LAYOUTS, UNITS, Sheet, draw_sheet, random_sheet
from star_export.evaluation.shapes.scenes import Plate, Scene, Thing, plate_masks, rng_of


def thing(shape: str, color: str, x: float, y: float) -> Thing:
    return Thing(shape=shape, color=color, x=x, y=y, radius=20.0, angle=0.0)


def test_examples_are_the_same_each_time_and_differ_between_splits_and_seeds() -> None:
    task = Numbers()
    first, again = (task.example("test", 0, 7) for _ in range(2))
    assert first == again
    assert first.image.tobytes() != task.example("validation", 0, 7).image.tobytes()
    assert first.image.tobytes() != task.example("test", 1, 7).image.tobytes()


def test_kinds_and_layouts_take_turns() -> None:
    examples = [Numbers().example("test", 0, index) for index in range(len(KINDS) * len(LAYOUTS))]
    assert [example.kind for example in examples[:4]] == list(KINDS)
    sides = [example.image.size for example in examples[:: len(KINDS)]]
    for (rows, columns), (width, height) in zip(LAYOUTS, sides, strict=True):
        assert 40 * rows <= height <= 48 * rows
        assert 40 * columns <= width <= 48 * columns


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_number_stays_in_a_field_of_its_own_and_names_and_numbers_differ(
    layout: tuple[int, int],
) -> None:
    for index in range(5):
        sheet = random_sheet(rng_of("test", 0, index), layout=layout, field=(48, 40))
        scene = sheet.scene
        assert draw_sheet(sheet).shape == (sheet.height, sheet.width, 3)
        assert len({(t.shape, t.color) for t in scene.things}) == len(scene.things) >= 2
        assert len({plate.number for plate in scene.plates}) == len(scene.plates) == len(scene.things)
        rows, columns = (np.arange(side) * UNITS for side in (sheet.height, sheet.width))
        fields = []
        for plate in scene.plates:
            mask = plate_masks(plate, rows, columns)[0]
            fields += {(int(y), int(x)) for y, x in np.argwhere(mask) // (48, 40)}
        assert len(fields) == len(set(fields)) == len(scene.things)


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_worked_out_from_the_sheet(kind: str) -> None:
    things = (thing("circle", "red", 30, 30), thing("square", "red", 100, 30))
    plates = (Plate(number=47, x=30, y=30), Plate(number=18, x=100, y=30))
    scene = Scene(things=things, plates=plates, canvas=144, texture=0)
    rng = np.random.default_rng(0)
    found = [ask(Sheet(scene=scene, height=48, width=96), kind, rng) for _ in range(200)]
    expected = {
        "color": {("What color is the circle?", "red"), ("What color is the square?", "red")},
        "shape": {None},  # both are red
        "number": {
            (f"What number is on the {color}{shape}?", number)
            for color in ("", "red ")
            for shape, number in (("circle", "47"), ("square", "18"))
        },
        "owner": {
            ("What color is number 47?", "red"),
            ("What shape is number 47?", "circle"),
            ("What color is number 18?", "red"),
            ("What shape is number 18?", "square"),
        },
    }
    assert {q and (q.text, q.answer) for q in found} == expected[kind]


def test_numbers_are_written_in_dots_of_a_pixel_in_the_middle_of_their_objects() -> None:
    plate = Plate(number=11, x=UNITS * 24.5, y=UNITS * 24.5)
    scene = Scene(things=(thing("circle", "black", plate.x, plate.y),), plates=(plate,), canvas=72, texture=0)
    picture = draw_sheet(Sheet(scene=scene, height=48, width=48)).mean(-1)
    dots = picture[21:28, 19:24]
    one = np.array([[0, 0, 1, 0, 0], [0, 1, 1, 0, 0], *[[0, 0, 1, 0, 0]] * 4, [0, 1, 1, 1, 0]], dtype=bool)
    assert dots[one].max() < 60 < 200 < dots[~one].min()  # none is mixed with its neighbours
