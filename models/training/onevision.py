"""The recipe of the mini OneVision model.

The vision tower learns to tell what each patch of a tile shows; the whole model
learns to answer on small sheets, then on sheets of every size.
"""

import torch
from transformers import LlavaOnevisionForConditionalGeneration

from models.training.model import Heads, Student
from models.training.onevision_network import Processor, make_config, make_processor
from models.training.recipe import Phase, Recipe
from models.training.sheets import HALFWAY, LABELS, SheetsCourse, SheetsLessons
from star_export.evaluation.numbers.questions import KINDS, ask
from star_export.evaluation.numbers.sheets import LAYOUTS, random_sheet
from star_export.evaluation.shapes.scenes import rng_of

PREFIX = "<|im_start|>user "
_SMALL = ((1, 2), (2, 1), (2, 2))
PHASES = (
    Phase(name="vision", course=SheetsCourse(layouts=_SMALL, questions=0), steps=1200, batch=8, rate=2e-3),
    Phase(
        name="answers, small",
        course=SheetsCourse(layouts=_SMALL, questions=8),
        steps=1600,
        batch=8,
        rate=2e-3,
    ),
    Phase(
        name="answers",
        course=SheetsCourse(layouts=LAYOUTS, questions=12),
        steps=800,
        batch=8,
        rate=1.5e-3,
        decay=500,
    ),
)


def corpus(seed: int) -> list[str]:
    """Sentences of the training split, from which the tokenizer takes its words."""
    sentences = ["user", "assistant"] * 2000
    for index in range(500):
        rng = rng_of("train", seed, index)
        sheet = random_sheet(rng, layout=(2, 2), field=(48, 48))
        asked = [ask(sheet, kind, rng) for kind in KINDS * 8]
        sentences += [line for q in asked if q is not None for line in (f"\n{q.text}", q.answer)]
    return sentences


class OnevisionStudent(Student):
    """Tower's head and language model both read the last layer, one of them before its last norm."""

    def see(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        core, config = self.llava.model, self.llava.config
        pixels = batch["pixel_values"]
        vision = core.vision_tower(pixels.flatten(0, 1), output_hidden_states=True)
        features = core.multi_modal_projector(vision.hidden_states[-1]).unflatten(0, pixels.shape[:2])
        packed, _ = core.pack_image_features(
            features, batch["image_sizes"], core.image_newline, config.vision_aspect_ratio
        )
        return vision.last_hidden_state.unflatten(0, pixels.shape[:2]).flatten(1, 2), torch.stack(packed)


def student(_: SheetsCourse, processor: Processor) -> OnevisionStudent:
    """The model, for every course the same."""
    before = torch.tensor(processor.tokenizer(PREFIX)["input_ids"])
    llava = LlavaOnevisionForConditionalGeneration(make_config(processor.tokenizer))
    return OnevisionStudent(llava, before, Heads(patch=LABELS, halfway=HALFWAY))


ONEVISION = Recipe(
    phases=PHASES,
    kinds=KINDS,
    corpus=corpus,
    processor=make_processor,
    lessons=SheetsLessons,
    student=student,
    stretched=lambda weights, _: weights,
    dtype=torch.float32,
)
