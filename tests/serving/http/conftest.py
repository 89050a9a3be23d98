"""A real server on a real bundle, and the client that its users have."""

import base64
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from star_export.answer.pipeline import Pipeline, load
from star_export.serving.http.options import HttpOptions
from star_export.serving.http.server import Server, address, listen
from star_export.serving.options import ServiceOptions
from star_export.serving.service import Service
from star_export.validation.probes import make_probes

MODEL = "mini"
COLOR, PLACE = "What color is it?", "Where is the circle?"


@pytest.fixture(scope="session")
def folder(bundle: Callable[..., Path]) -> Path:
    """A trained bundle that takes several pictures."""
    return bundle("mini", max_images=3)


@pytest.fixture(scope="session")
def reference(folder: Path) -> Iterator[Pipeline]:
    """The same bundle without a server: what is right."""
    with load(folder, threads=1) as pipeline:
        yield pipeline


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two pictures that the model can read."""
    home = tmp_path_factory.mktemp("shapes")
    pictures = [probe.pictures[0] for probe in make_probes(2)]
    paths = [home / f"{number}.png" for number in range(2)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    return paths


def picture(path: Path) -> dict[str, Any]:
    """A message's part."""
    return {"type": "image_url", "image_url": {"url": data_url(path)}}


def data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def text(words: str) -> dict[str, Any]:
    """A message's part."""
    return {"type": "text", "text": words}


def asked(path: Path, words: str = COLOR) -> list[dict[str, Any]]:
    """A conversation of one question about one picture."""
    return [{"role": "user", "content": [picture(path), text(words)]}]


@contextmanager
def listening(service: Service, *, send_buffer: int | None = None, **options: Any) -> Iterator[str]:
    """The address of a server over a service, in a thread; a small buffer makes unread answers felt."""
    ready = threading.Event()
    chosen = HttpOptions(port=0, **options)
    with listen(chosen) as bound:
        if send_buffer:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = Server({MODEL: service}, chosen, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        assert ready.wait(60)
        where = address(bound)
        try:
            yield where
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def client_of(where: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{where}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 60, **options}
    )


@pytest.fixture(scope="session")
def loaded(folder: Path) -> Iterator[Pipeline]:
    """The pipeline of one service at a time."""
    with load(folder, threads=1) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def service(loaded: Pipeline) -> Iterator[Service]:
    with Service(loaded, ServiceOptions(max_slots=2, queue=1, timeout_s=60)) as service:
        yield service


@pytest.fixture(scope="module")
def where(service: Service) -> Iterator[str]:
    """The server's address; its limits on slow clients are short."""
    with listening(service, receive_timeout_s=2.0, max_body_mib=1) as found:
        yield found


@pytest.fixture(scope="module")
def client(where: str) -> openai.OpenAI:
    return client_of(where)


@pytest.fixture
def serve(service: Service) -> Iterator[Callable[..., str]]:
    """``serve(api_key="...")``: another server over the same service."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(listening(service, **options))
