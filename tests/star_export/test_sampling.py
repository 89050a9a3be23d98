"""From logits to tokens: greedy, temperature, nucleus, seeds."""

import numpy as np
import pytest

from star_export.errors import SettingsError
from star_export.sampling import Sampler, Sampling

# Probabilities 0.5, 0.3, 0.15, 0.05, not in the order of the ids.
LOGITS = np.log(np.array([0.15, 0.5, 0.05, 0.3], dtype=np.float32))


def draw(count: int, *, temperature: float = 1.0, top_p: float = 1.0, seed: int | None = 0) -> list[int]:
    sampler = Sampler(Sampling(temperature=temperature, top_p=top_p, seed=seed))
    return [sampler.next_token(LOGITS) for _ in range(count)]


def shares(tokens: list[int]) -> np.ndarray:
    return np.bincount(tokens, minlength=len(LOGITS)) / len(tokens)


@pytest.mark.parametrize(
    ("logits", "token"),
    [
        ([1.0, 3.0, 2.0], 1),
        ([1.0, 3.0, 3.0], 1),
        ([2.0, 2.0, 2.0], 0),
        ([-np.inf, -5.0, -5.0], 1),
        ([0.0, -0.0], 0),
    ],
)
def test_greedy_takes_the_best_and_ties_go_to_the_lower_id(logits: list[float], token: int) -> None:
    assert Sampler(Sampling()).next_token(np.array(logits, dtype=np.float32)) == token


def test_greedy_ignores_top_p_and_seed() -> None:
    assert draw(20, temperature=0.0, top_p=0.01, seed=3) == [1] * 20


def test_equal_seeds_give_equal_tokens() -> None:
    assert draw(50, seed=7) == draw(50, seed=7)
    assert draw(50, seed=7) != draw(50, seed=8)


def test_no_seed_gives_fresh_tokens() -> None:
    assert draw(100, seed=None) != draw(100, seed=None)  # equal once in 1e43


def test_distribution() -> None:
    assert shares(draw(4000)) == pytest.approx([0.15, 0.5, 0.05, 0.3], abs=0.03)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_and_flattens(temperature: float) -> None:
    expected = np.array([0.15, 0.5, 0.05, 0.3]) ** (1 / temperature)
    found = shares(draw(4000, temperature=temperature))
    assert found == pytest.approx(expected / expected.sum(), abs=0.03)


@pytest.mark.parametrize(
    ("top_p", "nucleus"),
    [(0.01, {1}), (0.49, {1}), (0.6, {1, 3}), (0.79, {1, 3}), (0.9, {0, 1, 3}), (1.0, {0, 1, 2, 3})],
)
def test_nucleus_is_the_smallest_set_that_has_the_probability(top_p: float, nucleus: set[int]) -> None:
    assert set(draw(1000, top_p=top_p)) == nucleus


def test_nucleus_keeps_the_proportions() -> None:
    assert shares(draw(4000, top_p=0.6)) == pytest.approx([0.0, 0.625, 0.0, 0.375], abs=0.03)


def test_large_and_infinite_logits() -> None:
    logits = np.array([-np.inf, 1e30, 1e30, 0.0], dtype=np.float32)
    sampler = Sampler(Sampling(temperature=0.7, seed=0))
    assert {sampler.next_token(logits) for _ in range(100)} == {1, 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "--temperature must be 0 .greedy. or a number from 0.001, got -0.1"),
        ({"temperature": float("nan")}, "--temperature must be .* got nan"),
        ({"temperature": 1e-310}, "--temperature must be .* got 1e-310"),
        ({"top_p": 0.0}, "--top-p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.01}, "--top-p must be above 0 and at most 1, got 1.01"),
        ({"top_p": float("nan")}, "--top-p must be above 0 and at most 1, got nan"),
        ({"seed": -1}, "--seed must not be negative, got -1"),
    ],
)
def test_settings_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Sampling(**options)  # type: ignore[arg-type]
