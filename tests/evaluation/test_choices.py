"""Choices on the host, against their definitions."""

import numpy as np
import pytest

from star_export.arrays import Float32
from star_export.evaluation.choices import CDPRUNER, CHOICES, DIVPRUNE, QR, Candidates, grid


def candidates(tokens: int, width: int, seed: int = 0) -> Candidates:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((tokens, width)).astype(np.float32)
    question = rng.standard_normal((4, width)).astype(np.float32)
    return Candidates(features=features, question=question, seed=(seed,))


def unit(rows: Float32) -> Float32:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("count", [1, 7, 30])
def test_every_choice_gives_as_many_different_tokens_as_asked(name: str, count: int) -> None:
    """Also more than the features have dimensions, and of tokens that are all alike."""
    alike = Candidates(features=np.ones((30, 5), np.float32), question=np.ones((2, 5), np.float32), seed=(1,))
    for found in (candidates(30, 5), alike):
        chosen = CHOICES[name](found, count)
        assert len(chosen) == len(set(chosen.tolist())) == count
        assert set(chosen.tolist()) <= set(range(30))


def test_divprune_takes_the_token_whose_nearest_chosen_one_is_farthest() -> None:
    found = candidates(25, 6)
    apart = 1 - unit(found.features) @ unit(found.features).T
    first, *others = CHOICES[DIVPRUNE](found, 12).tolist()
    lonely = [min(np.delete(apart[index], index)) for index in range(25)]
    assert first == int(np.argmax(lonely))
    chosen = [first]
    for token in others:
        left = [index for index in range(25) if index not in chosen]
        assert token == max(left, key=lambda index: min(apart[index, chosen]))
        chosen.append(token)


@pytest.mark.parametrize("name", [CDPRUNER, QR])
def test_the_greedy_sets_have_the_largest_determinant_at_every_step(name: str) -> None:
    found = candidates(20, 8)
    rows = found.features.astype(np.float64)
    if name == CDPRUNER:
        relevance = unit(found.features) @ unit(found.question.mean(0)[None])[0]
        relevance = (relevance - relevance.min()) / (relevance.max() - relevance.min())
        rows = relevance[:, None] * unit(found.features)
    kernel = rows @ rows.T
    chosen: list[int] = []
    for token in CHOICES[name](found, 7).tolist():
        left = [index for index in range(20) if index not in chosen]
        volumes = {i: np.linalg.det(kernel[np.ix_([*chosen, i], [*chosen, i])]) for i in left}
        assert token == max(volumes, key=lambda index: volumes[index])
        chosen.append(token)


def test_a_choice_by_lot_is_the_same_for_one_seed_and_not_for_another() -> None:
    one, other = candidates(50, 4), candidates(50, 4, seed=1)
    assert np.array_equal(CHOICES["random"](one, 20), CHOICES["random"](one, 20))
    assert not np.array_equal(CHOICES["random"](one, 20), CHOICES["random"](other, 20))


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
