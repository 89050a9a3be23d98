"""Training data of the mini OneVision model: sheets in tiles, what each patch shows, packed questions."""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension

from models.training.onevision_network import PATCH, PINPOINTS, TILE, make_image_processor
from models.training.packing import SEGMENT, Course, Lessons, Phrasing
from star_export.evaluation.numbers.questions import KINDS, ask
from star_export.evaluation.numbers.sheets import FIELDS, UNITS, Sheet, draw_sheet, random_sheet
from star_export.evaluation.shapes.questions import Question, named
from star_export.evaluation.shapes.scenes import COLORS, SHAPES, Thing, plate_masks, rng_of, thing_mask

_SMALL_RADIUS = (10.5, 13.5)  # of an object on a crowded sheet, in units
#: Consecutive pictures have the same size in blocks of so many: a batch must not span two.
BLOCK = 16
MOST_TOKENS = 1024  # visual tokens that no picture reaches
#: How often each kind is asked.
WEIGHTS = {"color": 1, "shape": 1, "number": 3, "owner": 3}
#: What the tower's head tells of each patch, 0 being nothing: shape and color of the object that it
#: shows, tens and units of the number where that digit is; elsewhere on the number -100, not asked.
LABELS = (len(SHAPES) + 1, len(COLORS) + 1, 11, 11)
#: What the decoder's head tells halfway, at the last token of a name: shape and color of what it names,
#: tens and units of its number; only what the name does not say.
HALFWAY = (len(SHAPES), len(COLORS), 10, 10)
_DECK = [kind for kind, weight in WEIGHTS.items() for _ in range(weight)]


@dataclass(frozen=True, kw_only=True)
class SheetsCourse(Course):
    """What one phase looks at.

    Attributes:
        layouts: Rows and columns of the sheets, to choose from.
        crowded: Share of sheets with four small fields in the place of each: as many tiles show more
            objects and numbers.
    """

    layouts: tuple[tuple[int, int], ...]
    crowded: float = 0.0


