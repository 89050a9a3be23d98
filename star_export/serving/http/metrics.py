"""A service's numbers in Prometheus' text format."""

from collections.abc import Iterator, Mapping
from itertools import accumulate

from star_export.serving.stats import (
    BOUNDS_MS,
    HISTOGRAMS,
    REQUEST_METRICS,
    SERVICE_METRICS,
    Histogram,
    RequestStats,
    Stats,
)


def metrics_text(stats: Mapping[str, RequestStats]) -> str:
    """All metrics of all models, under the names that Triton has for them."""
    return "\n".join(_lines(stats)) + "\n"


def _lines(stats: Mapping[str, RequestStats]) -> Iterator[str]:
    for name, (text, tell) in REQUEST_METRICS.items():
        yield from _values(name, text, {model: tell(found) for model, found in stats.items()})
    own = {model: found for model, found in stats.items() if isinstance(found, Stats)}
    for name, (text, read) in SERVICE_METRICS.items() if own else ():
        yield from _values(name, text, {model: read(found) for model, found in own.items()})
    for name, (text, times) in HISTOGRAMS.items():
        yield from _head(name, text, "histogram")
        for model, found in stats.items():
            yield from _buckets(name, _label(model), times(found))
    yield from _head("requests_finished_total", "Requests that are done", "counter")
    for model, found in stats.items():
        for outcome, count in found.finished.items():
            yield f'star_requests_finished_total{{{_label(model)},outcome="{outcome}"}} {count}'


def _values(name: str, text: str, values: Mapping[str, float]) -> Iterator[str]:
    yield from _head(name, text, "counter" if name.endswith("_total") else "gauge")
    for model, value in values.items():
        yield f"star_{name}{{{_label(model)}}} {value:.17g}"


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
