"""Connections that are closed when the other side is too slow."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def patient_protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol with an end to its patience.

    Args:
        seconds: How long a request's head may take, and how long a client may leave unread what it is sent.
    """

    class Protocol(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._time_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._time_head()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._unread = _stopped(self._unread)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._head, self._unread = _stopped(self._head), _stopped(self._unread)

        def _time_head(self) -> None:
            if self.conn.their_state is not h11.IDLE:  # it is complete, or was nonsense
                self._head = _stopped(self._head)
            elif self._head is None:
                self._head = self.loop.call_later(seconds, self.transport.close)

    return Protocol


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
