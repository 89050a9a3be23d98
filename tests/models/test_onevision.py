"""How the mini OneVision model is trained: sheets in tiles, packed questions, files that are as published."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, LlavaOnevisionImageProcessorPil

from models.training.onevision import ONEVISION, PREFIX, beginning, corpus
from models.training.onevision_network import PATCH, PINPOINTS, TILE
from models.training.packing import SEGMENT
from models.training.sheets import HALFWAY, LABELS, SheetsCourse, SheetsLessons, tile_labels
from star_export.evaluation.numbers.sheets import LAYOUTS, UNITS, Sheet
from star_export.evaluation.shapes.questions import Question
from star_export.evaluation.shapes.scenes import COLORS, SHAPES, Plate, Scene, Thing

SIDE = TILE // PATCH
RING = Thing(shape="ring", color="cyan", x=UNITS * 24, y=UNITS * 24, radius=20, angle=0.0)
STAR = Thing(shape="star", color="red", x=UNITS * 72, y=UNITS * 24, radius=20, angle=0.0)
SHEET = Sheet(
    scene=Scene(
        things=(RING, STAR),
        plates=(Plate(number=47, x=RING.x, y=RING.y), Plate(number=18, x=STAR.x, y=STAR.y)),
        canvas=144,
        texture=0,
    ),
    height=48,
    width=96,
)


@pytest.fixture(scope="module")
def processor():
    return ONEVISION.processor(corpus(0))


def lessons(processor, **course) -> SheetsLessons:
    return SheetsLessons(SheetsCourse(**course), processor.tokenizer.backend_tokenizer, seed=5)


def test_every_word_is_a_token_and_segments_hold_any_question(processor) -> None:
    kinds = set()
    for index in range(0, 80, 8):
        lesson = lessons(processor, layouts=LAYOUTS, questions=40)[index]
        kinds |= set(lesson["kinds"].tolist())
        answered = lesson["labels"] != -100
        assert (answered.sum(1) <= 3).all()  # two digits, or a word, and the end
        wanted = lesson["labels"][:, :-1][answered[:, :-1]]
        assert (wanted == lesson["input_ids"][:, 1:][answered[:, :-1]]).all()
    assert kinds == set(range(len(ONEVISION.kinds)))


@pytest.mark.parametrize("layout", [(1, 2), (3, 2), (4, 3)])
def test_a_packed_question_is_answered_as_if_it_were_alone(processor, layout: tuple[int, int]) -> None:
    torch.manual_seed(0)
    course = SheetsCourse(layouts=(layout,), questions=2, split="validation")
    student = ONEVISION.student(course, processor).eval()
    tokenizer = processor.tokenizer
    lesson = SheetsLessons(course, tokenizer.backend_tokenizer, seed=1)[0]
    batch = {name: tensor[None] for name, tensor in lesson.items()}
    before, image = torch.tensor(tokenizer(PREFIX)["input_ids"]), tokenizer.convert_tokens_to_ids("<image>")
    with torch.no_grad():
        _, features = student.see(batch)
        hidden, _ = student._read(features, batch["input_ids"], batch["places"])
        packed = student.llava.lm_head(hidden)[0]
        student.llava.set_attn_implementation("eager")
        for question, ids in enumerate(lesson["input_ids"]):
            whole = torch.cat([before, torch.full((features.shape[1],), image), ids])[None]
            pictures = {name: batch[name] for name in ("pixel_values", "image_sizes")}
            alone = student.llava(input_ids=whole, **pictures).logits[0, -SEGMENT:]
            assert torch.allclose(packed[question], alone, atol=1e-4)


def test_it_begins_with_what_the_mini_model_knows_of_words(processor) -> None:
    begun, ids = beginning(processor), processor.tokenizer.convert_tokens_to_ids
    rows = begun["llava.lm_head.weight"]
    mini = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "models/mini")
    assert rows[ids("red")].tolist() == rows[ids("Ġred")].tolist()  # an answer there begins with a space
    assert rows[ids("red")].tolist() != rows[ids("blue")].tolist()
    assert "Ġred" in mini.get_vocab()
    student = ONEVISION.student(ONEVISION.phases[0].course, processor)
    assert student.load_state_dict(begun, strict=False).unexpected_keys == []


def test_patches_are_labelled_by_what_they_show() -> None:
    labels = tile_labels(SHEET).reshape(3, SIDE, SIDE, len(LABELS))  # the whole, left, right
    ring = [SHAPES.index("ring") + 1, list(COLORS).index("cyan") + 1]
    star = [SHAPES.index("star") + 1, list(COLORS).index("red") + 1]
    assert labels[1, 3, 2:4].tolist() == [[*ring, 5, -100], [*ring, -100, 8]]  # one digit each
    assert labels[2, 3, 2:4].tolist() == [[*star, 2, -100], [*star, -100, 9]]
    assert labels[0, 3, 1].tolist() == [*ring, 0, 0]  # no number can be read from afar
    assert labels[:, 0, 0].tolist() == [[0, 0, 0, 0]] * 3


def test_names_are_labelled_with_what_they_do_not_say(processor) -> None:
    course = lessons(processor, layouts=LAYOUTS, questions=1)
    expected = {
        "What number is on the red star?": ("star", [-100, -100, 1, 8]),
        "What shape is the cyan object?": ("object", [SHAPES.index("ring"), -100, 4, 7]),
        "What color is number 47?": ("7", [SHAPES.index("ring"), list(COLORS).index("cyan"), -100, -100]),
    }
    for text, (token, labels) in expected.items():
        question = Question("number", text, "18")
        ids, _ = course._segment(question)
        asked = course._named(question, SHEET)
        (place,) = (place for place, told in enumerate(asked) if max(told) >= 0)
        assert processor.tokenizer.decode([ids[place]]).strip() == token
        assert asked[place] == labels
        assert len(labels) == len(HALFWAY)


def test_files_say_what_was_trained(processor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    content = [{"type": "image"}, {"type": "text", "text": "What color is number 47?"}]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    asked = SheetsLessons.phrasing.question.format("What color is number 47?")
    assert prompt == f"{PREFIX}<image>{asked}"
    assert tokenizer.eos_token == SheetsLessons.phrasing.end
    images = LlavaOnevisionImageProcessorPil.from_pretrained(tmp_path)
    assert images.image_grid_pinpoints == PINPOINTS
    picture = Image.fromarray(np.zeros((90, 130, 3), dtype=np.uint8))
    assert images(picture)["pixel_values"][0].shape == (7, 3, TILE, TILE)
