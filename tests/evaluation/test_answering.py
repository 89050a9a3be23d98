"""Variants that ask about one picture share what was seen of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import AutoModelForImageTextToText

from star_export.answer.pipeline import load
from star_export.contract import VISION
from star_export.evaluation.answering import Batched, Bundled, Looker
from star_export.evaluation.shapes import Shapes
from star_export.evaluation.task import Example
from star_export.serving.scheduler import Scheduler

SHEET = Example(index=3, kind="any", image=Image.new("RGB", (8, 8)), question="What?", answer="That.")


def test_a_picture_is_seen_once(
    bundle: Callable[..., Path], picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every question about it and every number of tokens, and not when another one comes."""
    looker, runs = Looker(load(bundle("mini"), threads=1)), []
    run = looker.pipeline.session.run

    def counting(graph: str, *rest: Any) -> Any:
        runs.append(graph)
        return run(graph, *rest)

    monkeypatch.setattr(looker.pipeline.session, "run", counting)
    image = Image.open(picture).convert("RGB")
    example = replace(SHEET, image=image)
    again = replace(example, index=1, image=image.copy(), question="Where?")
    other = replace(example, image=ImageOps.invert(image))
    first = looker.look(example)
    assert looker.look(again) is first
    assert looker.look(again, 29).shape[1] == 29
    assert runs == [VISION] * 2
    assert not np.array_equal(looker.look(other), first)
    assert np.array_equal(looker.look(example), first)
    assert runs == [VISION] * 4


def test_a_budget_of_its_own_for_each_picture(bundle: Callable[..., Path], picture: Path) -> None:
    """A bundle asked for more than a small picture has keeps what it has, without an error."""
    with load(bundle("onevision"), threads=1) as pipeline:
        looker = Looker(pipeline)
        large = replace(SHEET, image=Image.open(picture).convert("RGB"))
        small = replace(SHEET, image=large.image.crop((0, 0, 70, 8)))
        for example, keep in ((large, 40), (small, 33)):
            before = looker.look(example).shape[1]
            (image,) = pipeline.prepare(example.image)
            assert before == sum(pipeline.entering([image]))
            assert pipeline.budget(40, [image]) == keep
            assert 0 <= Bundled(looker, 40).answer(example, Shapes()).score <= 1


@pytest.mark.parametrize("words", [1, 50], ids=["one run of decode", "two runs"])
def test_a_question_without_a_picture_is_answered_as_transformers_does(
    bundle: Callable[..., Path], checkpoint: Callable[[str], Path], picture: Path, words: int
) -> None:
    """Behind one with a picture, whose tokens are still in the caches, and together with it."""
    text = replace(SHEET, image=None, question="What " * words)
    other = replace(SHEET, image=Image.open(picture).convert("RGB"), question="What color is the circle?")
    with load(bundle("mini"), threads=1) as pipeline:
        tokens = pipeline.tokenize(text.question, [])
        model = AutoModelForImageTextToText.from_pretrained(checkpoint("mini")).eval()
        ids = torch.from_numpy(tokens.input_ids)
        said = model.generate(input_ids=ids, max_new_tokens=Shapes().max_new_tokens, do_sample=False)
        expected = pipeline.tokenizer.decode(said[0, ids.shape[1] :].tolist()).strip()
        alone = Bundled(Looker(pipeline), 29)
        seen = [alone.answer(example, Shapes()).text for example in (other, text, other, text)]
        assert expected
        assert seen == [seen[0], expected] * 2
        with Scheduler(pipeline, slots=2) as scheduler:
            found = Batched(scheduler, 29).answer_all([other, text, text], Shapes())
        assert [answer.text for answer in found] == [seen[0], expected, expected]
