"""A request on its way to an answer, and what is known when it is done."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from star_export.answer.logprobs import TokenLogprob
from star_export.answer.request import Request
from star_export.answer.transcript import Transcript
from star_export.serving.admission import Place
from star_export.specs import ExportSpec


@dataclass(frozen=True)
class Usage:
    """What a request took.

    Attributes:
        prompt_tokens: Prompt length before stage 2, visual tokens included.
        patches: Visual tokens before pruning.
        stage1_tokens: Visual tokens after stage 1.
        stage2_tokens: Visual tokens after stage 2.
        kv_bytes: Bytes of KV cache that the prompt fills.
        kv_bytes_unpruned: Bytes that it would fill without pruning.
    """

    prompt_tokens: int
    patches: int
    stage1_tokens: int
    stage2_tokens: int
    kv_bytes: int
    kv_bytes_unpruned: int

    @classmethod
    def of(cls, spec: ExportSpec, request: Request, lengths: Sequence[int]) -> "Usage":
        """From a bundle's spec, a request and the tokens in each group's caches after its prefill."""
        text, visual = request.tokens.text_tokens, request.tokens.image_positions.shape[1]
        text += len(request.appended)
        patches = sum(image.packing.tokens for image in request.images)
        return cls(
            prompt_tokens=text + visual,
            patches=patches,
            stage1_tokens=visual,
            stage2_tokens=lengths[-1] - text,
            kv_bytes=spec.sequence_bytes(lengths),
            kv_bytes_unpruned=spec.kv_bytes(text + patches, spec.model.text.num_layers),
        )


@dataclass(frozen=True)
class Answer:
    """A finished request.

    Attributes:
        text: The answer without special tokens.
        token_ids: Its tokens, an end token included when there was one.
        finish_reason: ``stop``, ``length`` or ``cancelled``.
        usage: Tokens and bytes; None when it was cancelled before it ran.
        timings_ms: ``queue``, ``vision``, ``prefill``, ``ttft`` (all three together), ``total``.
        logprobs: Of every token, if ``top_logprobs`` asked for them.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    usage: Usage | None
    timings_ms: dict[str, float]
    logprobs: tuple[TokenLogprob, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Piece:
    """Text that became certain, with all tokens since the last piece, and their logprobs if asked for."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None


class Stopwatch:
    """When a request reached what, in milliseconds since it was submitted."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self.timings: dict[str, float] = {}

    def reach(self, stage: str) -> None:
        """The end of a stage; the next one begins."""
        self.timings[stage] = self.lap()
        if stage == "prefill":
            self.timings["ttft"] = 1000 * (self._last - self._start)

    def lap(self) -> float:
        """Milliseconds since the last stage or lap ended; another begins."""
        now = time.perf_counter()
        self._last, lap = now, now - self._last
        return 1000 * lap

    def done(self) -> dict[str, float]:
        """All timings, with ``total``."""
        return {**self.timings, "total": 1000 * (time.perf_counter() - self._start)}


class Updates:
    """What comes of one request: iterate for its text, or ask :meth:`answer` for the whole.

    A ``with`` block is for who reads it: leaving it before the end cancels the request.
    Each piece is handed out once. After the end there are no more pieces; the answer, or the error
    of a request that failed, is there as often as it is asked for. Any thread may ask.

    Args:
        place: Its room, given back at its end, before anyone hears of that.

    Attributes:
        rest: When it is done, text and tokens that came after the last piece.
        cached_tokens: Tokens of the prompt that kept caches held, visual ones before stage 2 among them.
        cancelled: Whether it was let go.
    """

    def __init__(self, place: Place) -> None:
        self.cached_tokens = 0
        self.rest = Piece("", ())
        self.cancelled = False
        self.place = place
        self._changed = threading.Condition()
        self._pieces: list[Piece] = []  # not yet handed out
        self._tell: Callable[[], None] = lambda: None
        self._end: Answer | Exception | None = None
        self._untold = ""  # text of the rest that no iterator has given

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._end is None:
            self.cancel()

    @property
    def stages(self) -> tuple[int, ...]:
        """Visual tokens that each stage kept; known when the request is done."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Let the request go before the next step; what it has so far becomes its answer."""
        self.cancelled = True

    def next(self, seconds: float | None = None) -> Piece | Answer | None:
        """All text that waits, at last and from then on the answer; None when nothing came for some seconds.

        Who reads slowly gets larger pieces, not more of them.

        Raises:
            StarExportError: If the request failed; another exception if a library did.
        """
        with self._changed:
            if seconds != 0:
                self._changed.wait_for(lambda: self._pieces or self._end, seconds)
            pieces, self._pieces = self._pieces, []
        if pieces:
            return _joined(pieces)
        if isinstance(self._end, Exception):
            raise self._end
        return self._end

    def watch(self, tell: Callable[[], None]) -> None:
        """Have ``tell`` called when :meth:`next` may have something new, once at least, from any thread.

        It must neither wait nor raise: the scheduler calls it between two steps.
        """
        with self._changed:
            self._tell = tell
        tell()

    def __iter__(self) -> Iterator[str]:
        while isinstance(update := self.next(), Piece):
            yield update.text
        rest, self._untold = self._untold, ""
        if rest:
            yield rest

    def answer(self) -> Answer:
        """The finished request; waits for it, and passes over pieces that nobody took.

        Raises:
            StarExportError: If the request failed; another exception if a library did.
        """
        for _ in self:
            pass
        assert isinstance(self._end, Answer)
        return self._end

    def fail(self, error: Exception) -> None:
        """The request cannot be answered."""
        self._finish(error)

    def _put(self, piece: Piece) -> None:
        with self._changed:
            self._pieces.append(piece)
            self._changed.notify_all()
            tell = self._tell
        tell()

    def _finish(self, end: Answer | Exception) -> None:
        self.place.leave()
        self._untold = self.rest.text
        with self._changed:
            self._end = end
            self._changed.notify_all()
            tell = self._tell
        tell()


class Ticket(Updates):
    """A request on its way through the scheduler, which pushes its tokens.

    Args:
        request: What is to be done.
        transcript: Its answer, still empty.
        place: See :class:`Updates`.
        timeout: Seconds that it may take since it arrived.

    Attributes:
        needed: Tokens in each layer group's caches when the answer is as long as it may be.
        kept: After prefill, the visual tokens that each stage kept, numbered as they were before any was
            pruned, those of all pictures one after the other.
    """

    def __init__(
        self, request: Request, transcript: Transcript, *, place: Place, timeout: float | None
    ) -> None:
        super().__init__(place)
        self.request, self.timeout = request, timeout
        self.sampler, self.transcript = request.sampler(), transcript
        self.progress = Stopwatch()
        self.usage: Usage | None = None
        self.kept: tuple[tuple[int, ...], ...] = ()
        self.needed: tuple[int, ...] = ()
        self.slot, self.lengths = -1, np.zeros(0, np.int64)
        self._deadline = None if timeout is None else place.arrived + timeout
        self._shown = 0  # tokens that pieces were made of

    @property
    def stages(self) -> tuple[int, ...]:
        """Visual tokens that each stage kept."""
        return tuple(map(len, self.kept))

    @property
    def over(self) -> bool:
        """Whether it was cancelled or took too long."""
        return self.cancelled or (self._deadline is not None and time.monotonic() > self._deadline)

    def push(self, token: int) -> None:
        """Append a token."""
        if text := self.transcript.push(token, last=self.sampler.complete):
            self._put(self._piece(text))

    def finish(self, reason: str) -> None:
        """The last token is there, or will never be."""
        self.rest = self._piece(self.transcript.finish())
        answer = Answer(
            text=self.transcript.text,
            token_ids=tuple(self.transcript.token_ids),
            finish_reason=reason,
            usage=self.usage,
            timings_ms=self.progress.done(),
            logprobs=self.transcript.logprobs(self.sampler.rankings),
        )
        self._finish(answer)

    def _piece(self, text: str) -> Piece:
        """A text with the tokens since the last piece; those without text are among them."""
        ids, rankings = tuple(self.transcript.token_ids[self._shown :]), self.sampler.rankings
        logprobs = self.transcript.logprobs(None if rankings is None else rankings[self._shown :])
        self._shown += len(ids)
        return Piece(text, ids, logprobs)


def _joined(pieces: list[Piece]) -> Piece:
    """Pieces as one."""
    logprobs = None if pieces[0].logprobs is None else tuple(one for p in pieces for one in p.logprobs or ())
    return Piece("".join(p.text for p in pieces), tuple(i for p in pieces for i in p.token_ids), logprobs)
