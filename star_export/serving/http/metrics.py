"""A service's numbers in Prometheus' text format."""

from collections.abc import Iterator, Mapping
from itertools import accumulate

from star_export.serving.stats import BOUNDS_MS, HISTOGRAMS, METRICS, Histogram, Stats


def metrics_text(stats: Mapping[str, Stats]) -> str:
    """All metrics of all models, under the names that Triton has for them."""
    return "\n".join(_lines(stats)) + "\n"


def _lines(stats: Mapping[str, Stats]) -> Iterator[str]:
    for name, (text, read) in METRICS.items():
        yield from _head(name, text, "counter" if name.endswith("_total") else "gauge")
        for model, found in stats.items():
            yield f"star_{name}{{{_label(model)}}} {read(found):.17g}"
    for name, (text, times) in HISTOGRAMS.items():
        yield from _head(name, text, "histogram")
        for model, found in stats.items():
            yield from _buckets(name, _label(model), times(found))
    yield from _head("requests_finished_total", "Requests that are done", "counter")
    for model, found in stats.items():
        for outcome, count in found.finished.items():
            yield f'star_requests_finished_total{{{_label(model)},outcome="{outcome}"}} {count}'


def _buckets(name: str, label: str, times: Histogram) -> Iterator[str]:
    for bound, below in zip((*BOUNDS_MS, "+Inf"), accumulate(times.buckets), strict=True):
        yield f'star_{name}_bucket{{{label},le="{bound}"}} {below}'
    yield f"star_{name}_sum{{{label}}} {times.total:.17g}"
    yield f"star_{name}_count{{{label}}} {sum(times.buckets)}"


def _head(name: str, text: str, kind: str) -> Iterator[str]:
    yield f"# HELP star_{name} {text}"
    yield f"# TYPE star_{name} {kind}"


def _label(model: str) -> str:
    escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'model="{escaped}"'