class SheetsLessons(Lessons[SheetsCourse]):
    """Pictures and questions of the task ``numbers``."""

    phrasing = Phrasing(
        question="\n{}<|im_end|><|im_start|>assistant\n",
        answer="{}",
        end="<|im_end|>",
        padding="<|endoftext|>",
    )

    def __init__(self, course: SheetsCourse, tokenizer: Tokenizer, seed: int) -> None:
        super().__init__(course, tokenizer, seed)
        self._images = make_image_processor()

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        course = self.course
        rng = rng_of(course.split, self.seed, index)
        sheet = self._sheet(index, rng)
        pixels = self._images(Image.fromarray(draw_sheet(sheet)), return_tensors="pt")["pixel_values"][0]
        lesson = {"pixel_values": pixels, "image_sizes": torch.tensor([sheet.height, sheet.width])}
        lesson["patch_labels"] = torch.from_numpy(tile_labels(sheet))
        if course.questions:
            lesson["places"] = self._places(rng, MOST_TOKENS)
            asked = [self._question(sheet, rng) for _ in range(course.questions)]
            segments = [self._segment(question) for question in asked]
            lesson["input_ids"] = torch.tensor([ids for ids, _ in segments])
            lesson["named"] = torch.tensor([self._named(question, sheet) for question in asked])
            lesson["labels"] = torch.tensor([labels for _, labels in segments])
            lesson["kinds"] = torch.tensor([KINDS.index(question.kind) for question in asked])
        return lesson

    def _sheet(self, index: int, rng: np.random.Generator) -> Sheet:
        """A sheet as large as the others of its block."""
        sizes = rng_of(self.course.split, self.seed, (1 << 40) + index // BLOCK)
        rows, columns = self.course.layouts[sizes.integers(len(self.course.layouts))]
        height, width = FIELDS[sizes.integers(len(FIELDS))]
        if self.course.crowded and sizes.random() < self.course.crowded:
            layout, field = (2 * rows, 2 * columns), (height // 2, width // 2)
            return random_sheet(rng, layout=layout, field=field, radius=_SMALL_RADIUS)
        return random_sheet(rng, layout=(rows, columns), field=(height, width))

    def _question(self, sheet: Sheet, rng: np.random.Generator) -> Question:
        """Any question that the sheet allows."""
        while True:
            if (question := ask(sheet, str(rng.choice(_DECK)), rng)) is not None:
                return question

    def _named(self, question: Question, sheet: Sheet) -> list[list[int]]:
        """At the last token of the name, what :data:`HALFWAY` asks of it; -100 for what it does not."""
        asked = [[-100] * len(HALFWAY) for _ in range(SEGMENT)]
        for name, thing, number in _names(sheet):
            if found := re.search(rf"{name}\b", question.text):
                told = [SHAPES.index(thing.shape), list(COLORS).index(thing.color), *divmod(number, 10)]
                said = (thing.shape in name, thing.color in name, *[str(number) in name] * 2)
                asked[self._token(question.text[: found.end()])] = [
                    -100 if known else label for label, known in zip(told, said, strict=True)
                ]
        return asked


def _names(sheet: Sheet) -> list[tuple[str, Thing, int]]:
    """What questions call an object, the object and its number; longer names come last."""
    scene = sheet.scene
    numbers = {id(thing): plate.number for thing, plate in zip(scene.things, scene.plates, strict=True)}
    colors = [thing.color for thing in scene.things]
    found = [(f"the {t.color} object", t) for t in scene.things if colors.count(t.color) == 1]
    found += [(f"the {name}", thing) for name, thing in named(scene)]
    found += [(f"number {numbers[id(thing)]}", thing) for thing in scene.things]
    return [(name, thing, numbers[id(thing)]) for name, thing in found]


def tile_labels(sheet: Sheet) -> npt.NDArray[np.int64]:
    """Classes of every patch: int64 ``[tiles * patches, 4]``, in the order of :data:`LABELS`.

    The first tile is the whole picture, in which no number can be read.
    """
    height, width = sheet.height, sheet.width
    best = select_best_resolution((height, width), PINPOINTS)
    inner = get_patch_output_size(np.empty((3, height, width)), best, ChannelDimension.FIRST)
    rows, columns = (
        UNITS * side / new * (np.arange(whole) + 0.5 - (whole - new) // 2)
        for side, new, whole in zip((height, width), inner, best, strict=True)
    )
    middles = np.arange(TILE) + 0.5
    base = _patch_labels(sheet, UNITS * height / TILE * middles, UNITS * width / TILE * middles)
    base[..., 2:] = 0
    side = TILE // PATCH
    tiles = _patch_labels(sheet, rows, columns).reshape(best[0] // TILE, side, best[1] // TILE, side, -1)
    tiles = tiles.transpose(0, 2, 1, 3, 4).reshape(-1, len(LABELS))
    return np.concatenate([base.reshape(-1, len(LABELS)), tiles])


def _patch_labels(
    sheet: Sheet, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Classes ``[R / PATCH, C / PATCH, 4]`` of patches whose pixels lie at these points, in units."""
    down, across = len(rows) // PATCH, len(columns) // PATCH
    labels = np.zeros((down, across, len(LABELS)), dtype=np.int64)

    def much(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        return np.asarray(mask.reshape(down, PATCH, across, PATCH).sum(axis=(1, 3)) >= PATCH**2 // 4)

    for thing, plate in zip(sheet.scene.things, sheet.scene.plates, strict=True):
        area = plate_masks(plate, rows, columns)[0]
        shown = much(thing_mask(thing, rows, columns) | area)
        labels[shown, :2] = SHAPES.index(thing.shape) + 1, list(COLORS).index(thing.color) + 1
        left = columns < plate.x
        labels[much(area), 2:] = -100
        for part, half, digit in zip((2, 3), (left, ~left), divmod(plate.number, 10), strict=True):
            labels[much(area & half), part] = digit + 1
    return labels
