"""Accuracies of variants that answered the same questions, with what chance leaves open."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from star_export.evaluation.record import Row

RESAMPLES = 2000
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """Such as ``93.1 (91.0 to 95.0)``."""
        return f"{100 * self.value:.1f} ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True)
class Score:
    """How one variant did.

    Attributes:
        accuracy: Mean score.
        retention: Its accuracy divided by the baseline's on the same questions; None for the
            baseline itself, or when that one was never right.
        kinds: Mean score of every kind of question.
        prefill_ms: Median time of a prefill.
        metrics: What the task reports besides, in the unit in which it is published; the headline first.
    """

    accuracy: Estimate
    retention: Estimate | None
    kinds: dict[str, float]
    prefill_ms: float
    metrics: dict[str, float] = field(default_factory=dict)


class ScoreTable:
    """Scores of every variant on the same questions; intervals are paired by question.

    Args:
        rows: The questions with their answers.
        seed: Of the resampling.
    """

    def __init__(self, rows: Sequence[Row], *, seed: int = 0) -> None:
        self.rows, self._seed = rows, seed

    def of(self, variant: str) -> Floats:
        """Its score on each question ``[n]``."""
        return np.array([row.answers[variant].score for row in self.rows])

    def score(self, variant: str, *, baseline: str | None = None) -> Score:
        """Everything about one variant."""
        scores, means = self.of(variant), self._means(variant)
        retention = None
        if baseline is not None and variant != baseline and (base := self.of(baseline)).any():
            ratios = means / np.maximum(self._means(baseline), 1e-9)
            retention = _estimate(scores.mean() / base.mean(), ratios)
        return Score(
            accuracy=_estimate(scores.mean(), means),
            retention=retention,
            kinds=self._kinds(scores),
            prefill_ms=float(np.median([row.answers[variant].prefill_ms for row in self.rows])),
        )

    def lead(self, variant: str, over: str) -> Estimate:
        """Accuracy of one variant minus another's."""
        value = self.of(variant).mean() - self.of(over).mean()
        return _estimate(value, self._means(variant) - self._means(over))

    def speedup(self, variant: str, over: str) -> float:
        """Median over the questions of the other's prefill time divided by this one's."""
        pairs = [(row.answers[over].prefill_ms, row.answers[variant].prefill_ms) for row in self.rows]
        return float(np.median([slow / fast for slow, fast in pairs]))

    def _means(self, variant: str) -> Floats:
        """Of the same resampled questions for every variant; one resample at a time: there may be many."""
        rng, scores = np.random.default_rng(self._seed), self.of(variant)
        size = len(scores)
        return np.array([scores[rng.integers(size, size=size)].mean() for _ in range(RESAMPLES)])

    def _kinds(self, scores: Floats) -> dict[str, float]:
        kinds = np.array([row.kind for row in self.rows])
        return {kind: float(scores[kinds == kind].mean()) for kind in dict.fromkeys(kinds.tolist())}


def _estimate(value: float, resampled: Floats) -> Estimate:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def kinds_table(scores: Mapping[str, Score]) -> str:
    """Overall and by kind of question, a column per variant; the retention stands in brackets.

    Args:
        scores: By variant; the baseline, if there is one, comes first.
    """
    names = list(scores)
    baseline = scores[names[0]]
    body = [["**all**", *(_all_cell(scores[name]) for name in names)]]
    for metric in baseline.metrics:
        values = {name: score.metrics[metric] for name, score in scores.items()}
        body.append([f"**{metric}**", *_cells(scores, values)])
    for kind in baseline.kinds:
        values = {name: 100 * score.kinds[kind] for name, score in scores.items()}
        body.append([kind, *_cells(scores, values)])
    return markdown(["", *names], body)


def _cells(scores: Mapping[str, Score], values: Mapping[str, float]) -> Iterator[str]:
    """A value per variant, with its share of the first one's where that is the baseline."""
    whole = next(iter(values.values()))
    for name, value in values.items():
        shown = scores[name].retention is not None and whole > 0
        yield f"{value:.1f}" + (f" ({100 * value / whole:.1f} %)" if shown else "")


def _all_cell(score: Score) -> str:
    cell = f"**{100 * score.accuracy.value:.1f}**"
    return cell if score.retention is None else f"{cell} ({100 * score.retention.value:.1f} %)"
