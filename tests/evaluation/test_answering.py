"""Variants that ask about one picture share what was seen of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from star_export.answer.pipeline import load
from star_export.contract import VISION
from star_export.evaluation.answering import Bundled, Looker
from star_export.evaluation.shapes import Shapes
from star_export.evaluation.task import Example

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
