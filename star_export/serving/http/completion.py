"""Answers as OpenAI's API hands them out: one body, or chunks of a stream."""

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from star_export.answer.logprobs import TokenLogprob
from star_export.serving.ticket import Answer, Piece, Updates


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

    def body(self, answer: Answer, ticket: Updates) -> dict[str, Any]:
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

    def last_chunks(self, answer: Answer, ticket: Updates) -> list[dict[str, Any]]:
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


def usage(answer: Answer, ticket: Updates) -> dict[str, Any]:
    """Tokens as the API counts them, and visual tokens before pruning and after each stage."""
    assert answer.usage is not None
    visual = {"patches": answer.usage.patches, "stages": list(ticket.stages)}
    prompt, new = answer.usage.prompt_tokens, len(answer.token_ids)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": ticket.cached_tokens, "star": visual},
    }
