"""What is refused, as OpenAI's client and bare sockets see it."""

import base64
import json
import socket
import struct
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
from PIL import Image

from star_export.errors import SettingsError
from star_export.serving.http.options import HttpOptions
from star_export.serving.service import Service
from tests.serving.gate import wait_until

from .conftest import MODEL, asked, client_of, text


def bomb() -> bytes:
    """A small PNG that says it has 30000 x 30000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    rest = chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + rest


def about(url: str) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {"messages": [{"role": "user", "content": [part, text("What?")]}]}


def turn(role: str, **values: Any) -> dict[str, Any]:
    return {"role": role, "content": "x", **values}


def of_schema(schema: object) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def encoded(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"n": 2}, "n", "n is not served here; leave it out, or give 1"),
        ({"n": True}, "n", "n is not served here"),
        ({"logprobs": 3}, "logprobs", "logprobs: expected bool, got int, found 3"),
        ({"top_logprobs": 2}, "top_logprobs", 'top_logprobs needs "logprobs": true'),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs must be from 0 to 20, got 21"),
        ({"response_format": {"type": "regex"}}, "response_format.type", "invalid value 'regex'"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "required field json_schema"),
        (of_schema({"type": "circle"}), "response_format", "response_format cannot be used: "),
        (of_schema({"x": "y" * 65536}), "response_format", "65545 characters, at most 65536 are taken"),
        (of_schema([]), "response_format.json_schema.schema", "expected object, got array"),
        ({"tools": [{"type": "function"}]}, "tools", "leave it out, or give []; JSON of a schema is"),
        ({"audio": {"voice": "x"}}, "audio", "audio is not served here; leave it out"),
        ({"temprature": 1}, "temprature", "unknown field temprature; did you mean temperature?"),
        ({"best_of": 1}, "best_of", "unknown field best_of"),
        ({"temperature": -1}, "temperature", "temperature must be 0 (greedy) or a number from 0.001, got -1"),
        ({"temperature": "hot"}, "temperature", "temperature: expected float, got str, found 'hot'"),
        ({"top_p": 0}, "top_p", "top_p must be above 0 and at most 1, got 0"),
        ({"seed": -1}, "seed", "seed must not be negative, got -1"),
        ({"seed": 1.5}, "seed", "seed: expected int | null, got float, found 1.5"),
        ({"max_tokens": 33}, "max_tokens", "max_tokens must be from 1 to 32, got 33; for more, build"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "max_completion_tokens must be from 1 to 32"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "differ; give one of them"),
        ({"stop": ["a"] * 17}, "stop", "stop takes at most 16 strings"),
        ({"stop": 3}, "stop", "stop: expected str | array, got int, found 3"),
        ({"keep": 0}, "keep", "keep must be at least 1 visual token, got 0"),
        ({"keep": [100]}, "keep", "keep"),
        ({"timeout_s": 0}, "timeout_s", "timeout_s must be above 0, got 0"),
        ({"stream_options": {"include_usage": True}}, "stream_options", 'needs "stream": true'),
        ({"messages": []}, "messages", "no picture is given"),
        ({"messages": [{"role": "user", "content": "What?"}]}, "messages", "no picture is given; put one"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "user or assistant"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "missing required field content"),
        ({"messages": [turn("user", name="me"), turn("assistant"), turn("user", name="you")]},
         "messages[2].name", "no place for names, which tell 'me' and 'you' apart"),
        ({"messages": [turn("assistant", content=None, tool_calls=[{"id": "1"}])]},
         "messages[0].tool_calls", "messages[0].tool_calls is not served here; leave it out"),
        ({"messages": [turn("user", content=[{"type": "input_image"}])]},
         "messages[0].content[0].type", "'input_image'; it may be text or image_url"),
        ({"messages": [turn("user", cache=1)]}, "messages[0].cache", "unknown"),
        ({"messages": [{"role": "user", "content": "x"}] * 257}, "messages", "256 at most, got 257"),
        (about("/etc/passwd"), "messages", "a picture must be a data URL such as data:image/png;base64,..."),
        (about("file:///etc/passwd"), "messages", "must be a data URL"),
        (about("http://127.0.0.1/x.png"), "messages", "this server fetches no pictures from the web"),
        (about("data:image/png;base64,QUJD"), "messages", "not a picture that Pillow can read"),
        (about("data:image/png,raw"), "messages", "base64 or a data URL of base64"),
        (about(encoded(bomb())), "messages", "too many pixels; the limit is 100000000"),
        ({"messages": "hello"}, "messages", "messages: expected array, got str"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_by_name(
    client: openai.OpenAI, shapes: list[Path], change: dict[str, Any], param: str, message: str
) -> None:
    body = {"messages": asked(shapes[0]), **change}
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/chat/completions", body=body, cast_to=object)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert message in refused.value.body["message"]  # type: ignore[index]


def test_too_many_pictures_are_not_even_decoded(client: openai.OpenAI) -> None:
    four = 4 * about("data:image/png;base64,QUJD")["messages"]
    with pytest.raises(openai.BadRequestError, match="this bundle takes at most 3, got 4 pictures"):
        client.chat.completions.create(model=MODEL, messages=four)


def test_an_unknown_model_is_not_found(client: openai.OpenAI, shapes: list[Path]) -> None:
    for ask in (
        lambda: client.chat.completions.create(model="gpt", messages=asked(shapes[0])),  # type: ignore[arg-type]
        lambda: client.models.retrieve("gpt"),
    ):
        with pytest.raises(openai.NotFoundError, match="no model 'gpt' here; there is mini") as refused:
            ask()
        assert (refused.value.param, refused.value.code) == ("model", "model_not_found")


def test_a_key_lets_in(serve: Callable[..., str], shapes: list[Path]) -> None:
    where = serve(api_key="secret")
    assert client_of(where, api_key="secret").models.list().data
    any_case = {"Authorization": "bearer secret"}
    assert (
        urllib.request.urlopen(urllib.request.Request(f"{where}/v1/models", headers=any_case)).status == 200
    )
    for wrong in ("", "secre", "secret2", "sécret"):
        request = urllib.request.Request(f"{where}/v1/models", headers={"Authorization": f"Bearer {wrong}"})
        status, body, headers = sent(request)
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")
        assert headers["WWW-Authenticate"] == "Bearer"
    request = urllib.request.Request(f"{where}/v1/chat/completions", data=bytes(30 << 20))
    assert sent(request)[0] == 401  # told to a client that sends first and then reads
    for path in ("/health", "/metrics", "/"):  # for probes, Prometheus, and people who then type the key
        assert urllib.request.urlopen(f"{where}{path}").status == 200


def sent(request: urllib.request.Request) -> tuple[int, Any, Any]:
    """Status, JSON and headers of what is refused."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    return refused.value.code, json.loads(refused.value.read()), refused.value.headers


