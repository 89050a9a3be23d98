"""The process that listens: its socket, its connections, its end."""

import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import FrameType

import uvicorn

from star_export.errors import DeviceError, PlatformError, option
from star_export.memory import map_large_blocks
from star_export.serving.http.app import make_app
from star_export.serving.http.connection import patient_protocol
from star_export.serving.http.guard import MAX_HEAD
from star_export.serving.http.options import HttpOptions
from star_export.serving.http.served import ServedModel

#: Seconds that a connection may be idle between two requests.
KEEP_ALIVE_S = 30


def listen(options: HttpOptions) -> socket.socket:
    """The server's address, taken before anything is loaded; nobody can connect yet.

    Raises:
        PlatformError: If it is taken or is none of this machine's.
    """
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((options.host, options.port))
    except OSError as error:
        raise PlatformError(
            f"cannot listen at {options.host}:{options.port}: {error.strerror or error}; give another "
            f"{option('port')} or {option('host')}"
        ) from error
    return bound


def address(bound: socket.socket) -> str:
    """Where clients find a server."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn over services: it lets nobody in any more as soon as it is told to end.

    Args:
        services: What answers, by the model's name.
        options: Limits.
        on_ready: Told when clients may connect.
    """

    def __init__(
        self, services: Mapping[str, ServedModel], options: HttpOptions, on_ready: Callable[[], None]
    ) -> None:
        self._services, self._on_ready = services, on_ready
        longest = max(service.options.timeout_s for service in services.values())
        config = uvicorn.Config(
            make_app(services, options),
            http=patient_protocol(options.receive_timeout_s),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=options.max_connections,
            h11_max_incomplete_event_size=MAX_HEAD,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(longest) + 1,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Finish what is here; a second Ctrl-C does not wait for it."""
        for service in self._services.values():
            service.drain()
        super().handle_exit(sig, frame)


def serve(
    start: Callable[[Callable[[DeviceError], None]], AbstractContextManager[Mapping[str, ServedModel]]],
    options: HttpOptions,
    *,
    on_ready: Callable[[str], None] = lambda _address: None,
) -> None:
    """Answer until SIGTERM or Ctrl-C, then finish what is here.

    Args:
        start: Loads the models and closes them, given what to tell when their GPU is lost.
        options: Where to listen, and limits.
        on_ready: Told the address when clients may connect.

    Raises:
        PlatformError: If the address cannot be had.
        DeviceError: If the GPU was lost: whoever started this process should start it again.
        StarExportError: If a model cannot be loaded.
    """
    map_large_blocks()
    lost: list[DeviceError] = []
    with listen(options) as bound, ExitStack() as stack:
        servers: list[Server] = []

        def on_lost(error: DeviceError) -> None:
            lost.append(error)
            for server in servers:
                server.should_exit = True

        services = stack.enter_context(start(on_lost))
        server = Server(services, options, lambda: on_ready(address(bound)))
        servers.append(server)
        server.should_exit = bool(lost)
        with _exits_are_the_servers():
            server.run(sockets=[bound])
    if lost:
        raise lost[0]


@contextmanager
def _exits_are_the_servers() -> Iterator[None]:
    """Signals that a server has obeyed end nothing more: it raises them again when it is done."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
