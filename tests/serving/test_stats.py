"""What is counted, and the numbers of a moment."""

from collections import Counter
from dataclasses import FrozenInstanceError, fields
from types import SimpleNamespace
from typing import cast

import pytest

from star_export.serving.stats import BOUNDS_MS, HISTOGRAMS, METRICS, Counts, Histogram, Stats
from star_export.serving.ticket import Ticket, Usage


def test_first_tokens_are_added_up() -> None:
    counts = Counts(slots=3)
    for queue, ttft in ((1000.0, 4000.0), (2000.0, 8000.0)):
        progress = SimpleNamespace(timings={"queue": queue, "vision": 1.0, "ttft": ttft})
        begun = SimpleNamespace(progress=progress, usage=Usage(10, 9, 8, 7, 300, 1000))
        counts.began(cast(Ticket, begun))
    assert (counts.slots, counts.first_tokens, counts.queue_ms, counts.ttft_ms) == (3, 2, 3000.0, 12000.0)
    assert counts.kv_bytes_saved == 2 * 700
    assert Counts(slots=1).finished is not counts.finished


def test_a_snapshot_stays_as_it_is() -> None:
    counts = Counts(
        slots=4, running=3, waiting=1, kv_bytes=512, accepted=11, finished=Counter(stop=5), tokens=123,
        kv_bytes_saved=4096, queue_ms=7.5, ttft_ms=80.25, first_tokens=9,
    )  # fmt: skip
    counts.ttft.count(3.0)
    stats = counts.snapshot(present=6, refused=2, feature_hits=8, feature_misses=5, feature_bytes=2048)
    counts.tokens, counts.finished["error"] = 124, 1
    counts.ttft.count(3.0)
    assert stats == Stats(
        slots=4, present=6, running=3, waiting=1, kv_bytes=512, accepted=11, refused=2,
        finished={"stop": 5, "length": 0, "cancelled": 0, "error": 0}, tokens=123, kv_bytes_saved=4096,
        queue_ms=7.5, ttft_ms=80.25, first_tokens=9, feature_hits=8, feature_misses=5, feature_bytes=2048,
        ttft=Histogram([0, 0, 1] + [0] * (len(BOUNDS_MS) - 2), 3.0), between_tokens=Histogram(),
    )  # fmt: skip
    with pytest.raises(FrozenInstanceError):
        stats.tokens = 5  # type: ignore[misc]


def test_every_number_has_a_metric_of_its_own() -> None:
    """``finished`` aside, which has one for each outcome."""
    names = [field.name for field in fields(Stats) if field.name != "finished"]
    one = Stats(**{name: number for number, name in enumerate(names)}, finished={})  # type: ignore[arg-type]
    every = [*METRICS.values(), *HISTOGRAMS.values()]
    assert sorted(read(one) for _, read in every) == list(range(len(names)))


def test_times_fall_into_the_first_bucket_that_holds_them() -> None:
    times = Histogram()
    for found in (0.0, BOUNDS_MS[0], BOUNDS_MS[0] + 0.1, BOUNDS_MS[-1], BOUNDS_MS[-1] + 0.1):
        times.count(found)
    assert (times.buckets[:3], times.buckets[-2:]) == ([2, 1, 0], [1, 1])
    assert times.total == 2 * BOUNDS_MS[0] + 2 * BOUNDS_MS[-1] + 0.2
