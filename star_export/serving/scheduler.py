"""In-flight batching: requests join and leave a running decode batch at every step.

Between two decode steps at most one piece of work is done for a new request: one of its pictures goes
through the vision graph, or its prompt through prefill. Each sequence lives in a slot, one row of
KV caches that are allocated once; as many slots as fit into the given bytes, so a pruned bundle
has more. Nothing here knows of a server: any front door can submit requests from any thread.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np

from star_export.answer.choosing import NOT_FINITE, next_tokens
from star_export.answer.pipeline import Pipeline
from star_export.answer.request import Request
from star_export.answer.steps import VisionOutput
from star_export.engines.session import Caches, DeviceArray
from star_export.errors import (
    BusyError,
    DeadlineError,
    DeviceError,
    NonFiniteError,
    SettingsError,
    StarExportError,
    option,
)
from star_export.preprocessing import PreparedImage
from star_export.serving.admission import CLOSING, Admission, Place
from star_export.serving.features import FeatureCache
from star_export.serving.stats import Counts
from star_export.serving.ticket import Ticket, Usage
from star_export.specs import Keep

log = logging.getLogger("star_export.scheduler")


def count_slots(pipeline: Pipeline, kv_bytes: int, *, most: int) -> int:
    """Slots whose KV caches fit into ``kv_bytes``, at most ``most``, and what the session can decode at once.

    Raises:
        SettingsError: If not even one fits.
    """
    size = pipeline.spec.slot_bytes
    if kv_bytes < size:
        raise SettingsError(
            f"the KV caches of one sequence take {size} bytes, {kv_bytes} are allowed; allow more, "
            f"or build the bundle with a smaller {option('max_text_tokens')} or {option('max_new_tokens')}"
        )
    return min(kv_bytes // size, pipeline.session.max_batch or most, most)


class Scheduler:
    """Runs many requests on one pipeline, in a thread of its own.

    Decode has run at every batch size when the constructor returns.

    Args:
        pipeline: A loaded bundle, used by nobody else meanwhile.
        slots: Sequences that are decoded at once.
        queue: Requests that may wait for a slot; as many as slots and these may be present at once.
        feature_bytes: Memory for the features of pictures seen before.
        on_lost: Told when the GPU is lost: every request has failed then, and none is accepted.

    Example:
        >>> with Scheduler(pipeline, slots=8) as scheduler:
        ...     ticket = scheduler.submit(pipeline.request("dog.png", "What is this?"))
        ...     print("".join(ticket))
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        slots: int,
        queue: int = 64,
        feature_bytes: int = 256 << 20,
        on_lost: Callable[[DeviceError], None] = lambda _error: None,
    ) -> None:
        self.pipeline, self.slots = pipeline, slots
        self.stats, self.admission = Counts(slots=slots), Admission(slots + queue)
        self._on_lost = on_lost
        self._features = FeatureCache(feature_bytes)
        self._slots = _Slots(pipeline.session.allocate_caches(slots), slots)
        for caches, rows in self._slots.batches():
            lengths = np.zeros((len(pipeline.spec.groups), rows), np.int64)
            pipeline.steps.decode_batch(caches, lengths[0], lengths)
        self._waiting: deque[Ticket] = deque()
        self._arriving: tuple[Ticket, list[VisionOutput]] | None = None
        self._running: dict[int, Ticket] = {}  # by slot
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="star-export-scheduler", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Scheduler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warm_up(self, request: Request) -> None:
        """Run vision, and prefill in every slot; only before anything was submitted."""
        visions = [self._see(image, request.keep) for image in request.images]
        for slot in range(self.slots):
            self.pipeline.steps.prefill(
                request.tokens, *visions, keep=request.keep, caches=self._slots.clean(slot)
            )
        self.pipeline.session.synchronize()

    def submit(self, request: Request, *, timeout: float | None = None, place: Place | None = None) -> Ticket:
        """Queue a request.

        Args:
            request: From :meth:`star_export.answer.pipeline.Pipeline.request` of this pipeline.
            timeout: Seconds that it may take since it arrived, waiting included.
            place: From ``admission``, where the request arrived earlier; it is given back when this fails.

        Raises:
            BusyError: If there is no place or the scheduler is closing.
        """
        with place or self.admission.enter() as place:
            ticket = Ticket(request, self.pipeline.transcript(request), timeout=timeout, place=place)
            with self._changed:
                if self._closing:
                    raise BusyError(CLOSING)
                place.held = True
                self.stats.accepted += 1
                self._waiting.append(ticket)
                self._changed.notify()
        return ticket

    def close(self) -> None:
        """Accept nothing more, finish what was accepted, end the thread."""
        self.admission.close()
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._wait():
            self._leave()
            self._admit()
            if self._running:
                self._guard(self._step, *self._running.values())
            self._account()

    def _wait(self) -> bool:
        """Sleep while there is nothing to do; False when there never will be."""
        with self._changed:
            while not (self._waiting or self._running or self._arriving):
                if self._closing:
                    return False
                self._changed.wait()
            return True

    def _guard(self, work: Callable[[], None], *concerned: Ticket) -> None:
        """Do some work; if it fails, so do the requests that it was for, and no others.

        Their slots may hold anything then.
        """
        try:
            work()
        except Exception as error:  # a library may raise anything, and the others must go on
            if not isinstance(error, StarExportError):
                log.exception("a request failed")
            for ticket in concerned:
                self._slots.spoil(ticket.slot)
                self._fail(ticket, error)
            if isinstance(error, DeviceError):
                self._give_up(error)

    def _give_up(self, error: DeviceError) -> None:
        """Nothing will run any more: fail every request, accept no others."""
        self.admission.close()
        with self._changed:
            self._closing = True
            everyone = [*self._waiting, *self._running.values()]
            self._waiting.clear()
        if self._arriving:
            everyone.append(self._arriving[0])
        for ticket in everyone:
            self._fail(ticket, error)
        self._on_lost(error)

    def _leave(self) -> None:
        """Let go of requests that were cancelled or took too long."""
        with self._changed:
            gone = [ticket for ticket in self._waiting if ticket.over]
            for ticket in gone:
                self._waiting.remove(ticket)
        gone += [ticket for ticket in self._running.values() if ticket.over]
        if self._arriving and self._arriving[0].over:
            gone.append(self._arriving[0])
        for ticket in gone:
            if ticket.cancelled:
                self._guard(partial(self._end, ticket, "cancelled"), ticket)
            else:
                self._fail(ticket, DeadlineError(f"the request took longer than {ticket.timeout:g} s"))

    def _admit(self) -> None:
        """One piece of work for the next request, if a slot is free for it."""
        slot = self._slots.lowest_free(self._running)
        if slot is None:
            return
        if self._arriving is None:
            with self._changed:
                upcoming = self._waiting.popleft() if self._waiting else None
            if upcoming is None:
                return
            upcoming.progress.reach("queue")
            self._arriving = upcoming, []
        ticket, seen = self._arriving
        if len(seen) < len(ticket.request.images):
            self._guard(partial(self._look, ticket, seen), ticket)
            return
        self._guard(partial(self._prefill, ticket, seen, slot), ticket)
        self._arriving = None

    def _look(self, ticket: Ticket, seen: list[VisionOutput]) -> None:
        """Features of the next picture, from the vision graph or from memory."""
        image, keep = ticket.request.images[len(seen)], ticket.request.keep
        (tokens,) = self.pipeline.entering([image], keep)
        seen.append(self._features.get((image.key, tokens), partial(self._see, image, keep)))
        if len(seen) == len(ticket.request.images):
            ticket.progress.reach("vision")

    def _see(self, image: PreparedImage, keep: Keep | None) -> VisionOutput:
        return self.pipeline.steps.encode_image(image, keep=keep).copied(self.pipeline.spec.dtype)

    def _prefill(self, ticket: Ticket, visions: list[VisionOutput], slot: int) -> None:
        """Fill a slot and find the first token; the sequence runs from here on."""
        request, ticket.slot = ticket.request, slot
        state = self.pipeline.steps.prefill(
            request.tokens, *visions, keep=request.keep, caches=self._slots.clean(slot)
        )
        ticket.usage = Usage.of(self.pipeline.spec, request, state.lengths.tolist())
        ticket.lengths = state.lengths
        self._running[slot] = ticket
        self._choose({0: ticket}, state.output)

    def _step(self) -> None:
        """One token more for every running sequence."""
        caches, rows = self._slots.batch(max(self._running) + 1)
        tokens = np.zeros(rows, np.int64)
        lengths = np.zeros((len(self.pipeline.spec.groups), rows), np.int64)
        for slot, ticket in self._running.items():
            tokens[slot], lengths[:, slot] = ticket.transcript.token_ids[-1], ticket.lengths
        logits = self.pipeline.steps.decode_batch(caches, tokens, lengths)
        for ticket in self._running.values():
            ticket.lengths = ticket.lengths + 1
        self._choose(dict(self._running), logits)

    def _choose(self, tickets: Mapping[int, Ticket], logits: DeviceArray) -> None:
        """The next token of each sequence, by its row of ``logits [B, vocab]``; some are done then."""
        tokens = next_tokens(logits, {row: ticket.sampler for row, ticket in tickets.items()})
        for row, ticket in tickets.items():
            self._guard(partial(self._append, ticket, tokens[row]), ticket)

    def _append(self, ticket: Ticket, token: int | None) -> None:
        if token is None:
            raise NonFiniteError(NOT_FINITE)
        if not ticket.transcript.token_ids:
            ticket.progress.reach("prefill")
            self.stats.began(ticket)
        self.stats.tokens += 1
        ticket.push(token)
        if reason := ticket.transcript.finish_reason:
            self._end(ticket, reason)

    def _end(self, ticket: Ticket, reason: str) -> None:
        self._release(ticket)
        self.stats.finished[reason] += 1
        ticket.finish(reason)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        self._release(ticket)
        self.stats.finished["error"] += 1
        ticket.fail(error)

    def _release(self, ticket: Ticket) -> None:
        """Free the slot, and whatever else still knows the request."""
        if self._running.get(ticket.slot) is ticket:
            del self._running[ticket.slot]
        if self._arriving and self._arriving[0] is ticket:
            self._arriving = None

    def _account(self) -> None:
        spec = self.pipeline.spec
        running = list(self._running.values())
        self.stats.running, self.stats.waiting = len(running), len(self._waiting)
        self.stats.kv_bytes = sum(spec.sequence_bytes(t.lengths.tolist()) for t in running)


