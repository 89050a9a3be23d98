"""In-flight batching: requests join and leave a running decode batch at every step.

Between two decode steps at most one piece of work is done for a new request: one of its pictures goes
through the vision graph, or its prompt through prefill. Each sequence lives in a slot, one row of
the KV caches; there are as many as fit into the given bytes, so more where less is kept and answers
are short. Requests run in the order in which they came: one for which there is no room lets none pass.
Nothing here knows of a server: any front door can submit requests from any thread.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from star_export.answer.choosing import NOT_FINITE, next_tokens
from star_export.answer.generation import kept_tokens
from star_export.answer.pipeline import Pipeline
from star_export.answer.request import Request
from star_export.answer.steps import VisionOutput
from star_export.engines.session import DeviceArray
from star_export.errors import (
    BusyError,
    DeadlineError,
    DeviceError,
    NonFiniteError,
    StarExportError,
)
from star_export.preprocessing import PreparedImage
from star_export.serving.admission import CLOSING, Admission, Place
from star_export.serving.features import FeatureCache
from star_export.serving.slots import Slots
from star_export.serving.stats import Counts
from star_export.serving.ticket import Ticket, Usage
from star_export.specs import Keep

log = logging.getLogger("star_export.scheduler")


class Scheduler:
    """Runs many requests on one pipeline, in a thread of its own.

    Decode has run at every batch size when the constructor returns, in caches of the smallest size.

    Args:
        pipeline: A loaded bundle, used by nobody else meanwhile.
        slots: Sequences that are decoded at once, at most.
        kv_bytes: Memory for their KV caches; by default so much that ``slots`` of any size have room.
        queue: Requests that may wait for a slot; as many as slots and these may be present at once.
        feature_bytes: Memory for the features of pictures seen before.
        on_lost: Told when the GPU is lost: every request has failed then, and none is accepted.

    Raises:
        SettingsError: If the KV caches of the bundle's longest sequence take more than ``kv_bytes``.

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
        kv_bytes: int | None = None,
        queue: int = 64,
        feature_bytes: int = 256 << 20,
        on_lost: Callable[[DeviceError], None] = lambda _error: None,
    ) -> None:
        self.pipeline, self._on_lost = pipeline, on_lost
        self.features = FeatureCache(feature_bytes)
        room = slots * pipeline.spec.slot_bytes if kv_bytes is None else kv_bytes
        self._slots = Slots(pipeline.session, kv_bytes=room, most=slots)
        self.stats, self.admission = Counts(slots=self._slots.count), Admission(self._slots.count + queue)
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
        self._fit(self._needed(request))
        for slot in range(self._slots.count):
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
            ticket.needed = self._needed(request)
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
        """One piece of work for the next request, if there is room for it."""
        self._arriving = self._arriving or self._next()
        if self._arriving is None:
            return
        ticket, seen = self._arriving
        if len(seen) < len(ticket.request.images):
            self._guard(partial(self._look, ticket, seen), ticket)
            return
        self._guard(self._fit, ticket, *self._running.values())
        if self._arriving:  # it did not fail
            self._guard(partial(self._prefill, ticket, seen), ticket)
        self._arriving = None

    def _next(self) -> tuple[Ticket, list[VisionOutput]] | None:
        """The request that has waited longest, if it has room beside those that run."""
        needed = [ticket.needed for ticket in self._running.values()]
        with self._changed:
            if not self._waiting or not self._slots.have_room([*needed, self._waiting[0].needed]):
                return None
            upcoming = self._waiting.popleft()
        upcoming.progress.reach("queue")
        return upcoming, []

    def _needed(self, request: Request) -> tuple[int, ...]:
        return self.pipeline.steps.needed(
            request.tokens, keep=request.keep, new_tokens=request.max_new_tokens
        )

    def _fit(self, *more: tuple[int, ...]) -> None:
        """Make other caches if those that run, the one that arrives, and ``more``, want them."""
        slots = sorted(self._running)
        tickets = [self._running[slot] for slot in slots]
        present = [*tickets, self._arriving[0]] if self._arriving else tickets
        capacities = self._slots.wanted([*(ticket.needed for ticket in present), *more])
        if capacities == self._slots.capacities:
            return
        self._slots.resize(capacities, slots)
        self._running = dict(enumerate(tickets))
        for slot, ticket in self._running.items():
            ticket.slot = slot

    def _look(self, ticket: Ticket, seen: list[VisionOutput]) -> None:
        """Features of the next picture, from the vision graph or from memory."""
        image, keep = ticket.request.images[len(seen)], ticket.request.keep
        (tokens,) = self.pipeline.entering([image], keep)
        seen.append(self.features.get((image.key, tokens), partial(self._see, image, keep)))
        if len(seen) == len(ticket.request.images):
            ticket.progress.reach("vision")

    def _see(self, image: PreparedImage, keep: Keep | None) -> VisionOutput:
        return self.pipeline.steps.encode_image(image, keep=keep).copied(self.pipeline.spec.dtype)

    def _prefill(self, ticket: Ticket, visions: list[VisionOutput]) -> None:
        """Fill a slot and find the first token; the sequence runs from here on."""
        request, ticket.slot = ticket.request, self._slots.lowest_free(self._running)
        state = self.pipeline.steps.prefill(
            request.tokens, *visions, keep=request.keep, caches=self._slots.clean(ticket.slot)
        )
        ticket.usage = Usage.of(self.pipeline.spec, request, state.lengths.tolist())
        ticket.lengths = state.lengths
        pruned_before = self.pipeline.spec.stage1 is not None
        ticket.kept = kept_tokens(request, visions, state, pruned_before=pruned_before)
        self._running[ticket.slot] = ticket
        self._choose({0: ticket}, state.output)

    def _step(self) -> None:
        """One token more for every running sequence."""
        self._fit()
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
        else:
            self.stats.between_tokens.count(ticket.progress.lap())
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
        self.stats.slots = self._slots.count
        self.stats.running, self.stats.waiting = len(running), len(self._waiting)
        self.stats.kv_bytes = sum(spec.sequence_bytes(t.lengths.tolist()) for t in running)
