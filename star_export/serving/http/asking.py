"""Requests that are awaited: no thread waits for an answer, and a client that goes lets its slot go."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future

from starlette.types import Receive

from star_export.serving.ticket import Answer, Piece, Updates


@contextlib.asynccontextmanager
async def watched(receive: Receive) -> AsyncIterator["asyncio.Task[None]"]:
    """A task that is done when the client has gone; its body must have been read."""
    task = asyncio.create_task(_gone(receive))
    try:
        yield task
    finally:
        task.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def submitted(submit: Callable[[], Updates], threads: Executor, gone: "asyncio.Task[None]") -> Updates:
    """A ticket, whose request is prepared in a thread; cancelled as soon as the client goes."""
    work: Future[Updates] = threads.submit(submit)
    try:
        ticket = await asyncio.wrap_future(work)
    except asyncio.CancelledError:
        if work.done() and not work.cancelled() and (error := work.exception()):
            raise error from None  # asyncio has made its own of the work's CancelledError
        work.add_done_callback(_let_go)  # the server ends; the thread goes on
        raise
    gone.add_done_callback(lambda _: ticket.cancel())
    return ticket


def _let_go(work: "Future[Updates]") -> None:
    if not work.cancelled() and work.exception() is None:
        work.result().cancel()


async def updates(ticket: Updates) -> AsyncIterator[Piece | Answer]:
    """Pieces of text as they come, and the answer.

    Raises:
        StarExportError: If the request failed; another exception if a library did.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended before the request
            loop.call_soon_threadsafe(changed.set)

    ticket.watch(tell)
    while True:
        await changed.wait()
        changed.clear()
        while (update := ticket.next(0)) is not None:
            yield update
            if isinstance(update, Answer):
                return


async def answered(ticket: Updates) -> Answer:
    """The finished request; see :func:`updates`."""
    async for update in updates(ticket):
        if isinstance(update, Answer):
            return update
    raise AssertionError("a ticket ends with its answer")
