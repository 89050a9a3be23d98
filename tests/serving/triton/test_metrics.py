"""The numbers on the metrics endpoint."""

import time
from dataclasses import replace

import pytest

from star_export.serving.stats import Histogram, Stats
from tests.serving.triton import fake_triton
from tests.serving.triton.fake_triton import MetricFamily

fake_triton.install()
from star_export.serving.triton import metrics  # noqa: E402

#: What the endpoint shows of ``some_stats``: kind and value.
SHOWN = {
    "star_requests_accepted_total": ("counter", 11.0),
    "star_requests_refused_total": ("counter", 2.0),
    "star_queue_ms_total": ("counter", 7.5),
    "star_ttft_ms_total": ("counter", 80.25),
    "star_first_tokens_total": ("counter", 9.0),
    "star_tokens_total": ("counter", 123.0),
    "star_kv_bytes_saved_total": ("counter", 4096.0),
    "star_kv_bytes": ("gauge", 512.0),
    "star_slots": ("gauge", 4.0),
    "star_slots_in_use": ("gauge", 3.0),
    "star_requests_present": ("gauge", 6.0),
    "star_requests_waiting": ("gauge", 1.0),
    "star_feature_cache_hits_total": ("counter", 8.0),
    "star_feature_cache_misses_total": ("counter", 5.0),
    "star_feature_cache_bytes": ("gauge", 2048.0),
}
OUTCOMES = {"stop": 5, "length": 1, "cancelled": 2, "error": 3}


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> dict[str, MetricFamily]:
    monkeypatch.setattr(MetricFamily, "families", {})
    return MetricFamily.families


STATS = Stats(
    slots=4,
    present=6,
    running=3,
    waiting=1,
    kv_bytes=512,
    accepted=11,
    refused=2,
    finished=OUTCOMES,
    tokens=123,
    kv_bytes_saved=4096,
    queue_ms=7.5,
    ttft_ms=80.25,
    first_tokens=9,
    feature_hits=8,
    feature_misses=5,
    feature_bytes=2048,
    ttft=Histogram(),
    between_tokens=Histogram(),
)


class Source:
    """Numbers that change."""

    def __init__(self) -> None:
        self.stats = STATS

    def __call__(self) -> Stats:
        return self.stats


def values(families: dict[str, MetricFamily]) -> dict[str, tuple[str, float]]:
    return {name: (f.kind, f.metrics[0].value) for name, f in families.items() if len(f.metrics) == 1}


def test_every_number_has_its_metric(families) -> None:
    metrics.Metrics(Source(), "star_llava").close()
    found = values(families)
    assert found.pop("star_tokens_per_second") == ("gauge", 0.0)
    assert found == SHOWN
    finished = families["star_requests_finished_total"]
    assert finished.kind == "counter"
    assert {m.labels["outcome"]: m.value for m in finished.metrics} == OUTCOMES
    every = [metric for family in families.values() for metric in family.metrics]
    assert {metric.labels["model"] for metric in every} == {"star_llava"}
    assert all(family.description for family in families.values())


def test_counters_grow_by_what_happened_and_gauges_follow(families, monkeypatch) -> None:
    monkeypatch.setattr(metrics, "PERIOD", 0.02)
    source = Source()
    published = metrics.Metrics(source, "star_llava")
    wait_for(families, "star_tokens_total", 123.0)
    source.stats = replace(STATS, tokens=125, kv_bytes=256, running=0, finished=OUTCOMES | {"stop": 6})
    wait_for(families, "star_tokens_total", 125.0)
    published.close()
    assert values(families)["star_kv_bytes"] == ("gauge", 256.0)
    assert values(families)["star_slots_in_use"] == ("gauge", 0.0)
    finished = families["star_requests_finished_total"].metrics
    assert {m.labels["outcome"]: m.value for m in finished} == OUTCOMES | {"stop": 6.0}


def test_tokens_per_second_are_those_of_the_last_period(families, monkeypatch) -> None:
    monkeypatch.setattr(metrics, "PERIOD", 0.2)
    source = Source()
    published = metrics.Metrics(source, "star_llava")
    time.sleep(0.05)
    source.stats = replace(STATS, tokens=1123)
    wait_for(families, "star_tokens_total", 1123.0)
    time.sleep(0.4)
    published.close()
    (rate,) = {rate for rate in families["star_tokens_per_second"].metrics[0].history if rate}
    assert 1000 / 2 < rate <= 1000 / 0.2


def wait_for(families: dict[str, MetricFamily], name: str, value: float) -> None:
    deadline = time.monotonic() + 10
    while values(families)[name][1] != value:
        assert time.monotonic() < deadline, values(families)[name]
        time.sleep(0.005)
