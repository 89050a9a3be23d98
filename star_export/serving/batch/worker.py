"""What answers rows in one process."""

import threading
from concurrent.futures import CancelledError
from typing import Protocol

from star_export.answer.pipeline import Pipeline
from star_export.bundle import Bundle
from star_export.engines import Runtime, open_session
from star_export.serving.batch.options import BatchOptions
from star_export.serving.batch.outcome import Refusal
from star_export.serving.options import ServiceOptions
from star_export.serving.query import Query
from star_export.serving.service import Service
from star_export.serving.ticket import Answer

#: Seconds between two looks at whether the job ends.
_LOOK_EVERY = 0.2


class Answerer(Protocol):
    """Answers queries, one for each thread that asks.

    Attributes:
        concurrency: Threads that are to ask.
    """

    concurrency: int

    def answer(self, query: Query) -> Answer | Refusal:
        """The answer; waits for it.

        Raises:
            StarExportError: If no further query can be answered.
            CancelledError: If :meth:`stop` was called.
        """

    def stop(self) -> None:
        """Let everything go that is being answered."""

    def close(self) -> None:
        """Give back what it holds."""


class Worker:
    """An :class:`Answerer` in this process.

    Args:
        bundle: The bundle.
        runtime: How it runs.
        options: The job.

    Raises:
        StarExportError: If the bundle cannot answer.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime, options: BatchOptions) -> None:
        self.concurrency = options.concurrency
        self._stopping = threading.Event()
        self._pipeline = Pipeline(bundle, open_session(bundle, runtime))
        limits = ServiceOptions(
            max_slots=options.max_slots,
            kv_cache_mib=options.kv_cache_mib,
            feature_cache_mib=options.feature_cache_mib,
            prefix_cache_mib=options.prefix_cache_mib,
            queue=options.concurrency,  # where fewer slots have room, all who ask have
            timeout_s=threading.TIMEOUT_MAX,  # nobody waits for a row
        )
        self._service = Service(self._pipeline, limits)

    def answer(self, query: Query) -> Answer | Refusal:
        """The answer; see :class:`Answerer`."""
        try:
            with self._service.submit(query) as ticket:
                while not isinstance(update := ticket.next(_LOOK_EVERY), Answer):
                    if self._stopping.is_set():
                        ticket.cancel()
        except Exception as error:
            return Refusal.of(error)
        if update.finish_reason == "cancelled":
            raise CancelledError
        return update

    def stop(self) -> None:
        """Let everything go that is being answered."""
        self._stopping.set()

    def close(self) -> None:
        """Free the caches and the session."""
        self._service.close()
        self._pipeline.close()
