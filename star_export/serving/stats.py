"""What a service has done and is doing, as plain numbers, and how its front doors call them."""

import copy
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from star_export.serving.admission import Admission
from star_export.serving.bounded import BoundedCache
from star_export.serving.ticket import Ticket

#: A token of a small model on a GPU, and a first token after a full queue.
BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 30000, 60000)

OUTCOMES = ("stop", "length", "cancelled", "error")


@dataclass
class Histogram:
    """How often a time fell between which of :data:`BOUNDS_MS`.

    Attributes:
        buckets: Times up to each bound and above the one before it; last, those above all.
        total: Milliseconds of all of them.
    """

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_MS) + 1))
    total: float = 0.0

    def count(self, milliseconds: float) -> None:
        """One more time."""
        self.buckets[bisect_left(BOUNDS_MS, milliseconds)] += 1
        self.total += milliseconds


@dataclass(frozen=True, kw_only=True)
class RequestStats:
    """What became of requests until one moment, wherever they are answered.

    Attributes:
        present: Requests between their arrival and their end, those that are being prepared among them.
        accepted: Requests that were queued.
        refused: Requests that found no place.
        finished: Requests that are done, by outcome; each of :data:`OUTCOMES` is there.
        tokens: Tokens that were generated.
        kv_bytes_saved: Bytes of KV cache that pruning spared the prompts of all requests.
        queue_ms: Milliseconds that requests waited, all together.
        ttft_ms: Milliseconds to their first tokens, all together.
        first_tokens: Requests that had a first token.
        ttft: Milliseconds from requests to their first tokens.
        between_tokens: Milliseconds from a token to the next one of its request.
    """

    present: int
    accepted: int
    refused: int
    finished: Mapping[str, int]
    tokens: int
    kv_bytes_saved: int
    queue_ms: float
    ttft_ms: float
    first_tokens: int
    ttft: Histogram
    between_tokens: Histogram


@dataclass(frozen=True, kw_only=True)
class Stats(RequestStats):
    """The numbers of a service at one moment; what is no state is counted since it began.

    Attributes:
        slots: Sequences as long as the longest of those that run that can run at once.
        running: Slots in use.
        waiting: Requests in the queue.
        kv_bytes: Bytes of KV cache that the running sequences fill.
        feature_hits: Pictures whose features were held.
        feature_misses: Pictures that went through the vision graph.
        feature_bytes: Bytes of features that are held.
        prefix_hits: Questions that went on from KV caches of an earlier answer.
        prefix_misses: Questions that would have, but their conversation was not held.
        prefix_bytes: Bytes of such KV caches, in host memory.
    """

    slots: int
    running: int
    waiting: int
    kv_bytes: int
    feature_hits: int
    feature_misses: int
    feature_bytes: int
    prefix_hits: int
    prefix_misses: int
    prefix_bytes: int


#: Name after ``star_``, what it is, and its value. Counters end in ``_total``; ``finished`` has labels.
REQUEST_METRICS: dict[str, tuple[str, Callable[[RequestStats], float]]] = {
    "requests_accepted_total": ("Requests that were queued", lambda s: s.accepted),
    "requests_refused_total": ("Requests that found no place", lambda s: s.refused),
    "queue_ms_total": ("Milliseconds that requests waited for a slot", lambda s: s.queue_ms),
    "ttft_ms_total": ("Milliseconds from a request to its first token", lambda s: s.ttft_ms),
    "first_tokens_total": ("Requests that had a first token", lambda s: s.first_tokens),
    "tokens_total": ("Tokens generated", lambda s: s.tokens),
    "kv_bytes_saved_total": ("KV cache bytes that pruning spared prompts", lambda s: s.kv_bytes_saved),
    "requests_present": ("Requests between their arrival and their end", lambda s: s.present),
}

#: The same of what only who runs the graphs knows.
SERVICE_METRICS: dict[str, tuple[str, Callable[[Stats], float]]] = {
    "feature_cache_hits_total": ("Pictures whose features were held", lambda s: s.feature_hits),
    "feature_cache_misses_total": ("Pictures that went through the vision graph", lambda s: s.feature_misses),
    "feature_cache_bytes": ("Bytes of features held", lambda s: s.feature_bytes),
    "prefix_cache_hits_total": ("Questions that went on from held KV caches", lambda s: s.prefix_hits),
    "prefix_cache_misses_total": ("Questions whose conversation was not held", lambda s: s.prefix_misses),
    "prefix_cache_bytes": ("KV cache bytes of conversations held", lambda s: s.prefix_bytes),
    "kv_bytes": ("KV cache bytes in use", lambda s: s.kv_bytes),
    "slots": ("Sequences of the present length that can run at once", lambda s: s.slots),
    "slots_in_use": ("Sequences that are running", lambda s: s.running),
    "requests_waiting": ("Requests in the queue", lambda s: s.waiting),
}

METRICS: dict[str, tuple[str, Callable[[Stats], float]]] = {**REQUEST_METRICS, **SERVICE_METRICS}

#: The same of times, for front doors that have histograms.
HISTOGRAMS: dict[str, tuple[str, Callable[[RequestStats], Histogram]]] = {
    "ttft_ms": ("Milliseconds from a request to its first token", lambda s: s.ttft),
    "between_tokens_ms": ("Milliseconds from a token to the next one", lambda s: s.between_tokens),
}


@dataclass
class RequestCounts:
    """What is counted of requests as they go, for :class:`RequestStats`, which explains each."""

    accepted: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    kv_bytes_saved: int = 0
    queue_ms: float = 0.0
    ttft_ms: float = 0.0
    first_tokens: int = 0
    ttft: Histogram = field(default_factory=Histogram)
    between_tokens: Histogram = field(default_factory=Histogram)

    def request_stats(self, admission: Admission) -> RequestStats:
        """The numbers of this moment; any thread may ask."""
        return RequestStats(
            **{name.name: self._copied(name.name) for name in fields(RequestCounts)},
            present=admission.present,
            refused=admission.refused,
        )

    def _copied(self, name: str) -> Any:
        if name == "finished":
            return {outcome: self.finished[outcome] for outcome in OUTCOMES}
        return copy.deepcopy(getattr(self, name))


@dataclass(kw_only=True)
class Counts(RequestCounts):
    """The same of a scheduler, for :class:`Stats`."""

    slots: int
    running: int = 0
    waiting: int = 0
    kv_bytes: int = 0

    def began(self, ticket: Ticket) -> None:
        """A request has its first token."""
        assert ticket.usage is not None
        self.first_tokens += 1
        self.queue_ms += ticket.progress.timings["queue"]
        self.ttft_ms += ticket.progress.timings["ttft"]
        self.ttft.count(ticket.progress.timings["ttft"])
        self.kv_bytes_saved += ticket.usage.kv_bytes_unpruned - ticket.usage.kv_bytes

    def snapshot(
        self, admission: Admission, *, features: BoundedCache[Any, Any], prefixes: BoundedCache[Any, Any]
    ) -> Stats:
        """The numbers of this moment, with those of the admission and of what is held; any thread may ask."""
        return Stats(
            **vars(self.request_stats(admission)),
            slots=self.slots,
            running=self.running,
            waiting=self.waiting,
            kv_bytes=self.kv_bytes,
            feature_hits=features.hits,
            feature_misses=features.misses,
            feature_bytes=features.bytes,
            prefix_hits=prefixes.hits,
            prefix_misses=prefixes.misses,
            prefix_bytes=prefixes.bytes,
        )
