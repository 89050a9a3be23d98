"""``POST /v1/chat/completions``: a body in, an answer or a stream of its pieces out."""

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from star_export.serving.admission import Place
from star_export.serving.http.asking import answered, submitted, updates, watched
from star_export.serving.http.body import Bodies
from star_export.serving.http.chat import ChatRequest, read_chat
from star_export.serving.http.completion import Completion
from star_export.serving.http.options import HttpOptions
from star_export.serving.http.pictures import picture_source
from star_export.serving.http.refusal import ApiError, refusal
from star_export.serving.http.reply import Reply
from star_export.serving.http.served import ServedModel
from star_export.serving.ticket import Answer, Updates

log = logging.getLogger("star_export.requests")

GONE = "the client has gone"


class Completions:
    """The endpoint, as an ASGI application.

    Args:
        services: What answers, by the model's name; the first where a request names none.
        options: Limits.
    """

    def __init__(self, services: Mapping[str, ServedModel], options: HttpOptions) -> None:
        self._services, self._options = services, options
        self._bodies = Bodies(options)
        # A thread for each request that has a place: few are busy, since the service prepares few at once.
        places = sum(service.places for service in services.values())
        self._threads = ThreadPoolExecutor(places, thread_name_prefix="star-export-prepare")

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever it is."""
        reply = Reply(send)
        chat: ChatRequest | None = None
        service: ServedModel | None = None
        try:
            async with AsyncExitStack() as stack:
                async with self._bodies.held(Request(scope, receive)) as body:
                    chat = await asyncio.to_thread(read_chat, body)
                    del body
                    name, service = find_model(self._services, chat.model)
                    gone = await stack.enter_async_context(watched(receive))
                    ticket = await self._submit(chat, service, gone)
                chat.messages.clear()  # pictures as text are large, and were read
                with ticket:
                    await _answer(chat, Completion(name, chat.usage_in_stream), ticket, service, reply)
        except Exception as error:  # the client gets it, whatever it is
            sent = None if chat is None else chat.sent
            closing = service is not None and not service.open
            await reply.refuse(refusal(error, sent=sent, closing=closing))

    async def _submit(self, chat: ChatRequest, service: ServedModel, gone: "asyncio.Task[None]") -> Updates:
        with service.enter() as place:
            work = partial(self._prepare, chat, service, place, gone)
            return await submitted(work, self._threads, gone)

    def _prepare(
        self, chat: ChatRequest, service: ServedModel, place: Place, gone: "asyncio.Task[None]"
    ) -> Updates:
        fetch = picture_source(chat.urls, service.card.max_images, self._options)
        query = chat.query(fetch)
        if self._options.log_prompts:
            log.info("asked: %s", msgspec.json.encode(query.prompt).decode())
        if gone.done():
            raise CancelledError(GONE)
        return service.submit(query, place, show=chat.show)


def find_model(services: Mapping[str, ServedModel], name: str | None) -> tuple[str, ServedModel]:
    """The model of this name, the first where none is named.

    Raises:
        ApiError: If there is none.
    """
    if name is None:
        return next(iter(services.items()))
    if name not in services:
        raise ApiError(
            404,
            f"there is no model {name!r} here; there is {', '.join(services)}",
            param="model",
            code="model_not_found",
        )
    return name, services[name]


async def _answer(
    chat: ChatRequest, completion: Completion, ticket: Updates, service: ServedModel, reply: Reply
) -> None:
    """Send an answer, at once or as it comes."""
    if not chat.stream:
        answer = _finished(await answered(ticket))
        more = await _more(chat, ticket, service)
        await reply.whole(completion.body(answer, ticket) | more)
        return
    begun = False
    async for update in updates(ticket):
        piece = ticket.rest if isinstance(update, Answer) else update
        if isinstance(update, Answer):
            _finished(update)
        if not begun:
            begun = True
            await reply.event(completion.first_chunk())
        if piece.text or piece.logprobs:
            await reply.event(completion.chunk(piece))
        if isinstance(update, Answer):
            *chunks, end = completion.last_chunks(update, ticket)
            for chunk in chunks:
                await reply.event(chunk)
            await reply.event(end | await _more(chat, ticket, service))
    await reply.done()


def _finished(answer: Answer) -> Answer:
    """The answer of who is still there."""
    if answer.finish_reason == "cancelled":
        raise CancelledError(GONE)
    return answer


async def _more(chat: ChatRequest, ticket: Updates, service: ServedModel) -> dict[str, Any]:
    """What a page draws, for who asked to be shown it."""
    if not chat.show:
        return {}
    return {"star": await asyncio.to_thread(service.shown, ticket)}
