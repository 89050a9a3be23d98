"""How the next token is chosen from logits in host memory."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from star_export.answer.grammar import Constraint
from star_export.answer.logprobs import MAX_TOP_LOGPROBS, Ranking, rank
from star_export.errors import InputError, SettingsError, option

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy; above, logits are divided by it.
        top_p: Sample from the smallest set of tokens that has this probability.
        seed: Seed of the random numbers; None for a fresh one every time.
        top_logprobs: How many of the most likely tokens to tell at every step, with the logprob of the
            chosen one; None for neither.

    Raises:
        SettingsError: If a value is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        if not (self.temperature == 0.0 or 1e-3 <= self.temperature < float("inf")):
            raise SettingsError(
                f"{option('temperature')} must be 0 (greedy) or a number from 0.001, got {self.temperature:g}"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise SettingsError(f"{option('top_p')} must be above 0 and at most 1, got {self.top_p:g}")
        if self.seed is not None and self.seed < 0:
            raise SettingsError(f"{option('seed')} must not be negative, got {self.seed}")
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS:
            raise SettingsError(
                f"{option('top_logprobs')} must be from 0 to {MAX_TOP_LOGPROBS}, got {self.top_logprobs}"
            )


class Sampler:
    """Chooses one token after another; equal seeds give equal tokens.

    Args:
        sampling: How.
        constraint: What it may choose from, of this answer alone; every token by default.

    Attributes:
        refusal: Why there is no next token, once :meth:`choose` found none.
        rankings: Of every token so far; None if ``top_logprobs`` does not ask for them.
    """

    def __init__(self, sampling: Sampling, constraint: Constraint | None = None) -> None:
        self._sampling, self._constraint = sampling, constraint
        self._random = np.random.default_rng(sampling.seed)
        self.refusal: InputError | None = None
        self.rankings: list[Ranking] | None = None if sampling.top_logprobs is None else []

    @property
    def greedy(self) -> bool:
        """Whether the best of all tokens is taken and nothing told of it: no logit need leave the device."""
        plain = self._constraint is None and self.rankings is None
        return plain and self._sampling.temperature == 0.0

    @property
    def complete(self) -> bool:
        """Whether its constraint lets nothing follow the last token."""
        return self._constraint is not None and self._constraint.complete

    def choose(self, logits: npt.NDArray[np.float32]) -> int | None:
        """The next token; its constraint goes on with it.

        Args:
            logits: float32 ``[vocab]``, of which the largest is finite.

        Returns:
            None where the constraint allows no token that has a probability.
        """
        if self._constraint is None:
            token = self._pick(logits)
        else:
            ids = self._constraint.allowed(logits.size)
            some = logits[ids]
            possible = np.isfinite(some.max(initial=-np.inf))
            token = int(ids[self._pick(some)]) if possible else -1
            if not possible or not self._constraint.advance(token):
                self.refusal = self._constraint.refusal()
                return None
        if self.rankings is not None:
            self.rankings.append(rank(logits, token, self._sampling.top_logprobs or 0))
        return token

    def _pick(self, logits: npt.NDArray[np.float32]) -> int:
        return int(logits.argmax()) if self._sampling.temperature == 0.0 else self.draw(logits)

    def draw(self, logits: npt.NDArray[np.float32]) -> int:
        """A token by chance, for a temperature above 0.

        Args:
            logits: float32 ``[vocab]``, of which the largest is finite.
        """
        scaled = logits.astype(np.float64) / self._sampling.temperature
        probabilities = np.exp(scaled - scaled.max())
        probabilities /= probabilities.sum()
        if self._sampling.top_p == 1.0:
            return self._one_of(probabilities)
        nucleus = _largest(probabilities, self._sampling.top_p)
        place = self._one_of(nucleus)
        ties = np.flatnonzero(probabilities == nucleus[place])  # of them, the lower id comes first
        return int(ties[place - np.count_nonzero(nucleus > nucleus[place])])

    def _one_of(self, weights: Probabilities) -> int:
        return int(self._random.choice(weights.size, p=weights / weights.sum()))


def _largest(probabilities: Probabilities, share: float) -> Probabilities:
    """The fewest that together have ``share``, in descending order, without sorting all of them."""
    count = 8  # a nucleus is small, 512 tokens are enough, or else much of the vocabulary
    while True:
        count = min(64 * count, probabilities.size)
        largest = np.sort(np.partition(probabilities, -count)[-count:])[::-1]
        together = largest.cumsum()
        if together[-1] >= share or count == probabilities.size:
            return largest[: together.searchsorted(share) + 1]
