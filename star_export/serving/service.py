"""What every front door shares: who may come in, what may be asked, how long it may take."""

import os
import threading
from collections.abc import Callable
from typing import Any

from star_export.answer.pipeline import Pipeline
from star_export.answer.request import Request
from star_export.answer.sampling import Sampling
from star_export.errors import DeviceError
from star_export.serving.admission import Place
from star_export.serving.card import Card
from star_export.serving.options import ServiceOptions
from star_export.serving.query import Query, image_bytes
from star_export.serving.scheduler import Scheduler
from star_export.serving.shown import shown
from star_export.serving.stats import Stats
from star_export.serving.ticket import Ticket, Updates
from star_export.serving.warmup import warm_up


class Service:
    """A loaded bundle that answers many clients; any thread may ask.

    A request has a place from its arrival to its end. There are as many as slots and places in the
    queue together, so that what pictures take while they are decoded is bounded too. When the
    constructor returns, all graphs have run at all sizes.

    Args:
        pipeline: A loaded bundle, used by nobody else meanwhile.
        options: How much it takes on.
        on_lost: Told when the GPU is lost: every request has failed then, and none is accepted.

    Raises:
        SettingsError: If the bundle's longest sequence does not fit into the KV caches.
        StarExportError: If the bundle cannot answer.

    Example:
        >>> with Service(star_export.load("bundle"), ServiceOptions(max_slots=8)) as service:
        ...     with service.submit(Query(image=picture, prompt="What is this?")) as ticket:
        ...         for piece in ticket:
        ...             print(piece, end="", flush=True)
    """

    def __init__(
        self,
        pipeline: Pipeline,
        options: ServiceOptions | None = None,
        *,
        on_lost: Callable[[DeviceError], None] = lambda _error: None,
    ) -> None:
        self.pipeline, self.options = pipeline, options or ServiceOptions()
        self.card = Card.of(pipeline.spec)
        self._scheduler = Scheduler(
            pipeline,
            slots=self.options.max_slots,
            kv_bytes=self.options.kv_cache_mib << 20,
            queue=self.options.queue,
            feature_bytes=self.options.feature_cache_mib << 20,
            prefix_bytes=self.options.prefix_cache_mib << 20,
            on_lost=on_lost,
        )
        self._preparing = threading.Semaphore(os.cpu_count() or 1)  # decoded pictures are large
        warm_up(self._scheduler)

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def open(self) -> bool:
        """Whether it lets requests in; not when it closes, nor when the GPU is lost."""
        return not self._scheduler.admission.closed

    @property
    def places(self) -> int:
        """Requests that may be present at once."""
        return self._scheduler.admission.limit

    def ready(self) -> bool:
        """Whether it would answer: as long as it is open."""
        return self.open

    def enter(self) -> Place:
        """Let a request in before it is read; never waits.

        Raises:
            BusyError: If the service is full or closing.
        """
        return self._scheduler.admission.enter()

    def submit(self, query: Query, place: Place | None = None, *, show: bool = False) -> Ticket:  # noqa: ARG002
        """Check a request, decode its pictures and queue it; waits while others are prepared.

        Args:
            query: What is asked.
            place: From :meth:`enter`, where the request came in before it was read; it is given back
                when this fails, or else when the ticket is done.
            show: Whether :meth:`shown` will be asked; here it always may.

        Raises:
            InputError: If a picture, the prompt, the schema or the time-out cannot be used.
            SettingsError: If a number is out of range.
            BusyError: If the service is full or closing.
            PlatformError: If a schema is given and llguidance is not installed.
        """
        with place or self.enter() as place:
            timeout = query.timeout(self.options.timeout_s)
            with self._preparing:
                request = self._prepare(query)
            return self._scheduler.submit(request, timeout=timeout, place=place)

    def shown(self, ticket: Updates) -> dict[str, Any]:
        """What a page draws of an answer; see :func:`star_export.serving.shown.shown`."""
        assert isinstance(ticket, Ticket)
        return shown(ticket, self.pipeline)

    def stats(self) -> Stats:
        """The numbers of this moment."""
        return self._scheduler.snapshot()

    def drain(self) -> None:
        """Let nobody in any more; never waits."""
        self._scheduler.admission.close()

    def close(self) -> None:
        """Let nobody in any more and finish what is here, for at most as long as a request may take."""
        self.drain()
        self._scheduler.admission.wait_until_empty(self.options.timeout_s)
        self._scheduler.close()

    def _prepare(self, query: Query) -> Request:
        return self.pipeline.request(
            [image_bytes(image) for image in query.images],
            query.prompt,
            keep=query.keep,
            max_new_tokens=query.max_new_tokens,
            sampling=Sampling(
                temperature=query.temperature,
                top_p=query.top_p,
                seed=query.seed,
                top_logprobs=query.top_logprobs,
            ),
            stop=query.stop,
            reprune=query.reprune,
            schema=query.schema,
        )
