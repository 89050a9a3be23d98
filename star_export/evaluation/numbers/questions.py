"""Questions about a sheet: some can be answered from afar, the others need every pixel of a number."""

import numpy as np

from star_export.evaluation.numbers.sheets import Sheet
from star_export.evaluation.shapes.questions import Question, named
from star_export.evaluation.shapes.questions import ask as ask_shapes

#: ``color`` and ``shape`` can be told from afar, ``number`` and ``owner`` need every pixel of a number.
KINDS = ("color", "shape", "number", "owner")


def ask(sheet: Sheet, kind: str, rng: np.random.Generator) -> Question | None:
    """A question of a kind, or None when the sheet has none with one right answer.

    Args:
        sheet: What is in the picture.
        kind: One of :data:`KINDS`.
        rng: Chooses among the questions that could be asked.
    """
    scene = sheet.scene
    if kind in ("color", "shape"):
        return ask_shapes(scene, kind, rng)
    if kind == "number":
        names = named(scene)
        name, thing = names[int(rng.integers(len(names)))]
        number = scene.plates[scene.things.index(thing)].number
        return Question(kind, f"What number is on the {name}?", str(number))
    owner = int(rng.integers(len(scene.things)))
    asked = "color" if rng.random() < 0.5 else "shape"
    text = f"What {asked} is number {scene.plates[owner].number}?"
    return Question(kind, text, str(getattr(scene.things[owner], asked)))
