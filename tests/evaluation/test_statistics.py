"""Accuracies, retention and intervals against numbers worked out by hand."""

import numpy as np
import pytest

from star_export.evaluation.record import Row, ScoredAnswer
from star_export.evaluation.statistics import ScoreTable, kinds_table, markdown


def rows(**scores: list[float]) -> list[Row]:
    """Rows of alternating kinds; ``full`` takes 10 ms, the others 4."""
    found = []
    for index, values in enumerate(zip(*scores.values(), strict=True)):
        pairs = zip(scores, values, strict=True)
        answers = {name: ScoredAnswer("", score, 10.0 if name == "full" else 4.0) for name, score in pairs}
        found.append(Row(index, "ab"[index % 2], "?", "!", answers))
    return found


def test_accuracy_retention_and_lead() -> None:
    found = ScoreTable(rows(full=[1, 1, 1, 0] * 50, star=[1, 1, 0, 0] * 50))
    score = found.score("star", baseline="full")
    assert score.accuracy.value == 0.5
    assert score.retention is not None
    assert score.retention.value == pytest.approx(2 / 3)
    assert score.kinds == {"a": 0.5, "b": 0.5}
    assert found.lead("star", "full").value == -0.25
    assert found.speedup("star", "full") == 2.5
    assert found.score("full", baseline="full").retention is None


def test_intervals_are_those_of_a_mean() -> None:
    rng = np.random.default_rng(1)
    answers = (rng.random(400) < 0.8).astype(float).tolist()
    estimate = ScoreTable(rows(star=answers)).score("star").accuracy
    error = 1.96 * (0.8 * 0.2 / 400) ** 0.5
    assert estimate.high - estimate.low == pytest.approx(2 * error, rel=0.15)
    assert estimate.low < estimate.value < estimate.high


def test_intervals_of_a_difference_are_paired() -> None:
    rng = np.random.default_rng(2)
    first = (rng.random(300) < 0.6).astype(float)
    second = first.copy()
    second[:3] = 1 - second[:3]
    lead = ScoreTable(rows(star=first.tolist(), other=second.tolist())).lead("star", "other")
    # Unpaired, the interval would be wider than 0.15.
    assert lead.high - lead.low < 0.03


def test_a_baseline_that_is_never_right_gives_no_retention() -> None:
    assert ScoreTable(rows(full=[0, 0], star=[1, 0])).score("star", baseline="full").retention is None


def test_tables() -> None:
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    found = ScoreTable(rows(full=[1, 1, 1, 0], star=[1, 1, 0, 0]))
    table = kinds_table(
        {"full": found.score("full", baseline="full"), "star": found.score("star", baseline="full")}
    )
    assert table.splitlines()[2:] == [
        "| **all** | **75.0** | **50.0** (66.7 %) |",
        "| a | 100.0 | 50.0 (50.0 %) |",
        "| b | 50.0 | 50.0 (100.0 %) |",
    ]
