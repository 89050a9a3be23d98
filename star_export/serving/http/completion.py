"""Answers as OpenAI's API hands them out: one body, or chunks of a stream."""

import base64
import io
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from star_export.answer.logprobs import TokenLogprob
from star_export.answer.pipeline import Pipeline
from star_export.preprocessing.views import picture_views
from star_export.serving.ticket import Answer, Piece, Ticket


@dataclass(frozen=True)
class Completion:
    """One answer on its way to a client.

    Attributes:
        model: Its name.
        include_usage: Whether a stream ends with a chunk of its usage.
    """

    model: str
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def body(self, answer: Answer, ticket: Ticket) -> dict[str, Any]:
        """The whole answer at once."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": _logprobs(answer.logprobs),
            "finish_reason": answer.finish_reason,
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(answer, ticket)}

    def first_chunk(self) -> dict[str, Any]:
        """Who speaks."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """More text."""
        return self._chunk({"content": piece.text}, logprobs=_logprobs(piece.logprobs))

    def last_chunks(self, answer: Answer, ticket: Ticket) -> list[dict[str, Any]]:
        """Why it ended, and what it took where the client asked for that."""
        chunks = [self._chunk({}, finish_reason=answer.finish_reason)]
        if self.include_usage:
            head = self._head("chat.completion.chunk")
            chunks.append({**head, "choices": [], "usage": usage(answer, ticket)})
        return chunks

    def _chunk(self, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return {**chunk, "usage": None} if self.include_usage else chunk

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def _logprobs(told: tuple[TokenLogprob, ...] | None) -> dict[str, Any] | None:
    return None if told is None else {"content": told, "refusal": None}


def usage(answer: Answer, ticket: Ticket) -> dict[str, Any]:
    """Tokens as the API counts them, and visual tokens before pruning and after each stage."""
    assert answer.usage is not None
    visual = {"patches": answer.usage.patches, "stages": [len(kept) for kept in ticket.kept]}
    prompt, new = answer.usage.prompt_tokens, len(answer.token_ids)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": ticket.cached_tokens, "star": visual},
    }


def shown(answer: Answer, ticket: Ticket, pipeline: Pipeline) -> dict[str, Any]:
    """What a page draws: the tokens that each stage kept, where they lie in the pictures, what that saved."""
    assert answer.usage is not None
    schedule = pipeline.spec.schedule
    names = [f"stage {number}" for number in _numbers(pipeline)]
    stages = [
        {"name": name, "score": stage.score, "kept": list(kept)}
        for name, stage, kept in zip(names, schedule, ticket.kept, strict=True)
    ]
    pictures = picture_views(ticket.request.images, pipeline.image_spec, pipeline.spec.model.vision)
    views = [
        {
            "image": number,
            "rows": view.tokens.shape[0],
            "columns": view.tokens.shape[1],
            "tokens": view.tokens.tolist(),
            "data": _png(view.pixels),
        }
        for number, picture in enumerate(pictures)
        for view in picture
    ]
    return {
        "stages": stages,
        "views": views,
        "kv_bytes": answer.usage.kv_bytes,
        "kv_bytes_unpruned": answer.usage.kv_bytes_unpruned,
        "timings_ms": answer.timings_ms,
    }


def _numbers(pipeline: Pipeline) -> range:
    """What users call the stages: 1 is the one before the decoder."""
    first = 1 if pipeline.spec.stage1 else 2
    return range(first, first + len(pipeline.spec.schedule))


def _png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
