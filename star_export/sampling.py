"""From logits to the next token."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from star_export.errors import SettingsError


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
                f"--temperature must be 0 (greedy) or a number from 0.001, got {self.temperature:g}"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise SettingsError(f"--top-p must be above 0 and at most 1, got {self.top_p:g}")
        if self.seed is not None and self.seed < 0:
            raise SettingsError(f"--seed must not be negative, got {self.seed}")


class Sampler:
    """Draws one token after another; equal seeds give equal tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    @property
    def greedy(self) -> bool:
        """Whether the best token is always taken, so that the logits need not leave the device."""
        return self._sampling.temperature == 0.0

    def next_token(self, logits: npt.NDArray[np.float32]) -> int:
        """The token after ``logits [vocab]``; ties of the greedy choice go to the lower id."""
        if self.greedy:
            return int(logits.argmax())
        scaled = logits.astype(np.float64) / self._sampling.temperature
        probabilities = np.exp(scaled - scaled.max())
        probabilities /= probabilities.sum()
        order = np.argsort(-probabilities, kind="stable")
        before = np.cumsum(probabilities[order]) - probabilities[order]
        nucleus = order[before < self._sampling.top_p]
        weights = probabilities[nucleus] / probabilities[nucleus].sum()
        return int(self._random.choice(nucleus, p=weights))
