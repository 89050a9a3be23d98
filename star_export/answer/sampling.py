"""How the next token is drawn from logits in host memory."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from star_export.errors import SettingsError, option

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy; above, logits are divided by it.
        top_p: Sample from the smallest set of tokens that has this probability.
        seed: Seed of the random numbers; None for a fresh one every time.

    Raises:
        SettingsError: If a value is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (self.temperature == 0.0 or 1e-3 <= self.temperature < float("inf")):
            raise SettingsError(
                f"{option('temperature')} must be 0 (greedy) or a number from 0.001, got {self.temperature:g}"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise SettingsError(f"{option('top_p')} must be above 0 and at most 1, got {self.top_p:g}")
        if self.seed is not None and self.seed < 0:
            raise SettingsError(f"{option('seed')} must not be negative, got {self.seed}")


class Sampler:
    """Draws one token after another; equal seeds give equal tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    @property
    def greedy(self) -> bool:
        """Whether the best token is always taken, so that the logits need not leave the device."""
        return self._sampling.temperature == 0.0

    def draw(self, logits: npt.NDArray[np.float32]) -> int:
        """A token by chance, for a sampler that is not greedy.

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