class _Slots:
    """Rows of the KV caches, and views of the first few of them.

    Batches come in powers of two: every size has a binding, on TensorRT a CUDA graph, of its own.
    """

    def __init__(self, caches: Caches, count: int) -> None:
        self.count = count
        self._each = [caches.rows(slot, slot + 1) for slot in range(count)]
        sizes = [1 << power for power in range((count - 1).bit_length())] + [count]
        self._batches = {rows: caches.rows(0, rows) for rows in sizes}
        self._spoiled: set[int] = set()

    def lowest_free(self, taken: dict[int, Ticket]) -> int | None:
        """The first free slot: batches stay small."""
        return next((slot for slot in range(self.count) if slot not in taken), None)

    def spoil(self, slot: int) -> None:
        """Remember that there may be NaNs in a slot; -1, which is none, changes nothing."""
        self._spoiled.add(slot)

    def clean(self, slot: int) -> Caches:
        """The caches of one slot, fit to be filled."""
        if slot in self._spoiled:
            self._each[slot].zero()
            self._spoiled.remove(slot)
        return self._each[slot]

    def batch(self, wanted: int) -> tuple[Caches, int]:
        """Caches of at least the first ``wanted`` slots, and how many these are."""
        rows = next(rows for rows in self._batches if rows >= wanted)
        return self._batches[rows], rows

    def batches(self) -> Iterable[tuple[Caches, int]]:
        """Every batch that :meth:`batch` may give."""
        return ((caches, rows) for rows, caches in self._batches.items())
