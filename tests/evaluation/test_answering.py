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
from star_export.evaluation.answering import Looker
from star_export.evaluation.task import Example


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
    example = Example(index=0, kind="any", image=image, question="What?", answer="That.")
    again = replace(example, index=1, image=image.copy(), question="Where?")
    other = replace(example, image=ImageOps.invert(image))
    first = looker.look(example)
    assert looker.look(again) is first
    assert looker.look(again, 29).shape[1] == 29
    assert runs == [VISION] * 2
    assert not np.array_equal(looker.look(other), first)
    assert np.array_equal(looker.look(example), first)
    assert runs == [VISION] * 4
