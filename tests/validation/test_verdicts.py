"""Comparisons of one stage, and the declared tolerances."""

from dataclasses import astuple, replace
from math import inf, sqrt

import numpy as np
import pytest

from star_export.validation.report import StageResult
from star_export.validation.verdicts import (
    Tolerances,
    compare_arrays,
    compare_sets,
    compare_tokens,
    worst,
)


def arrays(found: object, expected: object, tolerance: float = 1e-3) -> StageResult:
    return compare_arrays("stage", np.float32(found), np.float32(expected), tolerance)


def sets(found: list[int], scores: list[float], tolerance: float = 1e-3) -> StageResult:
    return compare_sets("stage", np.array(found, np.int64), np.float32(scores), len(found), tolerance)


def test_arrays_error_is_in_units_of_the_references_rms() -> None:
    result = arrays([[3.0, 4.0], [0.0, 0.5]], [[3.0, 4.0], [0.0, 0.0]], tolerance=0.5)
    assert result.error == pytest.approx(0.5 / sqrt(25 / 4))
    assert (result.stage, result.status, result.tolerance) == ("stage", "pass", 0.5)
    assert "(1, 1)" in result.detail


@pytest.mark.parametrize(("difference", "status"), [(0.0, "pass"), (0.9e-3, "pass"), (1.1e-3, "fail")])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_arrays_at_the_tolerance(difference: float, status: str, scale: float) -> None:
    expected = scale * np.ones((2, 3))
    expected[1] *= -1
    found = expected.copy()
    found[1, 2] += difference * scale
    assert arrays(found, expected).status == status


def test_arrays_one_wrong_element_among_many() -> None:
    expected = np.random.default_rng(0).standard_normal(100_000)
    found = expected.copy()
    found[77_777] += 0.01
    assert arrays(found, expected).status == "fail"
    assert "(77777,)" in arrays(found, expected).detail


@pytest.mark.parametrize("shape", [(3, 2), (2, 2), (6,), (1, 2, 3)])
def test_arrays_of_another_shape(shape: tuple[int, ...]) -> None:
    result = arrays(np.ones(shape), np.ones((2, 3)))
    assert (result.status, result.error) == ("fail", inf)
    assert result.detail == f"shape {list(shape)}, expected [2, 3]"


@pytest.mark.parametrize("value", [np.nan, inf, -inf])
def test_arrays_with_a_value_that_is_not_finite(value: float) -> None:
    result = arrays([[1, 1], [1, value]], np.ones((2, 2)), tolerance=1e30)
    assert (result.status, result.error) == ("fail", inf)
    assert result.detail == f"{value} at (1, 1), expected 1.0"
    assert arrays(np.ones((2, 2)), [[1, 1], [1, value]], tolerance=1e30).status == "fail"


def test_arrays_of_zeros_compare_absolutely() -> None:
    assert arrays([0.0, 0.0], [0.0, 0.0]).error == 0.0
    assert arrays([0.0, 2.0], [0.0, 0.0]).error == 2.0


def test_arrays_of_float16_size_do_not_overflow() -> None:
    assert arrays([1e30, -3e38], [1e30, 3e38], tolerance=1.0).status == "fail"


def test_worst_is_the_largest_error() -> None:
    results = [arrays([1.0 + d], [1.0], tolerance=1.0) for d in (0.1, 0.3, 0.2)]
    assert worst(results) is results[1]
    assert worst([*results, arrays([np.nan], [1.0])]).status == "fail"


SCORES = [0.5, 0.1, 0.4, 0.3, 0.3, 0.2]


@pytest.mark.parametrize(
    ("found", "scores"),
    [
        ([0], SCORES),
        ([0, 2], SCORES),
        ([0, 2, 3], SCORES),  # 3 and 4 tie: the lower index
        ([0, 2, 3, 4], SCORES),
        ([0, 1, 2, 3, 4, 5], SCORES),
        ([0, 1], [0.25] * 4),
    ],
)
def test_sets_that_agree(found: list[int], scores: list[float]) -> None:
    result = sets(found, scores)
    assert (result.status, result.error) == ("pass", 0.0)
    assert result.detail == f"{len(found)} of {len(found)} tokens agree"
    assert result.agreement == 1.0


