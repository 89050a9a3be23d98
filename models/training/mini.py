"""The recipe of the mini model.

The vision tower learns to tell what each patch shows; the whole model learns to
answer, on pictures of 12 x 12 patches; then on pictures of 24 x 24 patches,
with interpolated position embeddings; and at last to read early what it answers.
"""

import math
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from models.training.lessons import HALFWAY, LABELS, PREFIX, WEIGHTS, ShapesCourse, ShapesLessons
from models.training.model import Heads, Student
from models.training.network import LAYERS, PATCH, make_config, make_processor
from models.training.recipe import Phase, Recipe
from star_export.evaluation.shapes.questions import KINDS, ask
from star_export.evaluation.shapes.scenes import random_scene, rng_of

PHASES = (
    Phase(name="vision, 12x12", course=ShapesCourse(canvas=48, questions=0), steps=1500, batch=32, rate=2e-3),
    Phase(
        name="answers, 12x12, few flipped",
        course=ShapesCourse(canvas=48, questions=10, flipped=0.1),
        steps=1000,
        batch=32,
        rate=2e-3,
    ),
    Phase(
        name="answers, 12x12", course=ShapesCourse(canvas=48, questions=10), steps=1000, batch=32, rate=2e-3
    ),
    Phase(
        name="answers, 24x24",
        course=ShapesCourse(canvas=96, questions=16),
        steps=1500,
        batch=8,
        rate=1.5e-3,
        decay=500,
    ),
    Phase(
        name="answers, 24x24, halfway",
        course=ShapesCourse(canvas=96, questions=16, halfway=True),
        steps=500,
        batch=8,
        rate=1.5e-3,
        decay=400,
    ),
)


def corpus(seed: int) -> list[str]:
    """Sentences of the training split, from which the tokenizer takes its words."""
    sentences = ["USER: ASSISTANT:"] * 2000
    for index in range(3000):
        rng = rng_of("train", seed, index)
        scene = random_scene(rng)
        asked = [ask(scene, kind, rng) for kind in KINDS]
        sentences += [f"\n{q.text} ASSISTANT: {q.answer}" for q in asked if q is not None]
    return sentences


class MiniStudent(Student):
    """The tower's head reads its last layer, the language model the one before, as in LLaVA-1.5."""

    def see(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        core = self.llava.model
        vision = core.vision_tower(batch["pixel_values"], output_hidden_states=True)
        states = core.vision_tower.post_layernorm(vision.last_hidden_state)[:, 1:]
        return states, core.multi_modal_projector(vision.hidden_states[-2][:, 1:])


def student(course: ShapesCourse, processor: LlavaProcessor, *, layer: int | None = None) -> MiniStudent:
    """The model for pictures of a course's size; the decoder's head reads ``layer``."""
    tokenizer = processor.tokenizer
    config = make_config(
        image_size=course.canvas,
        vocab=-(-len(tokenizer) // 16) * 16,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    before = torch.tensor(tokenizer.backend_tokenizer.encode(PREFIX).ids[:-1])
    heads = Heads(patch=LABELS, halfway=HALFWAY, layer=layer)
    return MiniStudent(LlavaForConditionalGeneration(config), before, heads)


def stretched(weights: dict[str, torch.Tensor], course: ShapesCourse) -> dict[str, torch.Tensor]:
    """Weights for pictures of a course's size: position embeddings are interpolated to its grid."""
    name = next(name for name in weights if name.endswith("position_embedding.weight"))
    old, side = weights[name], course.canvas // PATCH
    before = math.isqrt(len(old) - 1)
    grid = old[1:].T.reshape(1, -1, before, before)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return weights | {name: torch.cat([old[:1], grid.flatten(2)[0].T])}  # the first is CLS


MINI = Recipe(
    phases=PHASES,
    kinds=tuple(WEIGHTS),
    corpus=corpus,
    processor=lambda sentences: make_processor(sentences, image_size=PHASES[-1].course.canvas),
    lessons=ShapesLessons,
    student=student,
    beginning=lambda _: {},
    stretched=stretched,
    dtype=torch.bfloat16,
)

#: The same without practice halfway, which would flatter pruning there: the head reads the last layer.
LATE = replace(MINI, phases=PHASES[:-1], student=partial(student, layer=LAYERS))
