"""What every request goes through: headers that browsers obey, the log, the key."""

import asyncio
import contextlib
import hmac
import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from star_export.serving.http.body import AT_ONCE
from star_export.serving.http.options import HttpOptions
from star_export.serving.http.refusal import ApiError
from star_export.serving.http.reply import error_response

log = logging.getLogger("star_export.requests")

#: The page loads its own three files, draws pictures out of memory, and asks this server: nothing else.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
#: Bytes that headers may have; h11 holds to it only where they come in several reads.
MAX_HEAD = 16 << 10
LOCAL = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """Puts headers on responses, logs each in a line, and lets no foreign name reach a local server.

    A page elsewhere whose name was made to point at this machine could otherwise read answers.

    Args:
        app: What is behind it.
        options: Where the server listens.
    """

    def __init__(self, app: ASGIApp, options: HttpOptions) -> None:
        self._app, self._options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            refused = self._refused(scope)
            await (_ending(refused) if refused else self._app)(scope, receive, guarded)
        finally:
            took = 1000 * (time.perf_counter() - began)
            path = scope["raw_path"].decode("ascii")  # as it was sent: without spaces, on one line
            log.info("%s %s %d %.0f ms", scope["method"], path, status, took)

    def _refused(self, scope: Scope) -> ApiError | None:
        """Why a request goes no further."""
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
            # Whoever is in between may have read the other of the two, and find another request in the body.
            return ApiError(400, "a request has Content-Length or Transfer-Encoding, not both")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEAD:
            return ApiError(431, f"the headers may have {MAX_HEAD} bytes; send fewer")
        if not self._known(scope):
            return ApiError(400, f"this server is local: ask it as {LOCAL[0]}, or start it for another host")
        return None

    def _known(self, scope: Scope) -> bool:
        """Whether the request names this machine, where only it can connect."""
        given = Headers(scope=scope).get("host", "").lower()
        host = given if given.endswith("]") else given.rpartition(":")[0] or given
        return not self._options.loopback or host in (*LOCAL, self._options.host)


class ReadRest:
    """Reads what a client still sends before it hears the end of a refusal.

    A connection that is closed while the client sends is reset, and what it was told is lost.

    Args:
        app: What is behind it.
        options: It reads as long as a body may take, and as many bytes as are held at once.
    """

    def __init__(self, app: ASGIApp, options: HttpOptions) -> None:
        self._app, self._seconds = app, options.receive_timeout_s
        self._most = AT_ONCE * options.max_body_mib << 20

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        over = "expect" in Headers(scope=scope)  # who asks first, has sent nothing

        async def received() -> Message:
            nonlocal over
            message = await receive()
            over = not message.get("more_body", False)
            return message

        async def sent(message: Message) -> None:
            nonlocal over
            over = over or message.get("status") == 408  # it has waited long enough
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                left = self._most
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._seconds):
                        while not over and left > 0:
                            left -= len((await received()).get("body", b""))
            await send(message)

        await self._app(scope, received, sent)


def _ending(refused: ApiError) -> Response:
    """A refusal that ends the connection."""
    response = error_response(refused)
    response.headers["Connection"] = "close"
    return response


class KeyCheck:
    """Lets in who has the key, and everybody to what is not the API: the page, ``/health``, ``/metrics``.

    Args:
        app: What is behind it.
        key: What clients must send as a bearer token.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it before its body is read."""
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode("latin-1"), self._key):
                message = "the API key is missing or wrong; send the header Authorization: Bearer KEY"
                refused = error_response(ApiError(401, message, code="invalid_api_key"))
                refused.headers["WWW-Authenticate"] = "Bearer"
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)
