"""Connections that are closed when the other side is too slow."""

import asyncio
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def patient_protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol with an end to its patience.

    Args:
        seconds: How long a request's head may take, what is left of a body once it is answered, and how long
            a client may leave unread what it is sent.
    """

    class Protocol(H11Protocol):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self._timers: dict[str, asyncio.TimerHandle] = {}

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._time_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._time_head()
            if self.conn.their_state is not h11.SEND_BODY:
                self._stop("rest")

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.SEND_BODY:  # who is cut off at once may not see why
                self._start("rest", self.transport.abort)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._start("unread", self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop("unread")

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            for name in list(self._timers):
                self._stop(name)

        def _time_head(self) -> None:
            if self.conn.their_state is h11.IDLE:
                self._start("head", self.transport.close)
            else:  # it is complete, or was nonsense
                self._stop("head")

        def _start(self, name: str, action: Callable[[], None]) -> None:
            if name not in self._timers:
                self._timers[name] = self.loop.call_later(seconds, action)

        def _stop(self, name: str) -> None:
            if name in self._timers:
                self._timers.pop(name).cancel()

    return Protocol