@pytest.mark.parametrize(
    ("found", "scores", "error", "status"),
    [
        ([0, 2, 4], SCORES, 0.0, "ambiguous"),  # an exact tie, the other way round
        ([0, 2], [0.5, 0.4996, 0.4997, 0.1], 0.0, "pass"),
        ([0, 1], [0.5, 0.4996, 0.4999, 0.1], 0.0003 / 0.4999, "ambiguous"),
        ([0, 1], [0.5, 0.4990, 0.4999, 0.1], 0.0009 / 0.4999, "fail"),
        ([0, 3], SCORES, 0.25, "fail"),
        ([1, 5], SCORES, 0.75, "fail"),  # the worst token counts, wherever it lies
        ([1, 2], [9.0, 0.4999, 0.5, 0.1], (9 - 0.5) / 0.5, "fail"),  # a missing token may be the worst
    ],
)
def test_sets_that_differ(found: list[int], scores: list[float], error: float, status: str) -> None:
    result = sets(found, scores, tolerance=7e-4)
    assert result.status == status
    assert result.error == pytest.approx(error, rel=1e-3)


def test_sets_name_the_worst_token() -> None:
    result = sets([1, 2, 3], [9.0, 0.4, 0.5, 0.3])
    assert result.detail == "2 of 3 tokens agree; farthest from the last kept score: token 0"
    assert result.agreement == 2 / 3


@pytest.mark.parametrize("found", [[2, 0], [0, 0], [0, 2, 2], [-1, 0], [0, 6], [4, 5, 6]])
def test_sets_out_of_order_or_range(found: list[int]) -> None:
    result = sets(found, SCORES, tolerance=1e30)
    assert (result.status, result.error) == ("fail", inf)
    assert result.detail == "indices do not ascend or leave the range"


LOGITS = [np.float32([0.0, 3.0, 4.0, 0.0]), np.float32([5.0, 0.0, 4.999, 0.0])]


def tokens(found: list[int], expected: list[int], tolerance: float = 1e-3) -> StageResult:
    return compare_tokens("stage", found, expected, LOGITS, tolerance)


def test_tokens_that_agree() -> None:
    result = tokens([2, 0], [2, 0])
    assert (result.status, result.error, result.detail) == ("pass", 0.0, "2 tokens agree")


@pytest.mark.parametrize(
    ("found", "status", "margin", "detail"),
    [
        ([1, 0], "fail", 1 / 2.5, "token 0 is 1, expected 2"),
        ([2, 2], "ambiguous", 0.001 / sqrt((25 + 4.999**2) / 4), "token 1 is 2, expected 0"),
        ([2, 2, 3], "ambiguous", 0.001 / sqrt((25 + 4.999**2) / 4), "token 1 is 2, expected 0"),
        ([2, 1], "fail", 5 / sqrt((25 + 4.999**2) / 4), "token 1 is 1, expected 0"),
        ([2], "fail", inf, "1 tokens, expected 2"),
        ([2, 0, 1], "fail", inf, "3 tokens, expected 2"),
        ([], "fail", inf, "0 tokens, expected 2"),
    ],
)
def test_tokens_that_differ(found: list[int], status: str, margin: float, detail: str) -> None:
    result = tokens(found, [2, 0])
    assert result.status == status
    assert result.error == pytest.approx(margin, rel=1e-3)
    assert result.detail == detail


