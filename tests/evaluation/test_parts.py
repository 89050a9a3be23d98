"""Variants put together of a vision graph, or a choice on the host, and a prefill graph."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from star_export.build import BuildOptions
from star_export.bundle import open_bundle
from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.engines import Runtime
from star_export.evaluation.choices import CHOICES
from star_export.evaluation.parts import Assembled, Before, Inside, Parts, built_parts
from star_export.evaluation.shapes import Shapes
from star_export.evaluation.task import Example
from star_export.flops import Layout

BEFORES = (Before(score="spread"), Before(score="received", by_share=True))
INSIDES = (Inside(stages=((1, "drift"), (2, "drift"))),)


@pytest.fixture(scope="module")
def parts(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """Of the small OneVision, whose pictures have newlines and many sizes."""
    model, folder = checkpoint("onevision"), tmp_path_factory.mktemp("parts")
    options = BuildOptions(
        model=str(model), output=folder / "answers.jsonl", max_text_tokens=128, max_new_tokens=32
    )
    said: list[str] = []
    with built_parts(
        options, open_checkpoint(str(model)), BEFORES, INSIDES,
        runtime=Runtime(threads=1), tokens=97, say=said.append,
    ) as made:  # fmt: skip
        assert said == [
            f"building {name}" for name in ("unpruned", "spread", "received-by-share", "after-1-2-drift")
        ]
        (scratch,) = folder.iterdir()
        stages = open_bundle(scratch / "after-1-2-drift").spec.schedule
        assert [(stage.after_layer, stage.score, stage.max_tokens) for stage in stages] == [
            (1, "drift", 96), (2, "drift", 95),
        ]  # fmt: skip
        yield made
    assert list(folder.iterdir()) == []


def example(picture: Path, size: tuple[int, int]) -> Example:
    image = Image.open(picture).convert("RGB").resize(size)
    return Example(index=3, kind="any", image=image, question="What?", answer="That.")


@pytest.mark.parametrize("size", [(400, 300), (30, 30)])
@pytest.mark.parametrize("before", [None, *BEFORES, *CHOICES], ids=str)
def test_whatever_enters_is_some_of_the_pictures_tokens_in_their_order(
    parts: Parts, picture: Path, before: Before | str | None, size: tuple[int, int]
) -> None:
    asked = example(picture, size)
    whole = parts.full.look(asked)[0]
    entering = len(whole) if before is None else 40
    variant = Assembled(
        parts=parts, before=before, inside=INSIDES[0], layout=lambda _: Layout(entering=entering)
    )
    image = parts.full.prepare(asked)
    tokens = parts.full.pipeline.tokenize(asked.question, [image], tokens_per_image=[entering])
    features = variant.features(asked, tokens, entering)
    assert features.shape == (1, entering, 64)
    place = -1  # newlines are all the same
    for row in features[0]:
        same = np.flatnonzero(np.abs(whole - row).max(-1) < 1e-4)
        assert (same > place).any()
        place = same[same > place][0]


@pytest.mark.parametrize("inside", [Inside(), *INSIDES], ids=str)
def test_stages_inside_keep_what_the_layout_says(parts: Parts, picture: Path, inside: Inside) -> None:
    """Also more than a small picture has: it keeps what it has."""
    layout = Layout(entering=40, stages=tuple((layer, 30 - layer) for layer, _ in inside.stages))
    variant = Assembled(parts=parts, before="grid", inside=inside, layout=lambda _: layout)
    looker = parts.decoders[inside]
    ran: list[np.ndarray] = []
    prefill = looker.pipeline.steps.prefill
    with pytest.MonkeyPatch.context() as patch:

        def remembering(*arguments: object, **settings: object) -> object:
            state = prefill(*arguments, **settings)  # type: ignore[arg-type]
            ran.append(state.lengths - state.lengths[0])
            return state

        patch.setattr(looker.pipeline.steps, "prefill", remembering)
        assert variant.answer(example(picture, (400, 300)), Shapes()).prefill_ms > 0
    assert [int(length) for length in ran[0]] == [0, *(kept - 40 for _, kept in layout.stages)]
