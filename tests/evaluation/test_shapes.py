"""Pictures, questions and splits of the task ``shapes``."""

import dataclasses
import hashlib

import numpy as np
import pytest

from star_export.evaluation.shapes import Shapes
from star_export.evaluation.shapes.questions import KINDS, ask
from star_export.evaluation.shapes.scenes import (
    COLORS,
    SHAPES,
    SPLITS,
    Plate,
    Scene,
    Thing,
    draw,
    plate_masks,
    random_scene,
    rng_of,
    thing_mask,
)

UNITS = np.arange(96) + 0.5


def scene(*things: Thing, plates: tuple[Plate, ...] = ()) -> Scene:
    return Scene(things=things, plates=plates, canvas=96, texture=3)


def thing(shape: str, color: str, x: float, y: float, *, radius: float = 10.0) -> Thing:
    return Thing(shape=shape, color=color, x=x, y=y, radius=radius, angle=0.0)


def test_a_picture_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    pictures = [draw(random_scene(rng_of("test", seed, 5))) for seed in (0, 0, 1)]
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_splits_never_share_a_picture() -> None:
    seen: set[str] = set()
    for split in SPLITS:
        for seed in (0, 1):
            for index in range(40):
                picture = Shapes().example(split, seed, index).image
                seen.add(hashlib.sha256(picture.tobytes()).hexdigest())
    assert len(seen) == 3 * 2 * 40


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_is_drawn_where_its_mask_says(shape: str) -> None:
    drawn = thing(shape, "red", 40, 50)
    mask = thing_mask(drawn, UNITS, UNITS)
    rows, columns = np.nonzero(mask)
    assert abs(columns.mean() - 39.5) < 2
    assert abs(rows.mean() - 49.5) < 2
    assert 60 < mask.sum() < np.pi * 11**2
    with_it, without = draw(scene(drawn)), draw(scene())
    changed = (with_it != without).any(axis=-1)
    inside = thing_mask(dataclasses.replace(drawn, radius=9.0), UNITS, UNITS)
    assert (changed | ~inside).all()  # every pixel well inside is painted
    red = with_it[inside & mask].mean(axis=0)
    assert np.abs(red - COLORS["red"]).max() < 40


def test_objects_do_not_overlap_and_stay_inside() -> None:
    for index in range(60):
        found = random_scene(rng_of("test", 0, index))
        masks = [thing_mask(t, UNITS, UNITS) for t in found.things]
        masks += [plate_masks(plate, UNITS, UNITS)[0] for plate in found.plates]
        assert np.sum(masks, axis=0).max() == 1
        for t in found.things:
            assert t.radius < t.x < 96 - t.radius
            assert t.radius < t.y < 96 - t.radius


def test_the_digits_differ() -> None:
    strokes = {plate_masks(Plate(number=n, x=48, y=48), UNITS, UNITS)[1].tobytes() for n in range(10, 100)}
    assert len(strokes) == 90


def test_a_larger_drawing_shows_the_same() -> None:
    found = random_scene(rng_of("test", 0, 2))
    large = draw(found, size=384).reshape(96, 4, 96, 4, 3).mean(axis=(1, 3))
    assert np.abs(large - draw(found)).mean() < 3


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_worked_out_from_the_scene(kind: str) -> None:
    found = scene(
        thing("circle", "red", 20, 20),
        thing("square", "blue", 70, 20),
        thing("square", "green", 70, 75, radius=7),
        plates=(Plate(number=47, x=25, y=75),),
    )
    rng = np.random.default_rng(0)
    asked = {(q.text, q.answer) for _ in range(300) if (q := ask(found, kind, rng)) is not None}
    expected = {
        "color": {("What color is the circle?", "red")},
        "shape": {
            ("What shape is the red object?", "circle"),
            ("What shape is the blue object?", "square"),
            ("What shape is the green object?", "square"),
        },
        "position": {
            ("Where is the circle?", "top left"),
            ("Where is the red circle?", "top left"),
            ("Where is the blue square?", "top right"),
            ("Where is the green square?", "bottom right"),
        },
        "number": {("What number is written?", "47")},
    }
    if kind in expected:
        assert asked == expected[kind]
    elif kind == "presence":
        assert all(("Is there a " + name + "?", "yes") in asked for name in ("red circle", "green square"))
        assert ("Is there a red square?", "no") in asked
    elif kind == "count":
        assert {("How many squares are there?", "2"), ("How many blue objects are there?", "1")} <= asked
        assert ("How many rings are there?", "0") in asked
    else:
        assert ("Is the circle above the green square?", "yes") in asked
        assert ("Is the circle right of the blue square?", "no") in asked
        assert not any("circle above the blue square" in text for text, _ in asked)  # they are level


def test_ambiguous_questions_are_not_asked() -> None:
    twins = scene(thing("circle", "red", 20, 20), thing("circle", "red", 70, 70))
    rng = np.random.default_rng(0)
    for kind in ("color", "shape", "position", "comparison", "number"):
        assert ask(twins, kind, rng) is None


def test_examples_take_turns_and_answers_are_balanced() -> None:
    task = Shapes()
    examples = [task.example("test", 0, index) for index in range(len(KINDS) * 60)]
    assert [e.kind for e in examples[:14]] == list(KINDS) * 2
    for kind, most in (("presence", 0.65), ("comparison", 0.65), ("position", 0.45), ("count", 0.45)):
        answers = [e.answer for e in examples if e.kind == kind]
        assert max(answers.count(a) for a in set(answers)) / len(answers) < most


def test_scoring_is_exact_but_for_case_spaces_and_a_full_stop() -> None:
    task = Shapes()
    example = next(e for i in range(14) if (e := task.example("test", 0, i)).kind == "position")
    words = example.answer.split()
    assert task.score(example, f" {words[0].upper()}  {words[1]}. ") == 1.0
    assert task.score(example, words[0]) == 0.0
    assert task.score(example, example.answer + " corner") == 0.0
