"""A model behind Triton: requests go to ``star_llava`` over gRPC and come back in pieces."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

from star_export.answer.logprobs import TokenLogprob
from star_export.errors import DeadlineError, PlatformError, StarExportError, UnreachableError
from star_export.serving.admission import Admission, Place
from star_export.serving.card import Card
from star_export.serving.options import ServiceOptions
from star_export.serving.query import Query, image_bytes
from star_export.serving.stats import RequestCounts, RequestStats
from star_export.serving.ticket import Answer, Piece, Updates, Usage
from star_export.serving.triton.client import grpc_address, library, outputs, tensor
from star_export.serving.triton.fields import FORWARDED, MODEL, service_options
from star_export.serving.triton.forwarding import unpacked
from star_export.typed import convert, parse

log = logging.getLogger("star_export.serving")

T = TypeVar("T")

#: Seconds in which a server that is there says whether it is ready.
ASK_S = 5.0

#: gRPC waits up to two minutes by itself before it connects again to a server that went away.
RECONNECT_MS = 1000

#: What strangers hear; the log has the address and gRPC's words.
GONE = "the server behind this one does not answer; try again later"


class Tally:
    """Counts of requests that several threads count."""

    def __init__(self) -> None:
        self._counts, self._lock = RequestCounts(), threading.Lock()

    def accept(self) -> None:
        """A request was sent."""
        with self._lock:
            self._counts.accepted += 1

    def piece(self, milliseconds: float, *, first: bool) -> None:
        """A piece came, so long after the one before, or after its request."""
        with self._lock:
            if not first:
                self._counts.between_tokens.count(milliseconds)
                return
            self._counts.first_tokens += 1
            self._counts.ttft_ms += milliseconds
            self._counts.ttft.count(milliseconds)

    def end(self, outcome: str, answer: Answer | None = None) -> None:
        """A request is done."""
        with self._lock:
            self._counts.finished[outcome] += 1
            if answer is None or answer.usage is None:
                return
            self._counts.tokens += len(answer.token_ids)
            self._counts.queue_ms += answer.timings_ms["queue"]
            self._counts.kv_bytes_saved += answer.usage.kv_bytes_unpruned - answer.usage.kv_bytes

    def stats(self, admission: Admission) -> RequestStats:
        """The numbers of this moment."""
        with self._lock:
            return self._counts.request_stats(admission)


class UpstreamTicket(Updates):
    """One request on its way through a server elsewhere.

    Args:
        place: See :class:`Updates`.
        tally: Where it is counted.

    Attributes:
        shown: What a page draws, if that was asked.
    """

    def __init__(self, place: Place, tally: Tally) -> None:
        super().__init__(place)
        self.shown: dict[str, Any] = {}
        self._tally = tally
        self._stages: tuple[int, ...] = ()
        self._taken: list[Piece] = []
        self._last = place.arrived
        self._work: Future[Answer] | None = None

    @property
    def stages(self) -> tuple[int, ...]:
        """Visual tokens that each stage kept."""
        return self._stages

    def cancel(self) -> None:
        """Let the request go, here at once."""
        super().cancel()
        if self._work:
            self._work.cancel()

    def follow(self, work: "Future[Answer]") -> None:
        """Take what the request comes to as its end."""
        self._work = work
        work.add_done_callback(self._ended)

    def take(self, response: Mapping[str, Any]) -> Answer | None:
        """One of the server's responses; the answer if it is the last.

        Raises:
            ValueError: If it is not as ``star_llava`` makes them.
        """
        logprobs = response.get("logprobs")
        read = None if logprobs is None else convert(parse(logprobs.encode()), tuple[TokenLogprob, ...])
        piece = Piece(response["text"], tuple(response["token_ids"]), read)
        self._time()
        self._taken.append(piece)
        if "finish_reason" not in response:
            self._put(piece)
            return None
        usage = parse(response["usage"].encode())
        self._stages = convert(usage.pop("stages"), tuple[int, ...])
        self.cached_tokens = convert(usage.pop("cached_tokens"), int)
        self.shown = parse(response.get("shown", "{}").encode())
        self.rest = piece
        return Answer(
            text="".join(one.text for one in self._taken),
            token_ids=tuple(token for one in self._taken for token in one.token_ids),
            finish_reason=response["finish_reason"],
            usage=convert(usage, Usage),
            timings_ms=convert(parse(response["timings_ms"].encode()), dict[str, float]),
            logprobs=None if read is None else tuple(t for one in self._taken for t in one.logprobs or ()),
        )

    def _time(self) -> None:
        now = time.monotonic()
        self._tally.piece(1000 * (now - self._last), first=not self._taken)
        self._last = now

    def _ended(self, work: "Future[Answer]") -> None:
        if work.cancelled():
            self._tally.end("cancelled")
            self._finish(Answer("", (), "cancelled", None, {}))
        elif (error := work.exception()) is not None:
            self._tally.end("error")
            self.fail(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        else:
            answer = work.result()
            self._tally.end(answer.finish_reason, answer)
            self._finish(answer)


class Upstream:
    """``star_llava`` on a Triton server, asked as a :class:`star_export.serving.service.Service` is.

    It holds neither bundle nor graphs. What may be asked, and how many requests may be present, are the
    server's, as they are when the constructor runs.

    Args:
        url: Of Triton's gRPC port, such as ``grpc://localhost:8001``.
        timeout_s: Seconds that a request may take; at most what the server allows.

    Raises:
        SettingsError: If the URL is none of gRPC.
        PlatformError: If tritonclient is missing, or the server's model repository is none of this version.
        UnreachableError: If no such server answers.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url, self._address = url, grpc_address(url)
        self._grpc, self._aio = library(), library("tritonclient.grpc.aio")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="star-export-upstream", daemon=True
        )
        self._thread.start()
        try:
            self._client = self._wait(self._connect())
            self.card, options = self._read(self._wait(self._config()))
        except BaseException:
            self._end()
            raise
        self.options = replace(options, timeout_s=min(timeout_s, options.timeout_s))
        self._admission, self._tally = Admission(self.places), Tally()

    @cached_property
    def places(self) -> int:
        """Requests that may be present at once: as many as the server takes at most."""
        return self.options.max_slots + self.options.queue

    @property
    def open(self) -> bool:
        """Whether it lets requests in."""
        return not self._admission.closed

    def ready(self) -> bool:
        """Whether the server would answer; waits for it, some seconds at most."""
        try:
            return bool(self._wait(self._client.is_model_ready(MODEL, client_timeout=ASK_S)))
        except Exception as error:  # tritonclient's, or one of gRPC's
            log.warning("%s is not ready: %s", self._url, error)
            return False

    def enter(self) -> Place:
        """Let a request in before it is read; never waits.

        Raises:
            BusyError: If all places are taken, or it is closing.
        """
        return self._admission.enter()

    def submit(self, query: Query, place: Place | None = None, *, show: bool = False) -> UpstreamTicket:
        """Send a request to the server, which checks it.

        Args:
            query: What is asked.
            place: From :meth:`enter`, where the request came in before it was read.
            show: Whether :meth:`shown` will be asked.

        Raises:
            InputError: If a picture is text and no base64, or the time-out cannot be used.
            SettingsError: If a number does not fit its input.
            BusyError: If all places are taken, or it is closing.
        """
        with place or self.enter() as place:
            timeout = query.timeout(self.options.timeout_s)
            tensors = [tensor(self._grpc, *item) for item in _inputs(query, show).items()]
            ticket = UpstreamTicket(place, self._tally)
            place.held = True
            self._tally.accept()
            ticket.follow(asyncio.run_coroutine_threadsafe(self._ask(ticket, tensors, timeout), self._loop))
            return ticket

    def shown(self, ticket: Updates) -> dict[str, Any]:
        """What a page draws of an answer, as the server made it."""
        assert isinstance(ticket, UpstreamTicket)
        return ticket.shown

    def stats(self) -> RequestStats:
        """The numbers of this moment, of requests that came through here."""
        return self._tally.stats(self._admission)

    def drain(self) -> None:
        """Let nobody in any more; never waits."""
        self._admission.close()

    def close(self) -> None:
        """Let nobody in any more and finish what is here, for at most as long as a request may take."""
        self.drain()
        self._admission.wait_until_empty(self.options.timeout_s)
        self._wait(self._client.close())
        self._end()

    async def _connect(self) -> Any:
        size = self._grpc.MAX_GRPC_MESSAGE_SIZE
        limits = [(f"grpc.max_{way}_message_length", size) for way in ("send", "receive")]
        waits = [("grpc.max_reconnect_backoff_ms", RECONNECT_MS)]
        return self._aio.InferenceServerClient(self._address, channel_args=[*limits, *waits])

    async def _config(self) -> Mapping[str, str]:
        try:
            found = await self._client.get_model_config(MODEL, client_timeout=ASK_S)
        except Exception as error:  # tritonclient's, or one of gRPC's
            raise UnreachableError(
                f"no answer from {self._url}: {error}; is a server there that serves {MODEL}, "
                "and is this its gRPC port (8001, usually)?"
            ) from error
        return {name: entry.string_value for name, entry in found.config.parameters.items()}

    def _read(self, parameters: Mapping[str, str]) -> tuple[Card, ServiceOptions]:
        try:
            return convert(parse(parameters["card"].encode()), Card), service_options(parameters)
        except (KeyError, ValueError, StarExportError) as error:
            raise PlatformError(
                f"the model repository that {self._url} serves is none of this version: {error}; "
                "write it again with this one"
            ) from error

    async def _ask(self, ticket: UpstreamTicket, tensors: list[Any], timeout: float) -> Answer:
        """All of one request's responses, to its ticket."""
        deadline = ticket.place.arrived + timeout
        late, grpc = DeadlineError(f"the request took longer than {timeout:g} s"), self._aio.grpc
        try:
            return await self._take_all(ticket, tensors, deadline)
        except (grpc.RpcError, UnreachableError, CancelledError) as error:
            code, details = (getattr(error, name, lambda: None) for name in ("code", "details"))
            # A stream that is cut off by its deadline ends with one status or another.
            if code() is grpc.StatusCode.DEADLINE_EXCEEDED or time.monotonic() >= deadline:
                raise late from error
            log.warning("no answer from %s: %s", self._url, details() or error)
            raise UnreachableError(GONE) from error

    async def _take_all(self, ticket: UpstreamTicket, tensors: list[Any], deadline: float) -> Answer:
        left = max(0.0, deadline - time.monotonic())
        call = self._client.stream_infer(_once(tensors), stream_timeout=left)
        end: Answer | Exception | None = None
        try:
            # To the stream's own end: Triton 2.51 never ends if a stream is cancelled just behind an error.
            async for response, error in call:
                if error is None:
                    end = ticket.take(outputs(response))
                else:
                    end = unpacked(error.message()) or UnreachableError(error.message())
        except self._aio.grpc.RpcError:
            if not isinstance(end, Answer):  # else the server went just behind it
                raise
        finally:
            call.cancel()
        if isinstance(end, Answer):
            return end
        raise end or UnreachableError("the answer broke off")

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _once(tensors: list[Any]) -> AsyncIterator[dict[str, Any]]:
    yield {"model_name": MODEL, "inputs": tensors, "parameters": {FORWARDED: True}}


def _inputs(query: Query, show: bool) -> dict[str, Any]:
    """The model's inputs: those that say more than their absence would."""
    asked = query.prompt
    given = {
        "image": [image_bytes(image) for image in query.images],
        **({"prompt": asked} if isinstance(asked, str) else {"messages": json.dumps(asked)}),
        "keep": query.keep,
        "max_new_tokens": query.max_new_tokens,
        "temperature": query.temperature,
        "top_p": query.top_p,
        "seed": query.seed,
        "stop": list(query.stop) or None,
        "reprune": query.reprune,
        "schema": json.dumps(query.schema) if isinstance(query.schema, dict) else query.schema,
        "top_logprobs": query.top_logprobs,
        "stream": True,
        "show": show or None,
    }
    return {name: value for name, value in given.items() if value is not None}
