"""Which tokens each method leaves, and what it costs."""

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
    grid,
    methods_at,
)

LLAVA = {"patches": 576, "stage1_keep": 518, "layers": 32, "prune_layer": 14}


def find(methods: list[Method], rule: str, *, average: bool = False) -> Method:
    (found,) = (m for m in methods if m.rule == rule and m.average == average)
    return found


def test_equal_budgets_end_with_the_same_number_of_tokens() -> None:
    methods = methods_at(58, **LLAVA)
    assert {m.rule for m in methods if not m.average} == set(RULES)
    assert all(m.keep == 58 for m in methods if not m.average)
    assert find(methods, STAR).entering == 518
    assert find(methods, STAGE2).entering == 576
    assert find(methods, STAGE1).entering == find(methods, RANDOM).entering == 58
    assert find(methods, FASTV).layer == 2


@pytest.mark.parametrize("budget", [288, 115, 58, 29])
def test_equal_averages_are_equal(budget: int) -> None:
    methods = methods_at(budget, **LLAVA)
    star = find(methods, STAR).tokens_per_layer(32)
    assert star == (14 * 518 + 18 * budget) / 32
    for method in methods:
        if method.average:
            assert method.tokens_per_layer(32) == pytest.approx(star, abs=0.5)
            assert 1 <= method.keep < 576


def test_a_method_that_cannot_spend_so_little_is_left_out() -> None:
    methods = methods_at(29, **LLAVA)  # stage 2 alone runs 14 layers on 576 tokens: 29 - 45 would be left
    assert not any(m.rule == STAGE2 and m.average for m in methods)
    assert find(methods, GRID, average=True).keep == round(find(methods, STAR).tokens_per_layer(32))


@pytest.mark.parametrize("count", [1, 2, 29, 58, 64, 115, 288, 518, 576])
def test_the_grid_is_spread_evenly(count: int) -> None:
    indices = grid(count, patches=576)
    assert len(indices) == count
    assert (np.diff(indices) > 0).all()
    assert indices.min() >= 0
    assert indices.max() < 576
    if count >= 29:
        rows, columns = indices // 24, indices % 24
        quarters = [((rows < 12) == up) & ((columns < 12) == left) for up in (1, 0) for left in (1, 0)]
        assert max(q.sum() for q in quarters) - min(q.sum() for q in quarters) <= 0.25 * count