@pytest.mark.parametrize(
    ("path", "method", "headers", "body", "status", "message"),
    [
        ("/v1/chat/completions", "GET", {}, None, 405, "there are POST /v1/chat/completions, GET"),
        ("/v1/models", "POST", {}, b"{}", 405, "this path or method is not served"),
        ("/chat/completions", "POST", {}, b"{}", 405, "there are POST /v1/chat/completions, GET"),
        ("/nothing", "GET", {}, None, 404, "this path or method is not served"),
        ("/v1/chat/completions", "POST", {"Content-Type": "text/plain"}, b"{}", 415, "json, got text/plain"),
        ("/v1/chat/completions", "POST", {"Content-Encoding": "gzip"}, b"{}", 415, "must not be compressed"),
        ("/v1/chat/completions", "POST", {}, b" " * (1 << 20) + b"{}", 413, "may have 1048576 bytes"),
        ("/v1/chat/completions", "POST", {}, b"{", 400, "the body cannot be read: it is not JSON"),
        ("/v1/chat/completions", "POST", {}, b'{"messages": "\xff"}', 400, "it is not JSON"),
        ("/v1/chat/completions", "POST", {}, b'{"messages": "\\ud800"}', 400, "it is not JSON"),
        ("/v1/chat/completions", "POST", {}, b"[" * 100000, 400, "it is not JSON"),
        ("/v1/chat/completions", "POST", {}, b"[]", 400, "the body must be a JSON object"),
        ("/v1/chat/completions", "POST", {}, b"{}", 400, "messages is missing"),
        ("/health", "GET", {"X": "a" * 20000}, None, 431, "the headers may have 16384 bytes"),
        ("/health", "GET", {"Host": "evil.example"}, None, 400, "this server is local"),
        ("/../../etc/passwd", "GET", {}, None, 404, "this path or method is not served"),
    ],
)  # fmt: skip
def test_http_that_is_not_served_is_refused_in_json(
    where: str, path: str, method: str, headers: dict[str, str], body: bytes | None, status: int, message: str
) -> None:
    given = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(f"{where}{path}", data=body, headers=given, method=method)
    found, error, _ = sent(request)
    assert found == status
    assert message in error["error"]["message"]
    assert set(error["error"]) == {"message", "type", "param", "code"}


def test_a_local_server_answers_to_local_names(where: str, serve: Callable[..., str]) -> None:
    def status(address: str, host: str) -> int:
        return int(
            urllib.request.urlopen(urllib.request.Request(f"{address}/health", headers={"Host": host})).status
        )

    for host in ("localhost", "LocalHost:80", "127.0.0.1:8000", "[::1]", "[::1]:8000"):
        assert status(where, host) == 200
    for host in ("evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", ":8000", "[::2]"):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            status(where, host)
    assert status(serve(host="0.0.0.0"), "model.example") == 200


