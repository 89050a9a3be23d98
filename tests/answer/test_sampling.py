"""From logits to tokens: greedy, temperature, nucleus, seeds."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from star_export.answer.choosing import next_tokens
from star_export.answer.sampling import Sampler, Sampling
from star_export.engines.onnxruntime import OnnxRuntimeArray
from star_export.errors import SettingsError

# Probabilities 0.5, 0.3, 0.15, 0.05, not in the order of the ids.
LOGITS = np.log(np.array([0.15, 0.5, 0.05, 0.3], dtype=np.float32))


def draw(count: int, *, temperature: float = 1.0, top_p: float = 1.0, seed: int | None = 0) -> list[int]:
    sampler = Sampler(Sampling(temperature=temperature, top_p=top_p, seed=seed))
    return [sampler.draw(LOGITS) for _ in range(count)]


def shares(tokens: list[int]) -> np.ndarray:
    return np.bincount(tokens, minlength=len(LOGITS)) / len(tokens)


def array(rows: list[Any] | np.ndarray) -> OnnxRuntimeArray:
    """Logits where a session leaves them."""
    return OnnxRuntimeArray(ort.OrtValue.ortvalue_from_numpy(np.asarray(rows, np.float32)))


class Watched:
    """Logits that count how often they were copied to the host."""

    def __init__(self, rows: list[Any]) -> None:
        self.array, self.copies = array(rows), 0

    def argmax(self) -> np.ndarray:
        return self.array.argmax()

    def numpy(self) -> np.ndarray:
        self.copies += 1
        return self.array.numpy()


GREEDY = Sampling()
WARM = Sampling(temperature=1.0, seed=3)


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
    assert next_tokens(array([logits]), {0: Sampler(GREEDY)}) == {0: token}


def test_greedy_ignores_top_p_and_seed() -> None:
    sampler = Sampler(Sampling(top_p=0.01, seed=3))
    assert [next_tokens(array([LOGITS]), {0: sampler})[0] for _ in range(20)] == [1] * 20


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("places", [[0], [2], [0, 1, 2]], ids=str)
def test_a_row_that_is_not_finite_has_no_token(sampling: Sampling, value: float, places: list[int]) -> None:
    """Its neighbours do."""
    for bad in range(3):
        rows = np.full((3, 3), -9.0)
        rows[range(3), [2, 0, 1]] = 90.0
        rows[bad, places] = value
        found = next_tokens(array(rows), {row: Sampler(sampling) for row in range(3)})
        assert found == {row: None if row == bad else (2, 0, 1)[row] for row in range(3)}


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_minus_infinity_is_a_probability_of_zero_unless_it_is_all_there_is(sampling: Sampling) -> None:
    rows = [[-np.inf, 0.0, -np.inf], [-np.inf] * 3]
    assert next_tokens(array(rows), {0: Sampler(sampling), 1: Sampler(sampling)}) == {0: 1, 1: None}


def test_each_row_has_its_own_sampler_and_only_rows_that_are_asked_for() -> None:
    rows = [LOGITS, [9.0, 0.0, 0.0, 0.0], LOGITS, [np.nan] * 4]
    samplers = {2: Sampler(WARM), 1: Sampler(GREEDY)}
    expected = Sampler(WARM)
    for _ in range(30):
        assert next_tokens(array(rows), samplers) == {2: expected.draw(LOGITS), 1: 0}


def test_logits_leave_the_device_for_those_who_draw_alone() -> None:
    logits = Watched([LOGITS, [np.nan] * 4])
    next_tokens(logits, {0: Sampler(GREEDY), 1: Sampler(WARM)})
    assert logits.copies == 0
    next_tokens(logits, {0: Sampler(WARM), 1: Sampler(GREEDY)})
    assert logits.copies == 1


@pytest.mark.parametrize("seed", [0, 7])
def test_equal_seeds_give_equal_tokens(seed: int) -> None:
    assert draw(50, seed=seed) == draw(50, seed=seed)
    assert draw(50, seed=seed) != draw(50, seed=seed + 1)


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


@pytest.mark.parametrize(
    ("temperature", "top_p", "nucleus"), [(2.0, 0.45, {1, 3}), (0.5, 0.6, {1}), (1e-3, 0.999, {1})]
)
def test_the_nucleus_is_of_the_probabilities_at_that_temperature(
    temperature: float, top_p: float, nucleus: set[int]
) -> None:
    assert set(draw(1000, temperature=temperature, top_p=top_p)) == nucleus


def sorted_reference(logits: np.ndarray, sampling: Sampling, count: int) -> list[int]:
    """The same by sorting all tokens."""
    random = np.random.default_rng(sampling.seed)
    probabilities = np.exp((logits.astype(np.float64) - logits.max()) / sampling.temperature)
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    together = probabilities[order].cumsum()
    order = order[: int((together < sampling.top_p).sum()) + 1]
    weights = probabilities[order] / probabilities[order].sum()
    return [int(random.choice(order, p=weights)) for _ in range(count)]


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 0.9999, 1 - 2**-53])
@pytest.mark.parametrize("vocab", [1, 5, 511, 512, 513, 9000])
def test_tokens_are_those_of_a_full_sort(vocab: int, top_p: float) -> None:
    random = np.random.default_rng(vocab)
    peaked = random.normal(size=vocab) * 6
    flat = random.normal(size=vocab) / 100
    ties = random.integers(0, 3, vocab)  # most tokens have the probability of thousands of others
    equal = np.zeros(vocab)
    for seed, logits in enumerate((peaked, flat, ties, equal)):
        sampling = Sampling(temperature=1.0, top_p=top_p, seed=seed)
        sampler, logits = Sampler(sampling), logits.astype(np.float32)
        assert [sampler.draw(logits) for _ in range(20)] == sorted_reference(logits, sampling, 20)


def test_of_equal_tokens_the_lower_ids_are_in_the_nucleus() -> None:
    """Half of 2,048 equal tokens, of which the first search finds 512."""
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.5, seed=0))
    found = [sampler.draw(np.zeros(2048, np.float32)) for _ in range(2000)]
    assert max(found) < 1024
    assert max(found) > 1000
    assert min(found) < 24


def test_the_whole_vocabulary_is_not_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(1).normal(size=20_000).astype(np.float32) * 6
    sampler = Sampler(Sampling(temperature=1.0, seed=5))
    random = np.random.default_rng(5)
    probabilities = np.exp(logits.astype(np.float64) - logits.max())
    sizes: list[int] = []
    sort = np.sort
    monkeypatch.setattr(np, "sort", lambda a: sizes.append(a.size) or sort(a))  # type: ignore[func-returns-value]
    monkeypatch.setattr(np, "argsort", None)
    drawn = [sampler.draw(logits) for _ in range(10)]
    assert drawn == [int(random.choice(20_000, p=probabilities / probabilities.sum())) for _ in range(10)]
    assert sizes == []  # every token may be drawn
    Sampler(Sampling(temperature=1.0, top_p=0.9, seed=5)).draw(logits)
    assert sizes == [512]


def test_large_and_infinite_logits() -> None:
    logits = np.array([-np.inf, 1e30, 1e30, 0.0], dtype=np.float32)
    sampler = Sampler(Sampling(temperature=0.7, seed=0))
    assert {sampler.draw(logits) for _ in range(100)} == {1, 2}


@pytest.mark.parametrize("options", [{"temperature": 1e-3}, {"top_p": 1.0}, {"top_p": 1e-300}, {"seed": 0}])
def test_settings_at_their_limits(options: dict[str, float]) -> None:
    assert Sampling(**options) == replace(Sampling(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "^temperature must be 0 .greedy. or a number from 0.001, got -0.1"),
        ({"temperature": float("nan")}, "^temperature must be .* got nan"),
        ({"temperature": float("inf")}, "^temperature must be .* got inf"),
        ({"temperature": 9e-4}, "^temperature must be .* got 0.0009"),
        ({"temperature": 1e-310}, "^temperature must be .* got 1e-310"),
        ({"top_logprobs": 21}, "^top_logprobs must be from 0 to 20, got 21"),
        ({"top_logprobs": -1}, "^top_logprobs must be from 0 to 20, got -1"),
        ({"top_p": 0.0}, "^top_p must be above 0 and at most 1, got 0"),
        ({"top_p": -0.5}, "^top_p must be above 0 and at most 1, got -0.5"),
        ({"top_p": 1.01}, "^top_p must be above 0 and at most 1, got 1.01"),
        ({"top_p": float("nan")}, "^top_p must be above 0 and at most 1, got nan"),
        ({"seed": -1}, "^seed must not be negative, got -1"),
    ],
)
def test_settings_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Sampling(**options)  # type: ignore[arg-type]
