"""A scheduler's numbers on Triton's metrics endpoint."""

import threading
import time
from collections.abc import Callable
from typing import Any

import triton_python_backend_utils as pb  # only inside Triton

from star_export.serving.scheduler import Scheduler
from star_export.serving.ticket import Stats

PERIOD = 0.5  # seconds
OUTCOMES = ("stop", "length", "cancelled", "error")

#: Name after ``star_``, what it is, and its value. Counters end in ``_total``.
FAMILIES: dict[str, tuple[str, Callable[[Stats], float]]] = {
    "requests_accepted_total": ("Requests that were queued", lambda s: s.accepted),
    "requests_refused_total": ("Requests that found the queue full", lambda s: s.refused),
    "queue_ms_total": ("Milliseconds that requests waited for a slot", lambda s: s.queue_ms),
    "ttft_ms_total": ("Milliseconds from a request to its first token", lambda s: s.ttft_ms),
    "first_tokens_total": ("Requests that had a first token", lambda s: s.first_tokens),
    "tokens_total": ("Tokens generated", lambda s: s.tokens),
    "kv_bytes_saved_total": ("KV cache bytes that pruning spared prompts", lambda s: s.kv_bytes_saved),
    "kv_bytes": ("KV cache bytes in use", lambda s: s.kv_bytes),
    "slots": ("Sequences that can run at once", lambda s: s.slots),
    "slots_in_use": ("Sequences that are running", lambda s: s.running),
    "requests_waiting": ("Requests in the queue", lambda s: s.waiting),
}


class Metrics:
    """Publishes a scheduler's :class:`~star_export.serving.ticket.Stats` every half second.

    Args:
        scheduler: Whose.
        model: Label of all metrics.
    """

    def __init__(self, scheduler: Scheduler, model: str) -> None:
        self._stats, labels = scheduler.stats, {"model": model}
        self._families: list[Any] = []  # a family must outlive its metrics
        self._metrics = {name: self._metric(name, text, labels) for name, (text, _) in FAMILIES.items()}
        self._rate = self._metric("tokens_per_second", "Tokens generated in the last half second", labels)
        finished = self._family("requests_finished_total", "Requests that are done")
        self._finished = {o: finished.Metric(labels={**labels, "outcome": o}) for o in OUTCOMES}
        self._told = dict.fromkeys((*FAMILIES, *OUTCOMES), 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="star-export-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Publish the last numbers."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        last, then = self._stats.tokens, time.monotonic()
        while not self._stop.wait(PERIOD):
            self._publish(self._stats)
            now, tokens = time.monotonic(), self._stats.tokens
            self._rate.set((tokens - last) / (now - then))
            last, then = tokens, now
        self._publish(self._stats)

    def _publish(self, stats: Stats) -> None:
        for name, (_, read) in FAMILIES.items():
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
