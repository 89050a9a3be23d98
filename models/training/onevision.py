"""The recipe of the mini OneVision model.

The vision tower learns to tell what each patch of a tile shows; the whole model
learns to answer on small sheets, then on sheets of every size.
"""

from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
)

from models.training.model import Heads, Student
from models.training.onevision_network import Processor, make_config, make_processor, vocabulary_size
from models.training.recipe import Phase, Recipe
from models.training.sheets import HALFWAY, LABELS, SheetsCourse, SheetsLessons
from star_export.evaluation.numbers.questions import KINDS, ask
from star_export.evaluation.numbers.sheets import LAYOUTS, random_sheet
from star_export.evaluation.shapes.scenes import COLORS, SHAPES, rng_of

_MINI = Path(__file__).parents[1] / "mini"
PREFIX = "<|im_start|>user "
_SMALL = ((1, 2), (2, 1), (2, 2))
PHASES = (
    Phase(name="vision", course=SheetsCourse(layouts=_SMALL, questions=0), steps=1000, batch=8, rate=2e-3),
    Phase(
        name="vision, crowded",
        course=SheetsCourse(layouts=_SMALL, questions=0, crowded=0.9),
        steps=700,
        batch=8,
        rate=2e-3,
    ),
    Phase(
        name="answers, small",
        course=SheetsCourse(layouts=_SMALL[:2], questions=10, crowded=0.6),
        steps=900,
        batch=8,
        rate=2e-3,
    ),
    Phase(
        name="answers",
        course=SheetsCourse(layouts=LAYOUTS, questions=10),
        steps=350,
        batch=8,
        rate=1.5e-3,
        decay=100,
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


def beginning(processor: Processor) -> dict[str, torch.Tensor]:
    """The mini model's language model, which has learnt to find what a question names.

    Llama's layers are Qwen2's but for the biases. Tokens take the rows of those that spell the same.
    """
    own, mini = processor.tokenizer.get_vocab(), AutoTokenizer.from_pretrained(_MINI).get_vocab()
    rows = {own[token]: mini[twin] for token in own if (twin := _twin(token, mini)) is not None}

    def table(weight: torch.Tensor) -> torch.Tensor:
        fitted = torch.randn(vocabulary_size(processor.tokenizer), weight.shape[1]) * weight.std()
        fitted[list(rows)] = weight[list(rows.values())]
        return fitted

    llava = LlavaForConditionalGeneration.from_pretrained(_MINI, dtype=torch.float32)
    begun = {f"language_model.{name}": w for name, w in llava.model.language_model.state_dict().items()}
    begun["language_model.embed_tokens.weight"] = table(begun["language_model.embed_tokens.weight"])
    named = {f"llava.model.{name}": weight for name, weight in begun.items()}
    return named | {"llava.lm_head.weight": table(llava.lm_head.weight.detach())}


def _twin(token: str, known: dict[str, int]) -> str | None:
    """The mini model's token that stands for one; there an answer begins with a space."""
    if token in (special := {"<|im_start|>": "<s>", "<|im_end|>": "</s>", "<|endoftext|>": "<pad>"}):
        return special[token]
    spelt = token.lower().replace("ġ", "Ġ")  # the space's letter is no letter
    forms = (f"Ġ{spelt}", spelt) if token in {*COLORS, *SHAPES, "assistant"} else (spelt, f"Ġ{spelt}")
    return next((form for form in forms if form in known), None)


ONEVISION = Recipe(
    phases=PHASES,
    kinds=KINDS,
    corpus=corpus,
    processor=make_processor,
    lessons=SheetsLessons,
    student=student,
    beginning=beginning,
    stretched=lambda weights, _: weights,
    dtype=torch.float32,
)