def test_other_sites_may_ask_only_where_they_are_let(where: str, serve: Callable[..., str]) -> None:
    def preflight(address: str) -> Any:
        headers = {
            "Origin": "https://good.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,authorization",
        }
        url = f"{address}/v1/chat/completions"
        return urllib.request.Request(url, headers=headers, method="OPTIONS")

    assert sent(preflight(where))[0] == 405
    open_ = serve(cors_origins=("https://good.example",), api_key="secret")
    with urllib.request.urlopen(preflight(open_)) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "https://good.example"
    evil = preflight(open_)
    evil.add_header("Origin", "https://evil.example")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(evil)
    assert "Access-Control-Allow-Origin" not in refused.value.headers


def connect(where: str) -> socket.socket:
    address = urlsplit(where)
    return socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=20)


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def until_closed(peer: socket.socket) -> bytes:
    found = b""
    while data := peer.recv(4096):
        found += data
    return found


def test_slow_clients_are_let_go(where: str, service: Service) -> None:
    began = time.monotonic()
    with connect(where) as silent, connect(where) as head, connect(where) as body:
        head.sendall(HEAD)
        body.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        assert body.recv(4096).startswith(b"HTTP/1.1 408")
        assert until_closed(silent) == until_closed(head) == b""
    assert 1.5 < time.monotonic() - began < 15
    assert service.stats().present == 0


def test_who_does_not_read_is_let_go(serve: Callable[..., str], tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")  # three of them are shown in some 110 kB
    address = urlsplit(serve(send_buffer=4096, receive_timeout_s=1.0))
    messages = asked(tmp_path / "noise.png")
    messages[0]["content"] += 2 * messages[0]["content"][:1]
    body = json.dumps({"messages": messages, "show": True, "max_tokens": 1}).encode()
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        peer.settimeout(30)
        peer.connect((address.hostname, address.port))
        peer.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert peer.recv(12) == b"HTTP/1.1 200"
        time.sleep(3)
        head, _, rest = until_closed(peer).partition(b"\r\n\r\n")
    (length,) = (int(line[15:]) for line in head.splitlines() if line.startswith(b"content-length"))
    assert len(rest) < length  # the server did not wait for the whole to be read


def test_what_is_no_http_is_refused(where: str) -> None:
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n"):
        with connect(where) as peer:
            peer.sendall(nonsense)
            assert until_closed(peer).startswith(b"HTTP/1.1 400")
    with connect(where) as peer, suppress(ConnectionError):  # it is cut while more arrives
        peer.sendall(HEAD + b"X: " + b"a" * 400_000)
        assert until_closed(peer).startswith(b"HTTP/1.1 400")
    assert urllib.request.urlopen(f"{where}/health").status == 200


def test_damaged_requests_harm_nobody(
    where: str, client: openai.OpenAI, shapes: list[Path], service: Service
) -> None:
    """Cut, with bytes that are other ones, of lengths that they do not have; some leave without waiting."""
    random = np.random.default_rng(11)
    body = json.dumps({"messages": asked(shapes[0]), "max_tokens": 1, "stream": True}).encode()
    right = client.chat.completions.create(model=MODEL, messages=asked(shapes[0]))  # type: ignore[arg-type]
    for number in range(150):
        length = len(body) + int(random.integers(-50, 50)) * (number % 3 == 0)
        data = bytearray(HEAD + f"Content-Length: {length}\r\n\r\n".encode() + body)
        for place in random.integers(0, 400 if number % 2 else len(data), number % 4):
            data[place] = int(random.integers(256))
        with connect(where) as peer, suppress(ConnectionError):
            peer.sendall(data[: int(random.integers(1, len(data))) if number % 5 == 0 else None])
            if number % 7 == 0:
                peer.settimeout(0.2)
                with suppress(TimeoutError):
                    assert peer.recv(12)[:9] in (b"HTTP/1.1 ", b"")
    wait_until(lambda: service.stats().present == 0)
    again = client.chat.completions.create(model=MODEL, messages=asked(shapes[0]))  # type: ignore[arg-type]
    assert again.choices == right.choices


def test_who_holds_all_connections_holds_them_for_a_while(serve: Callable[..., str]) -> None:
    where = serve(max_connections=4, receive_timeout_s=1.0)
    idle = [connect(where) for _ in range(4)]
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"{where}/health")
    assert [until_closed(peer) for peer in idle] == [b""] * 4
    assert urllib.request.urlopen(f"{where}/health").status == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 65536}, "port must be from 0 to 65535, got 65536"),
        ({"max_body_mib": 0}, "max_body_mib must be at least 1, got 0"),
        ({"max_connections": 0}, "max_connections must be at least 1, got 0"),
        ({"receive_timeout_s": float("nan")}, "receive_timeout_s must be a finite number above 0, got nan"),
        ({"api_key": ""}, "api_key must be printable ASCII, not empty"),
        ({"api_key": "secret\n"}, "with no space or line end around"),  # of a file that became a variable
        ({"cors_origins": ("https://a.example/",)}, "without a path .* got https://a.example/"),
        ({"cors_origins": ("a.example",)}, "cors_origin must be as browsers write it"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        HttpOptions(**options)
