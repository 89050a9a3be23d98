"""Choices of visual tokens that are no graph: some need a loop, others look at nothing.

They choose on the host from the projected features that the unpruned model gives its decoder.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from star_export.arrays import Float32
from star_export.engines.session import Int64

RANDOM, GRID, DIVPRUNE, CDPRUNER, QR = "random", "grid", "divprune", "cdpruner", "qr"

_TINY = 1e-9


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What there is to choose from.

    Attributes:
        features: Visual tokens of a picture ``[P, C]``.
        question: Embeddings of the question's tokens ``[Q, C]``.
        seed: Of a random choice.
    """

    features: Float32
    question: Float32
    seed: tuple[int, ...]


def blind(found: Candidates, count: int) -> Int64:
    """Any, by lot."""
    rng = np.random.default_rng(found.seed)
    return rng.choice(len(found.features), count, replace=False)


def even(found: Candidates, count: int) -> Int64:
    """Evenly, over the square that the tokens are, or else over their sequence."""
    return grid(count, tokens=len(found.features))


def grid(count: int, *, tokens: int) -> Int64:
    """Indices of ``count`` of a picture's visual tokens, spread evenly, ascending."""
    side = int(tokens**0.5)
    if side**2 != tokens:
        return (2 * np.arange(count) + 1) * tokens // (2 * count)
    rows = min(side, max(1, round(count**0.5), -(-count // side)))
    indices: list[int] = []
    for row in range(rows):
        columns = count * (row + 1) // rows - count * row // rows
        y = (2 * row + 1) * side // (2 * rows)
        indices += [y * side + (2 * column + 1) * side // (2 * columns) for column in range(columns)]
    return np.array(indices, dtype=np.int64)


def farthest(found: Candidates, count: int) -> Int64:
    """DivPrune (arXiv 2503.02175): always the token whose nearest chosen one is farthest away.

    It begins with the token whose nearest other is farthest; distances are of cosines.
    """
    unit = _unit(found.features)
    apart = 1.0 - unit @ unit.T
    np.fill_diagonal(apart, np.inf)
    chosen = [int(apart.min(axis=1).argmax())]
    nearest = apart[chosen[0]].copy()
    while len(chosen) < count:
        nearest[chosen[-1]] = -np.inf
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, apart[chosen[-1]])
    return np.array(chosen)


def conditional(found: Candidates, count: int) -> Int64:
    """As CDPruner (arXiv 2506.10967): the most likely set of a determinantal point process, greedily.

    Its kernel is the cosine of two tokens times the relevance of both: how like the mean of the question's
    embeddings each is, from 0 to 1. CDPruner takes relevance from CLIP's text encoder, which LLaVA's
    checkpoints lack. The greedy choice is that of Chen et al. (arXiv 1709.05135, algorithm 1).
    """
    unit = _unit(found.features)
    relevance = unit @ _unit(found.question.mean(axis=0, keepdims=True))[0]
    relevance = (relevance - relevance.min()) / max(float(np.ptp(relevance)), _TINY)
    return _pivots(relevance[:, None] * unit, count)


def pivoted(found: Candidates, count: int) -> Int64:
    """The first pivots of a QR decomposition of the tokens (Businger and Golub, 1965)."""
    return _pivots(found.features, count)


def _pivots(rows: Float32, count: int) -> Int64:
    """Always the row with the longest part outside the span of those chosen before; then the lower index.

    For a kernel ``rows @ rows.T`` these are the pivots of its Cholesky decomposition, which maximise its
    determinant greedily.
    """
    rest, left = rows.astype(np.float64), np.ones(len(rows), bool)
    chosen: list[int] = []
    for _ in range(count):
        lengths = np.where(left, (rest**2).sum(axis=1), -1.0)
        chosen.append(best := int(lengths.argmax()))
        left[best] = False
        if lengths[best] > _TINY:
            direction = rest[best] / np.sqrt(lengths[best])
            rest -= np.outer(rest @ direction, direction)
    return np.array(chosen)


def _unit(rows: Float32) -> Float32:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), _TINY)  # type: ignore[no-any-return]


#: ``(candidates, count)`` to ``count`` different indices, in any order.
Choice = Callable[[Candidates, int], Int64]

CHOICES: dict[str, Choice] = {
    RANDOM: blind,
    GRID: even,
    DIVPRUNE: farthest,
    CDPRUNER: conditional,
    QR: pivoted,
}
