"""Pictures from the web, from real servers: what is fetched, and what must not be."""

import io
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from star_export.errors import InputError
from star_export.serving import remote
from star_export.serving.http import pictures
from star_export.serving.remote import fetch, is_public

from .conftest import MODEL, client_of, picture, text

PUBLIC = "127.0.0.1"  # stands for a public address in the tests where one must be reached


def only_public(address: remote.Address) -> bool:
    return str(address) == PUBLIC


class Site(BaseHTTPRequestHandler):
    """A web server's paths."""

    content = b""
    asked: list[str] = []  # noqa: RUF012 (what this class is for)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path == "/slow":
            with suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b"HTTP/1.1 200 OK\r\n" if _ == 0 else b"X: y\r\n")
                    time.sleep(0.1)
        elif self.path == "/missing":
            self.send_error(404)
        else:
            body = self.content * (100 if self.path == "/large" else 1)
            self.send_response(200)
            if self.path != "/unsaid":
                self.send_header("Content-Length", str(len(body) + (self.path == "/cut")))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    held = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(held, "PNG")
    Site.content = held.getvalue()
    with ThreadingHTTPServer((PUBLIC, 0), Site) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{PUBLIC}:{server.server_port}"
        server.shutdown()


def get(url: str, *, seconds: float = 10.0, most: int = 10_000) -> bytes:
    return fetch(url, most=most, deadline=time.monotonic() + seconds, allowed=only_public)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1",
        "::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1", "::127.0.0.1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a00:1", "2002:a00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ],
)  # fmt: skip
def test_addresses_of_no_public_network_are_refused(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_asked(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_picture_is_fetched_where_that_is_allowed(site: str) -> None:
    assert get(f"{site}/a.png") == get(f"{site}/unsaid") == Site.content
    assert get(f"{site}/to/{site}/to/../b.png") == Site.content  # relative to where it is by then


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/large", "more than 10000 bytes"),
        ("/missing", "its server answers 404"),
        ("/cut", "IncompleteRead|1 bytes of it are missing"),
        ("/slow", "it took too long"),
        ("/to/ftp://127.0.0.1/x", "must begin with http:// or https://"),
        ("/to/file:///etc/passwd", "must begin with http:// or https://"),
        ("/to/http://127.0.0.2:1/", "127.0.0.2 is no public address"),
        ("/to/http://[::1]:1/", "::1 is no public address"),
        ("/to/http://[::ffff:127.0.0.2]:1/", "is no public address"),
        ("/to/http://2130706434/", "2130706434 is no public address"),
    ],
)
def test_what_is_not_fetched_is_said(site: str, path: str, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match=message):
        get(f"{site}{path}", seconds=1.0 if path == "/slow" else 10.0)
    assert time.monotonic() - began < 9


def test_a_circle_of_redirects_ends(site: str) -> None:
    Site.asked.clear()
    with pytest.raises(InputError, match="it was moved 4 times"):
        get(f"{site}/to/" + 6 * f"{site}/to/")
    assert len(Site.asked) == 4


def test_a_name_is_resolved_once_and_all_its_addresses_must_be_public(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that changes its mind gains nothing: the address that was checked is asked."""
    port = site.rpartition(":")[2]
    resolve, asked = socket.getaddrinfo, []
    answers = {"once.example": [PUBLIC], "both.example": [PUBLIC, "127.0.0.2"]}

    def rebinding(host: str, *rest: Any, **options: Any) -> Any:
        if host not in answers:
            return resolve(host, *rest, **options)
        asked.append(host)
        found = [resolve(address, *rest, **options)[0] for address in answers[host]]
        answers[host] = ["127.0.0.2"]
        return found

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert get(f"http://once.example:{port}/a.png") == Site.content
    with pytest.raises(InputError, match=r"both\.example is no public address"):
        get(f"http://both.example:{port}/a.png")
    assert asked == ["once.example", "both.example"]
    with pytest.raises(InputError, match=r"once\.example is no public address"):
        get(f"http://once.example:{port}/a.png")


def test_a_server_asks_no_neighbour_of_its_own(site: str, serve: Callable[..., str]) -> None:
    Site.asked.clear()
    client = client_of(serve(allow_remote_images=True))
    for host in (PUBLIC, "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "0x7f000001"):
        part = {"type": "image_url", "image_url": {"url": site.replace(PUBLIC, host)}}
        with pytest.raises(openai.BadRequestError, match="is no public address") as refused:
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": [part]}])  # type: ignore[typeddict-item]
        assert refused.value.param == "messages"
    assert Site.asked == []


def test_a_remote_picture_is_seen_as_a_sent_one_is(
    site: str, serve: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "red.png").write_bytes(Site.content)
    monkeypatch.setattr(pictures, "fetch", lambda url, **options: fetch(url, **options, allowed=only_public))
    client = client_of(serve(allow_remote_images=True))
    remote_part = {"type": "image_url", "image_url": {"url": f"{site}/a.png"}}
    answers = [
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": [part, text("What color is it?")]}],  # type: ignore[typeddict-item]
        )
        for part in (remote_part, picture(tmp_path / "red.png"))
    ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