@pytest.mark.parametrize(
    ("difference", "status"), [(-0.37, "fail"), (-0.0009, "ambiguous"), (0.0009, "ambiguous")]
)
def test_tokens_tie_by_distance_whichever_is_larger(difference: float, status: str) -> None:
    """The reference may say a token that its own logits rank below the bundle's."""
    logits = np.float32([1.0, 1.0 - difference, -1.0, -1.0])
    rms = sqrt((3 + (1.0 - difference) ** 2) / 4)
    result = compare_tokens("stage", [1], [0], [logits], 1e-3)
    assert result.status == status
    assert result.error == pytest.approx(abs(difference) / rms, rel=1e-3)


@pytest.mark.parametrize("value", [np.nan, inf, -inf])
def test_tokens_chosen_from_logits_that_are_not_finite_fail(value: float) -> None:
    result = compare_tokens("stage", [1], [0], [np.float32([1.0, 1.0, value])], 1e-3)
    assert (result.status, result.error) == ("fail", inf)
    assert result.detail == "token 0 is 1, expected 0; its logits are not finite"


@pytest.mark.parametrize("value", [np.nan, inf])
def test_sets_chosen_by_scores_that_are_not_finite_fail(value: float) -> None:
    result = sets([0, 1], [value, 0.5, 0.4, 0.3])
    assert (result.status, result.error) == ("fail", inf)
    assert result.detail == "the reference's score of token 0 is not finite"


def test_sets_are_measured_by_the_size_of_the_last_kept_score() -> None:
    result = sets([0, 2], [-0.1, -0.5, -0.5001, -0.9])
    assert (result.status, result.error) == ("ambiguous", pytest.approx(0.0002, rel=1e-2))


def test_tokens_only_the_first_difference_counts() -> None:
    logits = [LOGITS[1], LOGITS[0]]
    assert compare_tokens("stage", [2, 1], [0, 2], logits, 1e-3).status == "ambiguous"


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 3e-4), ("float16", 0.2), ("bfloat16", 0.8)])
def test_declared_tolerances(dtype: str, limit: float) -> None:
    tolerances = Tolerances.load(dtype)
    assert 0 < tolerances.counts <= 0.1  # whole tokens, not rounding
    assert all(0 < value < limit for value in astuple(replace(tolerances, counts=limit / 2)))
    assert tolerances.token_margin <= tolerances.decode_logits


def test_float32_is_held_tighter_than_float16() -> None:
    tolerances = [Tolerances.load(dtype) for dtype in ("float32", "float16")]
    assert tolerances[0].counts < tolerances[1].counts  # whole tokens, not rounding
    single, half = (astuple(replace(each, counts=0.0)) for each in tolerances)
    assert all(50 * a <= b for a, b in zip(single, half, strict=True))
    assert max(single) <= 2e-4


def test_float16_is_held_tighter_than_bfloat16() -> None:
    half, brain = (astuple(Tolerances.load(dtype)) for dtype in ("float16", "bfloat16"))
    assert all(3 * a <= b for a, b in zip(half, brain, strict=True))


def test_tolerances_of_an_unknown_dtype() -> None:
    with pytest.raises(FileNotFoundError, match=r"int8\.toml"):
        Tolerances.load("int8")


def test_sets_of_another_size_fail() -> None:
    scores = np.arange(4, dtype=np.float32)
    for found in ([], [3], [1, 2, 3]):
        result = compare_sets("stage", np.array(found, np.int64), scores, 2, 0.1)
        assert (result.status, result.error) == ("fail", float("inf"))


def test_a_reference_that_is_not_finite_fails() -> None:
    good = np.ones(3, np.float32)
    bad = compare_arrays("stage", good, np.float32([1, np.nan, 3]), 0.1)
    assert bad.status == "fail"
    assert worst([compare_arrays("stage", good, good, 0.1), bad]) is bad


def test_nothing_divides_by_zero() -> None:
    zeros = np.zeros(4, np.float32)
    assert compare_sets("stage", np.array([1, 2]), zeros, 2, 0.1).status == "ambiguous"
    assert compare_tokens("stage", [1], [2], [zeros], 0.1).status == "ambiguous"
