"""The task ``numbers``: questions about small numbers in large pictures."""

from PIL import Image

from star_export.evaluation.numbers.questions import KINDS, ask
from star_export.evaluation.numbers.sheets import FIELDS, LAYOUTS, draw_sheet, random_sheet
from star_export.evaluation.shapes import Shapes
from star_export.evaluation.shapes.scenes import rng_of
from star_export.evaluation.task import Example


class Numbers(Shapes):
    """Kinds take turns, and so do layouts; every question has a picture of its own."""

    kinds = KINDS

    def example(self, split: str, seed: int, index: int) -> Example:
        """Sheets are drawn by lot until one has a question of the kind whose turn it is."""
        rng = rng_of(split, seed, index)
        turn, kind = divmod(index, len(KINDS))
        layout = LAYOUTS[turn % len(LAYOUTS)]
        question = None
        while question is None:
            field = FIELDS[rng.integers(len(FIELDS))]
            sheet = random_sheet(rng, layout=layout, field=field)
            question = ask(sheet, KINDS[kind], rng)
        return Example(
            index=index,
            kind=question.kind,
            image=Image.fromarray(draw_sheet(sheet)),
            question=question.text,
            answer=question.answer,
        )
