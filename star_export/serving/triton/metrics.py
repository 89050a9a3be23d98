"""A service's numbers on Triton's metrics endpoint."""

import threading
import time
from collections.abc import Callable
from typing import Any

import triton_python_backend_utils as pb  # only inside Triton

from star_export.serving.stats import METRICS, OUTCOMES, Stats

PERIOD = 0.5  # seconds


class Metrics:
    """Publishes a service's numbers every half second.

    Args:
        read: Gives the numbers of a moment.
        model: Label of all metrics.
    """

    def __init__(self, read: Callable[[], Stats], model: str) -> None:
        self._read, labels = read, {"model": model}
        self._families: list[Any] = []  # a family must outlive its metrics
        self._metrics = {name: self._metric(name, text, labels) for name, (text, _) in METRICS.items()}
        self._rate = self._metric("tokens_per_second", "Tokens generated in the last half second", labels)
        finished = self._family("requests_finished_total", "Requests that are done")
        self._finished = {o: finished.Metric(labels={**labels, "outcome": o}) for o in OUTCOMES}
        self._told = dict.fromkeys((*METRICS, *OUTCOMES), 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="star-export-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Publish the last numbers."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        last, then = self._read().tokens, time.monotonic()
        while not self._stop.wait(PERIOD):
            stats, now = self._read(), time.monotonic()
            self._publish(stats)
            self._rate.set((stats.tokens - last) / (now - then))
            last, then = stats.tokens, now
        self._publish(self._read())

    def _publish(self, stats: Stats) -> None:
        for name, (_, read) in METRICS.items():
            value = float(read(stats))
            if name.endswith("_total"):
                self._metrics[name].increment(value - self._told[name])
            else:
                self._metrics[name].set(value)
            self._told[name] = value
        for outcome, metric in self._finished.items():
            count = float(stats.finished[outcome])
            metric.increment(count - self._told[outcome])
            self._told[outcome] = count

    def _metric(self, name: str, description: str, labels: dict[str, str]) -> Any:
        return self._family(name, description).Metric(labels=labels)

    def _family(self, name: str, description: str) -> Any:
        kind = pb.MetricFamily.COUNTER if name.endswith("_total") else pb.MetricFamily.GAUGE
        self._families.append(pb.MetricFamily(name=f"star_{name}", description=description, kind=kind))
        return self._families[-1]
