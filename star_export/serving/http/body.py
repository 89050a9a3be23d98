"""Bodies of requests, as large and as slow as they may be."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError

from starlette.requests import ClientDisconnect, Request

from star_export.errors import BusyError
from star_export.serving.http.options import HttpOptions
from star_export.serving.http.refusal import ApiError, refusal

#: Bodies of the largest size that are held at once.
AT_ONCE = 8


class Bodies:
    """Reads bodies; all that are held share some memory.

    Args:
        options: How large and how slow they may be.
    """

    def __init__(self, options: HttpOptions) -> None:
        self._limit, self._seconds = options.max_body_mib << 20, options.receive_timeout_s
        self._held = 0

    @contextlib.asynccontextmanager
    async def held(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request with JSON, counted as long as the block lasts.

        Raises:
            ApiError: If it is of another kind, too large or too slow, or all memory is taken.
        """
        body = bytearray()
        try:
            self._check_headers(request)
            await self._receive(request, body)
            yield bytes(body)
        finally:
            self._held -= len(body)

    async def _receive(self, request: Request, body: bytearray) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                async for chunk in request.stream():
                    self._held += len(chunk)
                    body += chunk
                    self._check_size(len(body))
                    if self._held > AT_ONCE * self._limit:
                        raise refusal(BusyError("too many large requests are here already; try again later"))
        except TimeoutError as error:
            raise ApiError(408, f"the body took longer than {self._seconds:g} s; send it faster") from error
        except ClientDisconnect as error:
            raise refusal(CancelledError("the client has gone")) from error

    def _check_headers(self, request: Request) -> None:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # to another site, a browser sends this only after it has asked
            raise ApiError(415, f"the content type must be application/json, got {kind or 'none'}")
        if (coding := request.headers.get("content-encoding", "identity")) != "identity":
            raise ApiError(415, f"the body must not be compressed, got content-encoding {coding}")
        self._check_size(int(request.headers.get("content-length", "0")))

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            raise ApiError(
                413, f"the body may have {self._limit} bytes, got {size} or more; send smaller pictures"
            )
