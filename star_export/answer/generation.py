"""One answer: its tokens one after the other, its text as it comes, and what it cost."""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from star_export.answer.request import Request
from star_export.answer.sampling import Sampler
from star_export.answer.steps import DecodeState, Steps, VisionOutput
from star_export.answer.transcript import Transcript
from star_export.engines.session import Caches, Int64
from star_export.errors import InputError
from star_export.preprocessing import PreparedImage, TokenizedPrompt


@dataclass(frozen=True)
class Timings:
    """Milliseconds of one generation.

    Nothing waits for a GPU but the tokens: what of vision is still running when prefill is
    queued counts as prefill.

    Attributes:
        vision: The picture's features.
        prefill: From there to the first token.
        decode: Each further token.
        total: All of it, with preparing and streaming.
    """

    vision: float
    prefill: float
    decode: tuple[float, ...]
    total: float


@dataclass(frozen=True)
class Result:
    """A finished generation.

    Attributes:
        text: The answer without special tokens.
        token_ids: Its tokens, an end token included when there was one.
        finish_reason: ``stop`` after an end token or a stop string, ``length`` at the limit.
        stage1_indices: Visual tokens that stage 1 kept, those of all pictures numbered one after the
            other; all of them unpruned.
        stage2_indices: Stage-1 tokens that stage 2 kept; all of them unpruned.
        prompt_tokens: Prompt length before stage 2, visual tokens included.
        timings_ms: Where the time went.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stage1_indices: tuple[int, ...]
    stage2_indices: tuple[int, ...]
    prompt_tokens: int
    timings_ms: Timings

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as ``run --json`` prints them."""
        return asdict(self)


class Clock:
    """Milliseconds since the last lap, and since the start."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        self._last, lap = now, now - self._last
        return 1000.0 * lap

    def total(self) -> float:
        return 1000.0 * (time.perf_counter() - self._start)


class Generation:
    """Pieces of an answer as they come, then its :class:`Result`.

    Args:
        run: Gives the pieces, and returns the result.
    """

    def __init__(self, run: Generator[str, None, Result]) -> None:
        self._outcome: list[Result | Exception] = []
        # Knows nothing of self: an answer that nobody wants any more is let go at once, not by the
        # garbage collector, and so are the KV caches.
        self._pieces = _pieces(run, self._outcome)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def result(self) -> Result:
        """The finished generation; runs what is left of it first.

        Raises:
            NonFiniteError: If the model's logits are NaN or infinite.
            InputError: If another generation took its KV caches, or it was closed before its end.
        """
        for _ in self._pieces:
            pass
        if not self._outcome:
            raise InputError("this generation was closed before its end; generate again")
        if isinstance(self._outcome[0], Exception):
            raise self._outcome[0]
        return self._outcome[0]

    def close(self) -> None:
        """Let go of it, finished or not; the KV caches are free then."""
        self._pieces.close()


def _pieces(
    run: Generator[str, None, Result], outcome: list[Result | Exception]
) -> Generator[str, None, None]:
    try:
        outcome.append((yield from run))
    except Exception as error:
        outcome.append(error)
        raise


def answer_request(steps: Steps, request: Request, transcript: Transcript) -> Generator[str, None, Result]:
    """Pieces of the answer to one request, in the steps' own caches."""
    sampler, clock = Sampler(request.sampling), Clock()
    claim = steps.claimed_caches(request.tokens, keep=request.keep, new_tokens=request.max_new_tokens)
    with claim as caches:
        visions = steps.encode_images(request.images, request.keep)
        opening = open_answer(steps, request, visions, caches, sampler, clock)
        return (yield from answer_pieces(steps, opening, sampler, transcript, clock))


@dataclass(frozen=True)
class Opening:
    """A prompt that is in the caches, and the first token of its answer.

    Attributes:
        state: The sequence, whose caches do not hold ``first`` yet.
        first: That token.
        prompt_tokens: Tokens before it, visual ones included.
        stage1: Visual tokens that stage 1 kept; see :class:`Result`.
        stage2: Stage-1 tokens that stage 2 kept.
        vision_ms: Milliseconds that the pictures took.
        prefill_ms: Those from there to the first token.
    """

    state: DecodeState
    first: int
    prompt_tokens: int
    stage1: tuple[int, ...]
    stage2: tuple[int, ...]
    vision_ms: float
    prefill_ms: float


def open_answer(
    steps: Steps,
    request: Request,
    visions: Sequence[VisionOutput],
    caches: Caches,
    sampler: Sampler,
    clock: Clock,
) -> Opening:
    """Read a request's prompt; the clock has run since before its pictures were seen."""
    vision_ms = clock.lap()
    state = steps.prefill(request.tokens, *visions, keep=request.keep, caches=caches)
    first = state.next_token(sampler)
    prefill_ms = clock.lap()
    stage1 = stage1_indices(request.images, visions)
    stage2 = stage2_indices(request.tokens, state.kept_positions)
    return Opening(state, first, state.position, stage1, stage2, vision_ms, prefill_ms)


def answer_pieces(
    steps: Steps, opening: Opening, sampler: Sampler, transcript: Transcript, clock: Clock
) -> Generator[str, None, Result]:
    """Pieces of an answer that was opened."""
    token, laps = opening.first, list[float]()
    while True:
        if piece := transcript.push(token):
            yield piece
        if transcript.finish_reason:
            break
        clock.lap()
        steps.decode(opening.state, token)
        token = opening.state.next_token(sampler)
        laps.append(clock.lap())
    rest = transcript.finish()
    total = clock.total()
    if rest:
        yield rest
    return Result(
        text=transcript.text,
        token_ids=tuple(transcript.token_ids),
        finish_reason=transcript.finish_reason,
        stage1_indices=opening.stage1,
        stage2_indices=opening.stage2,
        prompt_tokens=opening.prompt_tokens,
        timings_ms=Timings(opening.vision_ms, opening.prefill_ms, tuple(laps), total),
    )


def stage1_indices(images: Sequence[PreparedImage], visions: Sequence[VisionOutput]) -> tuple[int, ...]:
    """Visual tokens that stage 1 kept, those of all pictures numbered one after the other."""
    firsts = accumulate((image.packing.tokens for image in images), initial=0)
    return tuple(
        first + index
        for first, vision in zip(firsts, visions, strict=False)
        for index in vision.indices.tolist()
    )


def stage2_indices(tokens: TokenizedPrompt, kept_positions: Int64) -> tuple[int, ...]:
    """Indices into the stage-1 tokens of those that ``kept_positions`` still holds."""
    return tuple(np.flatnonzero(np.isin(tokens.image_positions[0], kept_positions)).tolist())


def kept_tokens(
    request: Request, visions: Sequence[VisionOutput], state: DecodeState, *, pruned_before: bool
) -> tuple[tuple[int, ...], ...]:
    """Visual tokens that each stage kept, numbered as before any was pruned, picture by picture.

    Args:
        request: What was asked.
        visions: Of its pictures.
        state: After its prefill, before the next one.
        pruned_before: Whether the first stage is the one before the decoder.
    """
    entered = np.array(stage1_indices(request.images, visions))
    inside = (stage2_indices(request.tokens, positions) for positions in state.stage_positions)
    kept = tuple(tuple(entered[list(indices)].tolist()) for indices in inside)
    return (tuple(entered.tolist()), *kept) if pruned_before else kept
