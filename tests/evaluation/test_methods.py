"""Which tokens each method leaves, and what it costs."""

from dataclasses import replace

import numpy as np
import pytest

from star_export.evaluation.methods import (
    FASTV,
    GRID,
    RANDOM,
    RULES,
    STAGE1,
    STAGE2,
    STAR,
    Method,
    all_methods,
    grid,
)
from star_export.specs import ExportSpec, ModelSpec, resolve_images, resolve_star
from tests.shapes import NEXT, ONEVISION


def star(model: ModelSpec) -> ExportSpec:
    """STAR's own settings."""
    images = resolve_images(model, room=32000)
    return ExportSpec(
        model=model, schedule=resolve_star(model, images, keep=1, max_keep=500), images=images,
        max_text_tokens=128, max_new_tokens=32, append_tokens=1, dtype="float32",
    )  # fmt: skip


#: CLIP's 576 patches and 32 layers, as LLaVA-1.5-7B has them.
LLAVA = star(replace(NEXT, model_type="llava", tiling=None))
PATCHES = (576, 0)
ONEVISION_STAR = star(ONEVISION)
#: Visual tokens and newlines of 640x480 pixels, and of pictures that have one tile behind the first.
LARGE, SMALL = (2929, 40), (1485, 27)


def find(methods: list[Method], rule: str, *, average: bool = False) -> Method:
    (found,) = (m for m in methods if m.rule == rule and m.average == average)
    return found


def average_tokens(method: Method, spec: ExportSpec, picture: tuple[int, int]) -> float:
    layers = spec.model.text.num_layers
    return sum(method.layout(spec, picture).tokens(layers)) / layers


def test_equal_budgets_end_with_the_same_number_of_tokens() -> None:
    methods = all_methods([58], LLAVA, [PATCHES])[1:]
    assert {m.rule for m in methods if not m.average} == set(RULES)
    layouts = {m.rule: m.layout(LLAVA, PATCHES) for m in methods if not m.average}
    assert {layout.tokens(32)[-1] for layout in layouts.values()} == {58}
    assert (layouts[STAR].entering, layouts[STAGE2].entering) == (518, 576)
    assert layouts[STAGE1] == layouts[RANDOM]
    assert layouts[STAGE1].entering == 58
    assert layouts[FASTV].stages == ((2, 58),)


@pytest.mark.parametrize("budget", [288, 115, 58, 29])
def test_equal_averages_are_equal(budget: int) -> None:
    methods = all_methods([budget], LLAVA, [PATCHES])
    wanted = average_tokens(find(methods, STAR), LLAVA, PATCHES)
    assert wanted == (14 * 518 + 18 * budget) / 32
    for method in methods:
        if method.average:
            assert average_tokens(method, LLAVA, PATCHES) == pytest.approx(wanted, abs=0.5)


def test_a_method_that_cannot_spend_so_little_is_left_out() -> None:
    methods = all_methods([29], LLAVA, [PATCHES])
    # Stage 2 alone runs 14 layers on 576 tokens: 29 - 45 would be left.
    assert not any(m.rule == STAGE2 and m.average for m in methods)
    equal = find(methods, GRID, average=True).layout(LLAVA, PATCHES)
    assert equal.entering == round(average_tokens(find(methods, STAR), LLAVA, PATCHES))


def test_pictures_of_different_sizes() -> None:
    """Stage 1 keeps a share of each picture's patches and all newlines; a budget is the same number."""
    spec, sizes = ONEVISION_STAR, [LARGE, SMALL]
    methods = all_methods([320], spec, sizes)
    entering = [find(methods, STAR).layout(spec, size).entering for size in sizes]
    assert entering == [2600 + 40, 1312 + 27]
    assert {m.layout(spec, s).tokens(24)[-1] for m in methods[1:] if not m.average for s in sizes} == {320}
    assert [methods[0].layout(spec, size).entering for size in sizes] == [2929, 1485]
    for size in sizes:
        wanted = average_tokens(find(methods, STAR), spec, size)
        fair = find(methods, FASTV, average=True)
        assert average_tokens(fair, spec, size) == pytest.approx(wanted, abs=0.5)


@pytest.mark.parametrize("rule", RULES)
def test_a_budget_above_a_pictures_tokens_keeps_them_all(rule: str) -> None:
    layout = Method(rule=rule, budget=2000).layout(ONEVISION_STAR, SMALL)
    assert layout.tokens(24)[-1] == (1312 + 27 if rule == STAR else 1485)


@pytest.mark.parametrize(("count", "tokens"), [(1, 2929), (320, 2929), (2929, 2929), (64, 577)])
def test_tokens_that_are_no_square_are_spread_along_their_sequence(count: int, tokens: int) -> None:
    indices = grid(count, tokens=tokens)
    assert len(indices) == count
    gaps = np.diff(indices, prepend=-1, append=tokens)
    assert (gaps > 0).all()
    assert np.ptp(gaps[1:-1]) <= 1 if count > 1 else indices[0] == tokens // 2
    assert abs(gaps[0] - gaps[-1]) <= 1


@pytest.mark.parametrize("count", [1, 2, 29, 58, 64, 115, 288, 518, 576])
def test_the_grid_is_spread_evenly(count: int) -> None:
    indices = grid(count, tokens=576)
    assert len(indices) == count
    assert (np.diff(indices) > 0).all()
    assert indices.min() >= 0
    assert indices.max() < 576
    if count >= 29:
        rows, columns = indices // 24, indices % 24
        quarters = [((rows < 12) == up) & ((columns < 12) == left) for up in (1, 0) for left in (1, 0)]
        assert max(q.sum() for q in quarters) - min(q.sum() for q in quarters) <= 0.25 * count
