"""Clients that mean harm, against one server process: then it answers as before and holds nothing."""

import base64
import contextlib
import io
import json
import os
import re
import resource
import socket
import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from PIL import Image

from star_export.answer.pipeline import Pipeline
from tests.serving.gate import wait_until

from .conftest import COLOR, MODEL, asked, client_of, data_url, text

PATIENCE_S = 1.5
#: Memory may rise by so much over what the first answer took; a picture of the largest size has more.
GROWTH = 96 << 20
#: All that the log may hold, line by line.
LOGGED = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ \S+ \d{1,3} \d+ ms|Invalid HTTP request received\.|"
    r"Exceeded concurrency limit\.|"
    r"Unsupported upgrade request\.|No supported WebSocket library detected\..*|mini at http://\S+|next: .*"
)
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


class Victim:
    """The server, and how it fares."""

    def __init__(self, process: subprocess.Popen[str], log: Path, where: str) -> None:
        self.process, self.log, self.where = process, log, where
        self.memory = 0

    def connect(self) -> socket.socket:
        address = urlsplit(self.where)
        return socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=20)

    def tell(self, data: bytes) -> bytes:
        """What comes back until it closes; nothing more is sent."""
        with self.connect() as peer, contextlib.suppress(ConnectionError):
            peer.sendall(data)
            return everything(peer)
        return b""

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.where}/metrics", timeout=20) as response:
            lines = response.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"star_{name}{{")).split()[-1])

    @property
    def resident(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


def everything(peer: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):
        while data := peer.recv(65536):
            found += data
    return found


def chat(body: bytes, *headers: bytes) -> bytes:
    return CHAT + b"".join(headers) + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.fixture(scope="module")
def running(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    log = tmp_path_factory.mktemp("hostile") / "log"
    command = [sys.executable, "-m", "star_export.cli", "serve", str(folder), "--name", MODEL, "--port", "0"]
    limits = ["--max-slots", "2", "--queue", "6", "--max-body", "1", "--receive-timeout", str(PATIENCE_S)]
    with log.open("w") as written:
        process = subprocess.Popen(
            [*command, *limits, "--threads", "1", "--json"], stdout=-1, stderr=written, text=True
        )
    assert process.stdout is not None
    try:
        yield Victim(process, log, json.loads(process.stdout.readline())["address"])
    finally:
        process.terminate()
        assert process.wait(60) == 0


@pytest.fixture
def victim(running: Victim, shapes: list[Path], reference: Pipeline) -> Iterator[Victim]:
    """The server, which afterwards must be as it was."""
    right = reference.generate(shapes[0], COLOR).result().text
    client = client_of(running.where)

    def answers() -> bool:
        answer = client.chat.completions.create(model=MODEL, messages=asked(shapes[0]))  # type: ignore[arg-type]
        return answer.choices[0].message.content == right

    if not running.memory:
        assert answers()
        running.memory = running.resident
    written = running.log.stat().st_size
    yield running
    wait_until(lambda: running.metric("requests_present") == running.metric("slots_in_use") == 0)
    assert answers()
    assert running.resident < running.memory + GROWTH
    with running.log.open() as log:
        log.seek(written)
        assert [line for line in log.read().splitlines() if not LOGGED.fullmatch(line)] == []


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (HEALTH.replace(b"1.1", b"1.0") + b"\r\n", 200),
        (b"GET /health HTTP/1.0\r\n\r\n", 400),
        (b"GET /health HTTP/0.9\r\n\r\n", 400),
        (b"GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        (b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
        (HEALTH + b"Host: evil.example\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost@evil.example\r\nConnection: close\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: evil.example#localhost\r\nConnection: close\r\n\r\n", 400),
        (HEALTH + b"X-A: 1\r\n" * 5000 + b"\r\n", 431),
        (HEALTH + b"X : 1\r\n\r\n", 400),
        (HEALTH + b"X: a\x00b\r\n\r\n", 400),
        (CHAT + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        (CHAT + b"Content-Length: -1\r\n\r\n", 400),
        (CHAT + b"Content-Length: 99999999999999999999999\r\n\r\n", 400),
        (CHAT + b"Content-Length: 99999999999999\r\n\r\n", 413),
        (CHAT + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
        (CHAT + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (CHAT + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n", 400),
        (CHAT + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nhello\r\n0\r\n\r\n", 400),
        (CHAT + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\nhello", 400),
        (CHAT + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello, longer\r\n0\r\n\r\n", 400),
        (CHAT + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"x" * 400_000, 400),
        (CHAT + b"Transfer-Encoding: chunked\r\n\r\n" + 300 * (b"1000\r\n" + bytes(4096) + b"\r\n"), 413),
        (CHAT + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HEALTH + b"\r\n", 400),
        (CHAT + b"Expect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", 100),
        (HEALTH + b"Upgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n", 200),
    ],
)  # fmt: skip
def test_heads_and_frames_that_lie(victim: Victim, sent: bytes, status: int) -> None:
    answer = victim.tell(sent)
    assert answer.startswith(b"HTTP/1.1 %d" % status) or (status >= 400 and answer == b"")
    assert answer.count(b"HTTP/1.1 200") == (status == 200)  # nothing was smuggled behind it


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd", "/..%2f..%2f..%2fetc%2fpasswd", "/%2e%2e/%2e%2e/server.py", "//etc/passwd",
        "/..%5c..%5cserver.py", "/%00", "/app.js%00.css", "/./../server.py", "/%c0%ae%c0%ae/server.py",
        "/" + "a" * 9000, "/v1/models/../../server.py", "/%0d%0aX-Evil:%201",
        "/health%20200%200%20ms%0a2026-01-01%2000:00:00,000%20GET%20/forged",
    ],
)  # fmt: skip
def test_paths_lead_nowhere(victim: Victim, path: str) -> None:
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = victim.tell(head.encode())
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
    assert b"X-Evil" not in answer.partition(b"\r\n\r\n")[0]


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that says it is so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = ((b"IDAT", zlib.compress(bytes(99))), (b"IEND", b""))
    parts = [chunk(*each) for each in ((b"IHDR", head), *chunks, *end)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def resized(form: str, old: bytes, new: bytes) -> bytes:
    """A picture of 33 x 44 pixels whose head says something else."""
    held = io.BytesIO()
    Image.new("RGB", (33, 44)).save(held, form, **({"lossless": True} if form == "WEBP" else {}))
    assert old in held.getvalue()
    return held.getvalue().replace(old, new, 1)


BOMBS = {
    "png": png(60000, 60000),
    "png's text": png(8, 8, (b"zTXt", b"k\0\0" + zlib.compress(bytes(50 << 20), 9))),
    "png's profile": png(8, 8, (b"iCCP", b"k\0\0" + zlib.compress(bytes(50 << 20), 9))),
    "jpeg": resized("JPEG", struct.pack(">HH", 44, 33), struct.pack(">HH", 65500, 65500)),
    "gif": resized("GIF", b"87a" + struct.pack("<HH", 33, 44), b"87a" + struct.pack("<HH", 65535, 65535)),
    "webp": resized("WEBP", struct.pack("<I", 32 | 43 << 14)[:3], struct.pack("<I", 16383 | 16383 << 14)[:3]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_pictures_that_grow_are_not_unpacked(victim: Victim, kind: str) -> None:
    url = f"data:image/png;base64,{base64.b64encode(BOMBS[kind]).decode()}"
    part = {"type": "image_url", "image_url": {"url": url}}
    began = time.monotonic()
    messages: Any = [{"role": "user", "content": [part, text(COLOR)]}]
    with pytest.raises(openai.BadRequestError, match=r"pixels|not a picture|truncated|cannot"):
        client_of(victim.where).chat.completions.create(model=MODEL, messages=messages)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": "\xff\xfe"}', b'{"\xc0\xaf": 1}', b"\xef\xbb\xbf{}", b"{}\x00", b"{}{}",
        b'{"messages": ' + b"[" * 90_000 + b"]" * 90_000 + b"}",
        b'{"messages": [' + b'{"role": ' * 50_000 + b"1" + b"}" * 50_000 + b"]}",
        b'{"temperature": NaN, "messages": []}', b'{"temperature": Infinity, "messages": []}',
        b'{"temperature": 1e999, "messages": []}', b'{"seed": ' + b"9" * 100_000 + b', "messages": []}',
        b'{"' + b"k" * 900_000 + b'": 1}', b'{"model": "' + b"m" * 900_000 + b'", "messages": []}',
        b"{" + b",".join(b'"k%d": 1' % number for number in range(60_000)) + b"}",
        b'{"stop": ["' + b'","'.join([b"x"] * 200_000) + b'"], "messages": []}',
        b'{"keep": [' + b",".join([b"1"] * 300_000) + b'], "messages": []}',
    ],
)  # fmt: skip
def test_json_that_strains(victim: Victim, body: bytes) -> None:
    began = time.monotonic()
    head, _, said = victim.tell(chat(body, b"Connection: close\r\n")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert len(json.loads(said)["error"]["message"]) < 1000
    assert time.monotonic() - began < 5


def good(shapes: list[Path], **changes: Any) -> dict[str, Any]:
    return {"messages": asked(shapes[0]), "max_tokens": 2, **changes}


def test_the_last_of_equal_keys_counts_everywhere(victim: Victim, shapes: list[Path]) -> None:
    body = json.dumps(good(shapes)).encode()
    twice = body[:-1] + b', "max_tokens": 100000}'
    assert victim.tell(chat(twice, b"Connection: close\r\n")).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("word", ["a", "\U0001f600", "\n", "́", "<image>"])
def test_prompts_that_are_far_too_long_are_soon_refused(
    victim: Victim, shapes: list[Path], word: str
) -> None:
    length = 400_000 // len(json.dumps(word, ensure_ascii=False)[1:-1].encode())
    body = good(shapes, messages=asked(shapes[0], word * length))
    began = time.monotonic()
    said = victim.tell(chat(json.dumps(body, ensure_ascii=False).encode(), b"Connection: close\r\n"))
    assert said.startswith(b"HTTP/1.1 400")
    assert time.monotonic() - began < 10


def test_too_many_pictures(victim: Victim, shapes: list[Path]) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(shapes[0])}}
    many = [{"role": "user", "content": [part] * (900_000 // len(json.dumps(part)))}]
    said = victim.tell(chat(json.dumps(good(shapes, messages=many)).encode(), b"Connection: close\r\n"))
    assert said.startswith(b"HTTP/1.1 400")


def test_slow_heads_and_bodies_are_cut_together(victim: Victim) -> None:
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(victim.connect()) for _ in range(40)]
        for number, peer in enumerate(peers):
            peer.sendall(CHAT if number % 2 else CHAT + b"Content-Length: 1000\r\n\r\n")
        while time.monotonic() - began < PATIENCE_S + 1:
            for peer in peers:
                with contextlib.suppress(OSError):
                    peer.sendall(b"x")
            time.sleep(0.2)
        for number, peer in enumerate(peers):
            assert everything(peer).startswith(b"" if number % 2 else b"HTTP/1.1 408")
    assert time.monotonic() - began < PATIENCE_S + 10


def test_pipelined_requests_are_answered_in_their_order(victim: Victim, shapes: list[Path]) -> None:
    body = json.dumps(good(shapes)).encode()
    line = HEALTH + b"\r\n" + chat(body) + b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = victim.tell(60 * (HEALTH + b"\r\n") + line + HEALTH + b"Connection: close\r\n\r\n")
    found = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", answer)]
    assert found == [200] * 62 + [404, 200]


def test_streams_that_nobody_reads_hold_nobody_up(victim: Victim, shapes: list[Path]) -> None:
    body = json.dumps(good(shapes, stream=True, max_tokens=32, temperature=100.0, show=True)).encode()
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            peer = stack.enter_context(victim.connect())
            peer.sendall(chat(body))
        wait_until(lambda: victim.metric("requests_present") == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_at_once_leaves_nothing(victim: Victim, shapes: list[Path], stream: bool) -> None:
    body = chat(json.dumps(good(shapes, stream=stream, max_tokens=32)).encode())
    for number in range(400):
        with victim.connect() as peer:
            peer.sendall(body + (HEALTH + b"\r\n") * (number % 3) if number % 4 else body[: number * 5])
            if number % 2:  # with a reset
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif number % 10 == 0:
                peer.shutdown(socket.SHUT_WR)


def test_a_thousand_connections(victim: Victim) -> None:
    """Twice as many as are let in; those that say nothing are closed, and their places are free again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1200:
        pytest.skip(f"this process may have {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(victim.connect()) for _ in range(1000)]
        for peer in peers[::2]:
            with contextlib.suppress(OSError):
                peer.sendall(HEALTH)
        assert all(everything(peer) == b"" for peer in peers)
