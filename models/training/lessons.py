"""Training data of the mini model: pictures, what each patch shows, and packed questions."""

import re
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from models.training.network import PATCH
from models.training.packing import SEGMENT, Course, Lessons, Phrasing
from star_export.evaluation.shapes.questions import COUNTS, Question, ask, named
from star_export.evaluation.shapes.scenes import (
    COLORS,
    SHAPES,
    Scene,
    draw,
    plate_masks,
    random_scene,
    rng_of,
    thing_mask,
)

PREFIX = "USER: <image>"
#: How often each kind is asked: what needs several things at once is learnt last.
WEIGHTS = {
    "color": 1,
    "shape": 1,
    "position": 2,
    "presence": 1,
    "count": 2,
    "comparison": 4,
    "number": 1,
}
PLACES = 12  # rows and columns that the heads tell apart
#: What the tower's head tells of each patch, 0 being nothing: shape and color of the object that it
#: shows, tens and units of the number, row and column of the middle of either.
LABELS = (len(SHAPES) + 1, len(COLORS) + 1, 11, 11, PLACES + 1, PLACES + 1)
#: What the decoder's head tells halfway, at the last token of a name: row and column of what it names;
#: of the number, its tens and units too; of a kind of object, how many there are.
HALFWAY = (PLACES, PLACES, 10, 10, len(COUNTS))
_UNASKED = (-100,) * len(HALFWAY)
_DECK = [kind for kind, weight in WEIGHTS.items() for _ in range(weight)]
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class ShapesCourse(Course):
    """What one phase looks at.

    Attributes:
        canvas: Side of the pictures in pixels.
        flipped: How many of the comparisons that say "below" or "right of" are asked. With all of them
            no single place tells the answer, and nothing is learnt for long; so few come first.
        halfway: Whether the decoder's head is asked about numbers and counts too, not only about places.
    """

    canvas: int
    flipped: float = 1.0
    halfway: bool = False

    def examination(self) -> "ShapesCourse":
        """The same on the validation split, with every comparison."""
        return replace(super().examination(), flipped=1.0)


class ShapesLessons(Lessons[ShapesCourse]):
    """Pictures and questions of the task ``shapes``."""

    phrasing = Phrasing(question="\n{} ASSISTANT:", answer=" {}", end="</s>", padding="<pad>")

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        course = self.course
        rng = rng_of(course.split, self.seed, index)
        scene = random_scene(rng, canvas=course.canvas)
        pixels = ((draw(scene) / np.float32(255) - _MEAN) / _STD).astype(np.float32)
        lesson = {"pixel_values": torch.from_numpy(pixels.transpose(2, 0, 1).copy())}
        lesson["patch_labels"] = torch.from_numpy(patch_labels(scene))
        if course.questions:
            lesson["places"] = self._places(rng, (course.canvas // PATCH) ** 2)
            asked = [self._question(scene, rng) for _ in range(course.questions)]
            segments = [self._segment(question) for question in asked]
            lesson["input_ids"] = torch.tensor([ids for ids, _ in segments])
            lesson["named"] = torch.tensor([self._named(question, scene) for question in asked])
            lesson["labels"] = torch.tensor([labels for _, labels in segments])
            lesson["kinds"] = torch.tensor([list(WEIGHTS).index(question.kind) for question in asked])
        return lesson

    def _question(self, scene: Scene, rng: np.random.Generator) -> Question:
        """Any question that the scene allows."""
        while True:
            kind = str(rng.choice(_DECK))
            question = ask(scene, kind, rng)
            if question is None:
                continue
            flipped = kind == "comparison" and (" below " in question.text or " right of " in question.text)
            if not flipped or rng.random() < self.course.flipped:
                return question

    def _named(self, question: Question, scene: Scene) -> list[tuple[int, ...]]:
        """At the last token of each name, what :data:`HALFWAY` asks of it; -100 for what it does not."""
        asked = [_UNASKED] * SEGMENT
        for name, thing in named(scene):
            for match in re.finditer(rf" the {name}\b", question.text):
                place = _middle(thing.x, thing.y, scene.canvas)
                asked[self._token(question.text[: match.end()])] = (*place, *_UNASKED[2:])
        if self.course.halfway and question.kind == "number":
            (plate,) = scene.plates
            place = _middle(plate.x, plate.y, scene.canvas)
            digits = divmod(plate.number, 10)
            asked[self._token("What number")] = (*place, *digits, *_UNASKED[4:])
        if self.course.halfway and question.kind == "count":
            named_last = question.text.index(" are there")
            asked[self._token(question.text[:named_last])] = (*_UNASKED[:4], int(question.answer))
        return asked


def _middle(x: float, y: float, canvas: int) -> tuple[int, int]:
    """Row and column of a point, of :data:`PLACES`."""
    return int(PLACES * y / canvas), int(PLACES * x / canvas)


def patch_labels(scene: Scene) -> npt.NDArray[np.int64]:
    """Classes of every patch: int64 ``[patches, 6]``, in the order of :data:`LABELS`."""
    side = scene.canvas // PATCH
    units = np.arange(scene.canvas) + 0.5
    labels = np.zeros((side, side, len(LABELS)), dtype=np.int64)

    def mostly(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        return np.asarray(mask.reshape(side, PATCH, side, PATCH).sum(axis=(1, 3)) >= 4)

    def middle(x: float, y: float) -> npt.NDArray[np.int64]:
        return np.array(_middle(x, y, scene.canvas)) + 1

    for thing in scene.things:
        where = mostly(thing_mask(thing, units, units))
        labels[where, :2] = SHAPES.index(thing.shape) + 1, list(COLORS).index(thing.color) + 1
        labels[where, 4:] = middle(thing.x, thing.y)
    for plate in scene.plates:
        where = mostly(plate_masks(plate, units, units)[0])
        labels[where, 2:4] = [digit + 1 for digit in divmod(plate.number, 10)]
        labels[where, 4:] = middle(plate.x, plate.y)
    return labels.reshape(side * side, len(LABELS))
