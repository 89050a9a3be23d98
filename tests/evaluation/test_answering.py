"""Variants that ask about one picture share what was seen of it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from star_export.answer.pipeline import load
from star_export.build import BuildOptions, build
from star_export.bundle import open_bundle
from star_export.contract import VISION
from star_export.evaluation.answering import Bundled, Looker
from star_export.evaluation.methods import RULES, UNPRUNED, Bundles, Method, Pruned
from star_export.evaluation.shapes import Shapes
from star_export.evaluation.task import Example
from star_export.specs import picture_tokens

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


@pytest.fixture(scope="module")
def methods(bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundles]:
    """The methods on the small OneVision; its stage 1 drops nothing unless asked to."""
    own = open_bundle(bundle("onevision"))
    options = BuildOptions(
        model=own.manifest["source"]["model"], output=tmp_path_factory.mktemp("room") / "bundle",
        drop_ratio=0.0, keep=1, max_keep=64, prune_layer=1, max_text_tokens=128, max_new_tokens=32,
    )  # fmt: skip
    with load(build(options).folder) as pruned, load(bundle("onevision", prune=False)) as full:
        yield Bundles(own.spec, Looker(full), {1: Looker(pruned), 2: Looker(pruned)}, seed=5)


@pytest.mark.parametrize("size", [(400, 300), (30, 30)])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("rule", [*RULES, UNPRUNED])
def test_every_method_answers_about_pictures_of_any_size(
    methods: Bundles, picture: Path, rule: str, average: bool, size: tuple[int, int]
) -> None:
    example = replace(SHEET, image=Image.open(picture).convert("RGB").resize(size))
    method = Method(rule=rule, budget=60, average=average)
    pruned = Pruned(method, methods)
    assert pruned.answer(example, Shapes()).prefill_ms > 0
    entering = method.layout(methods.spec, picture_tokens(methods.spec.model, size[::-1])).entering
    features = pruned._features(example, entering)
    assert features.shape == (1, entering, 64)
    # Whatever is left is some of the picture's own tokens, in their order; newlines are all the same.
    whole, place = methods.full.look(example)[0], -1
    for row in features[0]:
        same = np.flatnonzero(np.abs(whole - row).max(-1) < 1e-4)
        assert (same > place).any()
        place = same[same > place][0]
