"""In-flight batching: requests join and leave a running decode batch at every step.

A new request is prepared beside the decode steps of the others, piece by piece in a thread of its own:
its pictures go through the vision graph, one by one, then its prompt through prefill, into a slot that
is reserved for it. Where a session can't run two graphs at once, one piece is done between two steps.
Each sequence lives in a slot, one row of the KV caches; there are as many as fit into the given bytes,
so more where less is kept and answers are short. Requests run in the order in which they came: one for
which there is no room lets none pass.
Nothing here knows of a server: any front door can submit requests from any thread.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

import numpy as np

from star_export.answer.choosing import next_tokens, no_token
from star_export.answer.pipeline import Pipeline
from star_export.answer.request import Request
from star_export.answer.steps import DecodeState, Steps
from star_export.engines.priority import yielding_thread
from star_export.engines.session import DeviceArray
from star_export.errors import (
    BusyError,
    DeadlineError,
    DeviceError,
    StarExportError,
)
from star_export.serving.admission import CLOSING, Admission, Place
from star_export.serving.arrival import Arrival, Work, see
from star_export.serving.features import FeatureCache
from star_export.serving.prefixes import PrefixCache
from star_export.serving.slots import Slots
from star_export.serving.stats import Counts, Stats
from star_export.serving.ticket import Ticket, Usage

#: How long decode rests after a step, as a multiple of that, while a request is prepared beside it. Without
#: rest a request would take long to join, and steps would be run for few that could be run for more.
PAUSE = 0.5

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
        prefix_bytes: Memory for the KV caches of conversations that may go on; see ``Query.reprune``.
        overlap: Prepare new requests beside decode steps, where the session can; else between two of them.
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
        prefix_bytes: int = 256 << 20,
        overlap: bool = True,
        on_lost: Callable[[DeviceError], None] = lambda _error: None,
    ) -> None:
        self.pipeline, self._on_lost = pipeline, on_lost
        self.features = FeatureCache(feature_bytes)
        self.prefixes = PrefixCache(prefix_bytes, pipeline.session)
        room = slots * pipeline.spec.slot_bytes if kv_bytes is None else kv_bytes
        self._slots = Slots(pipeline.session, kv_bytes=room, most=slots)
        self.stats, self.admission = Counts(slots=self._slots.count), Admission(self._slots.count + queue)
        for caches, rows in self._slots.batches():
            lengths = np.zeros((len(pipeline.spec.groups), rows), np.int64)
            pipeline.steps.decode_batch(caches, lengths[0], lengths)
        self._waiting: deque[Ticket] = deque()
        self._arriving: Arrival | None = None
        self._work: Work | None = None  # which may outlive its request
        beside = pipeline.session.beside() if overlap else None
        self._arriving_steps = Steps(beside) if beside else pipeline.steps
        self._beside = yielding_thread("star-export-arrival") if beside else None
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
        steps = self._arriving_steps
        visions = [see(steps, image, request.keep) for image in request.images]
        self._fit(self._needed(request))
        for slot in range(self._slots.count):
            caches = steps.session.borrow(self._slots.clean(slot))
            steps.prefill(request.tokens, *visions, keep=request.keep, caches=caches)
        steps.session.synchronize()

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

    def snapshot(self) -> Stats:
        """The numbers of this moment; any thread may ask."""
        return self.stats.snapshot(self.admission, features=self.features, prefixes=self.prefixes)

    def count_anew(self) -> None:
        """Forget what was counted and seen so far; only while nothing runs."""
        self.stats = Counts(slots=self.stats.slots)
        self.features = FeatureCache(self.features.limit)

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
            began = time.perf_counter()
            if self._running:
                self._guard(self._step, *self._running.values())
            self._account()
            if self._work:  # it yields to a step, so steps yield to it
                self._work.wait(PAUSE * (time.perf_counter() - began))
        if self._beside:
            self._beside.shutdown()

    def _wait(self) -> bool:
        """Sleep while there is nothing to do; False when there never will be."""
        with self._changed:
            while not (self._waiting or self._running or self._arriving or self._work):
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
            everyone.append(self._arriving.ticket)
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
        if self._arriving and self._arriving.ticket.over:
            gone.append(self._arriving.ticket)
        for ticket in gone:
            if ticket.cancelled:
                self._guard(partial(self._end, ticket, "cancelled"), ticket)
            else:
                self._fail(ticket, DeadlineError(f"the request took longer than {ticket.timeout:g} s"))

    def _admit(self) -> None:
        """A piece of work for the next request, beside the steps of the others or before the next one."""
        self._begin()
        if self._work and not (self._running and self._work.pending):
            self._finish(self._work)
            if self._beside:
                self._begin()

    def _begin(self) -> None:
        """Begin some work for the request that has waited longest, unless there is some under way."""
        if self._work:
            return
        if not self._arriving and (ticket := self._next()):
            if self._running:  # should it fail, what they had is gone, and there is room for this one
                self._guard(partial(self._fit, ticket.needed), *self._running.values())
            self._guard(partial(self._reserve, ticket), ticket)
        if self._arriving:
            self._guard(partial(self._start, self._arriving), self._arriving.ticket)

    def _start(self, arrival: Arrival) -> None:
        self._work = Work(arrival, self._beside)

    def _reserve(self, ticket: Ticket) -> None:
        """Give it a slot; until it runs, the caches keep their size."""
        self._fit(ticket.needed)
        ticket.slot = self._slots.lowest_free(self._running)
        caches = self._slots.clean(ticket.slot)
        self.pipeline.session.synchronize()  # from here on, another stream writes into them
        self._arriving = Arrival(
            ticket,
            caches,
            pipeline=self.pipeline,
            steps=self._arriving_steps,
            features=self.features,
            prefixes=self.prefixes,
        )

    def _finish(self, work: Work) -> None:
        """The end of some work; the sequence runs from here on if it was the last."""
        if work.arrival is not self._arriving:  # its request has left, and nobody hears of it
            with suppress(Exception):
                work.finish()
            self._work = None
            return
        self._guard(work.finish, work.arrival.ticket)
        self._work = None
        if self._arriving and self._arriving.ready and self._arriving.state:
            self._guard(
                partial(self._join, self._arriving.ticket, self._arriving.state), self._arriving.ticket
            )

    def _next(self) -> Ticket | None:
        """The request that has waited longest, if it has room beside those that run."""
        needed = [ticket.needed for ticket in self._running.values()]
        with self._changed:
            if not self._waiting or not self._slots.have_room([*needed, self._waiting[0].needed]):
                return None
            upcoming = self._waiting.popleft()
        upcoming.progress.reach("queue")
        return upcoming

    def _needed(self, request: Request) -> tuple[int, ...]:
        return self.pipeline.steps.needed(request.tokens, keep=request.keep, new_tokens=request.room)

    def _fit(self, *more: tuple[int, ...]) -> None:
        """Make other caches if those that run, and ``more``, want them."""
        slots = sorted(self._running)
        tickets = [self._running[slot] for slot in slots]
        capacities = self._slots.wanted([*(ticket.needed for ticket in tickets), *more])
        if capacities == self._slots.capacities:
            return
        self._slots.resize(capacities, slots)
        self._running = dict(enumerate(tickets))
        for slot, ticket in self._running.items():
            ticket.slot = slot

    def _join(self, ticket: Ticket, state: DecodeState) -> None:
        """Find the first token of a sequence that is in its slot; it is decoded from here on."""
        self._arriving = None
        ticket.usage = Usage.of(self.pipeline.spec, ticket.request, state.lengths.tolist())
        ticket.lengths = state.lengths
        self._running[ticket.slot] = ticket
        self._choose({0: ticket}, state.output)

    @property
    def _reserved(self) -> Arrival | None:
        """Who has a slot and does not run yet, or has left while a piece of its work is under way."""
        return self._work.arrival if self._work else self._arriving

    def _step(self) -> None:
        """One token more for every running sequence."""
        reserved = self._reserved
        if not reserved:
            self._fit()
        caches, rows = self._slots.batch(max(self._running) + 1)
        tokens = np.zeros(rows, np.int64)
        lengths = np.zeros((len(self.pipeline.spec.groups), rows), np.int64)
        for slot, ticket in self._running.items():
            tokens[slot], lengths[:, slot] = ticket.transcript.token_ids[-1], ticket.lengths
        if (
            reserved and reserved.ticket.slot < rows
        ):  # rows without a sequence get a token too: behind its prompt
            lengths[:, reserved.ticket.slot] = reserved.lengths
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
            raise no_token(ticket.sampler)
        if not ticket.transcript.token_ids:
            ticket.progress.reach("prefill")
            self.stats.began(ticket)
        else:
            self.stats.between_tokens.count(ticket.progress.lap())
        self.stats.tokens += 1
        ticket.push(token)
        if reason := ticket.transcript.finish_reason:
            if not ticket.request.reprune:
                caches, fed = self._slots.row(ticket.slot), ticket.transcript.token_ids[:-1]
                self.prefixes.keep(ticket, fed, caches)
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
        if self._arriving and self._arriving.ticket is ticket:
            self._slots.spoil(ticket.slot)  # what is in it by now nobody knows
            self._arriving = None

    def _account(self) -> None:
        spec = self.pipeline.spec
        running = list(self._running.values())
        self.stats.slots = self._slots.count
        self.stats.running, self.stats.waiting = len(running), len(self._waiting)
        self.stats.kv_bytes = sum(spec.sequence_bytes(t.lengths.tolist()) for t in running)
