"""How the mini model is trained: packed questions, patch labels, going on after a stop."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.training import training as module
from models.training.lessons import PREFIX, WEIGHTS, ShapesCourse, ShapesLessons, patch_labels
from models.training.mini import MINI, PHASES, corpus, stretched
from models.training.muon import Muon
from models.training.network import make_processor
from models.training.packing import SEGMENT
from models.training.recipe import Phase, Recipe
from models.training.training import Training
from star_export.evaluation.shapes.questions import Question
from star_export.evaluation.shapes.scenes import COLORS, SHAPES, Plate, Scene, Thing


@pytest.fixture(scope="module")
def processor():
    return make_processor(corpus(0)[:4000], image_size=96)


@pytest.fixture(scope="module")
def tokenizer(processor):
    return processor.tokenizer.backend_tokenizer


def test_every_word_is_a_token_and_segments_hold_any_question(tokenizer) -> None:
    lessons = ShapesLessons(ShapesCourse(canvas=96, questions=40), tokenizer, seed=5)
    kinds = set()
    for index in range(20):
        lesson = lessons[index]
        assert lesson["input_ids"].shape == lesson["labels"].shape == (40, SEGMENT)
        kinds |= set(lesson["kinds"].tolist())
        answered = lesson["labels"] != -100
        assert (answered.sum(1) >= 2).all()  # a word and the end
        # The label at t is the token at t + 1.
        wanted = lesson["labels"][:, :-1][answered[:, :-1]]
        assert (wanted == lesson["input_ids"][:, 1:][answered[:, :-1]]).all()
    assert kinds == set(range(len(WEIGHTS)))


def test_a_packed_question_is_answered_as_if_it_were_alone(processor, tokenizer) -> None:
    torch.manual_seed(0)
    before = torch.tensor(tokenizer.encode(PREFIX).ids[:-1])
    course = ShapesCourse(canvas=48, questions=3, split="validation")
    student = MINI.student(course, processor).eval()
    lesson = ShapesLessons(course, tokenizer, seed=1)[0]
    batch = {name: tensor[None] for name, tensor in lesson.items()}
    with torch.no_grad():
        core = student.llava.model
        _, features = student.see(batch)
        hidden, _ = student._read(features, batch["input_ids"], batch["places"])
        packed = student.llava.lm_head(hidden)[0]
        core.language_model.config._attn_implementation = "eager"
        core.vision_tower.config._attn_implementation = "eager"
        for question, ids in enumerate(lesson["input_ids"]):
            whole = torch.cat([before, torch.full((144,), 4), ids])[None]
            alone = student.llava(input_ids=whole, pixel_values=batch["pixel_values"]).logits[0, -SEGMENT:]
            assert torch.allclose(packed[question], alone, atol=1e-4)


def test_names_are_labelled_with_the_place_of_what_they_name(tokenizer) -> None:
    ring = Thing(shape="ring", color="cyan", x=30, y=22, radius=11, angle=0.0)
    cross = Thing(shape="cross", color="red", x=70, y=60, radius=11, angle=0.0)
    scene = Scene(things=(ring, cross), plates=(), canvas=96, texture=0)
    lessons = ShapesLessons(ShapesCourse(canvas=96, questions=1), tokenizer, seed=0)
    question = Question("comparison", "Is the cyan ring left of the cross?", "yes")
    ids, _ = lessons._segment(question)
    labelled = {
        tokenizer.decode([ids[i]]): asked[:2]
        for i, asked in enumerate(lessons._named(question, scene))
        if asked[0] != -100
    }
    assert labelled == {"ring": (2, 3), "cross": (7, 8)}  # twelfths of 96


def test_patches_are_labelled_by_what_they_show() -> None:
    ring = Thing(shape="ring", color="cyan", x=30, y=22, radius=11, angle=0.0)
    scene = Scene(things=(ring,), plates=(Plate(number=47, x=70, y=70),), canvas=96, texture=0)
    labels = patch_labels(scene).reshape(24, 24, 6)
    shape, color = SHAPES.index("ring") + 1, list(COLORS).index("cyan") + 1
    assert labels[22 // 4, 39 // 4].tolist() == [shape, color, 0, 0, 3, 4]  # 22 and 30 of 96, in twelfths
    assert labels[22 // 4, 30 // 4].tolist() == [0, 0, 0, 0, 0, 0]  # the hole
    assert labels[70 // 4, 70 // 4].tolist() == [0, 0, 5, 8, 9, 9]
    assert 20 < (labels[..., 0] > 0).sum() < 40
    assert (labels[..., 2] > 0).sum() in range(12, 25)


def test_position_embeddings_are_stretched_and_cls_stays() -> None:
    name = "llava.model.vision_tower.embeddings.position_embedding.weight"
    ramp = torch.linspace(0, 1, 12).repeat(12)[:, None]
    weights = {name: torch.cat([torch.tensor([[9.0]]), ramp]), "other": torch.ones(2)}
    wide = stretched(weights, ShapesCourse(canvas=96, questions=0))
    assert wide[name].shape == (577, 1)
    assert wide[name][0] == 9.0
    rows = wide[name][1:].reshape(24, 24)
    assert (rows[0].diff() > 0).all()
    assert torch.allclose(rows, rows[:1].expand(24, 24))
    assert wide["other"] is weights["other"]


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_muon_steps_as_torchs(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = torch.randn(shape)
    theirs = ours.clone()
    optimizers = (
        Muon([ours], lr=1e-2, dtype=torch.bfloat16),
        torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.slow
def test_a_stopped_training_goes_on_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = PHASES
    short = (
        dataclasses.replace(first, steps=2, batch=2),
        dataclasses.replace(second, steps=2, batch=2, decay=1),
    )
    monkeypatch.setattr(module, "LOOK_EVERY", 1)
    monkeypatch.setattr(module, "LOOK_AT", 2)

    def recipe(phases: tuple[Phase[ShapesCourse], ...]) -> Recipe[ShapesCourse]:
        return dataclasses.replace(MINI, phases=phases, corpus=lambda seed: corpus(seed)[:3000])

    def train(folder: Path, phases: tuple[Phase[ShapesCourse], ...]) -> dict[str, torch.Tensor]:
        Training(recipe(phases), folder, seed=0, device="cpu").run()
        return load_file(folder / "progress.safetensors")

    whole = train(tmp_path / "whole", short)
    stopped = (dataclasses.replace(short[0], steps=1), short[1])
    train(tmp_path / "cut", stopped[:1])
    again = train(tmp_path / "cut", short)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not np.array_equal(whole["model.head.weight"], torch.zeros(()))
    with pytest.raises(SystemExit, match="was trained with --seed 0"):
        Training(recipe(short), tmp_path / "cut", seed=1, device="cpu").run()
