"""Sending to one client: JSON, or a stream of it."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Send

from star_export.serving.http.refusal import ApiError

DONE = b"data: [DONE]\n\n"


def json_response(values: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """One JSON object."""
    body = msgspec.json.encode(values)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """An error as clients read it."""
    return json_response(error.body, status=error.status, headers=error.headers)


class Reply:
    """What is sent to one client, which has some seconds to take each part of it.

    Args:
        send: ASGI's.
        seconds: How long a part may take.
    """

    def __init__(self, send: Send, seconds: float) -> None:
        self._send, self._seconds, self._streams = send, seconds, False

    async def whole(
        self, values: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """One JSON object."""
        body = msgspec.json.encode(values)
        given = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        await self._start(status, given)
        await self._part(body)

    async def event(self, values: Any) -> None:
        """One object of a stream, which begins with the first."""
        if not self._streams:
            self._streams = True
            given = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
            await self._start(200, given)
        await self._part(b"data: " + msgspec.json.encode(values) + b"\n\n", more=True)

    async def done(self) -> None:
        """The end of a stream."""
        await self._part(DONE)

    async def refuse(self, error: ApiError) -> None:
        """An error, also in the middle of a stream."""
        if self._streams:
            await self.event(error.body)
            await self._part(b"")
        else:
            await self.whole(error.body, status=error.status, headers=error.headers)

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _part(self, body: bytes, *, more: bool = False) -> None:
        async with asyncio.timeout(self._seconds):
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
