"""``serve --upstream`` before the real tritonserver: what a local server answers, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from star_export.answer.pipeline import load
from star_export.errors import StarExportError
from star_export.serving.http.upstream import Upstream
from star_export.serving.options import ServiceOptions
from star_export.serving.query import Query
from star_export.serving.service import Service
from star_export.serving.triton.client import stream
from tests.serving.http.conftest import asked, listening
from tests.serving.page.conftest import Visit, browser, visit  # noqa: F401 (fixtures)
from tests.serving.triton.conftest import ENVIRONMENT, Running, launch

pytestmark = pytest.mark.triton

PICTURE = Path(__file__).parents[3] / "docs/shapes.png"
NUMBER, COLOR = "What number is written?", "What color is the square?"
#: Three hundred tokens of nonsense, slowly enough to be caught in the middle.
LONG = {"temperature": 100.0, "seed": 1, "max_tokens": 300}
BODIES: list[dict[str, Any]] = [
    {"messages": asked(PICTURE, NUMBER)},
    {"messages": asked(PICTURE, COLOR), "keep": [200, 7], "show": True},
    {"messages": asked(PICTURE, NUMBER), "temperature": 4.0, "top_p": 0.5, "seed": 5, "max_tokens": 9},
    {
        "messages": asked(PICTURE, NUMBER),
        "stop": "6",
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    {"messages": asked(PICTURE, NUMBER), "keep": 9999},
    {"messages": asked(PICTURE, NUMBER), "max_completion_tokens": 0},
    {"messages": asked(PICTURE, NUMBER), "timeout_s": 1e-3},
]


@contextmanager
def front(server: Running) -> Iterator[str]:
    """The address of ``star-export serve`` before a server."""
    command = [sys.executable, "-m", "star_export.cli", "serve", "--upstream", f"grpc://{server.grpc}"]
    with subprocess.Popen(
        [*command, "--name", "mini", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield str(json.loads(process.stdout.readline())["address"])
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


@pytest.fixture(scope="module")
def server(serve: Callable[..., Running], bundle: Callable[..., Path]) -> Running:
    return serve(bundle("mini", max_new_tokens=512), "--max-slots", "2", "--queue", "30")


@pytest.fixture(scope="module")
def where(server: Running) -> Iterator[str]:
    with front(server) as address:
        yield address


@pytest.fixture(scope="module")
def local(bundle: Callable[..., Path]) -> Iterator[Service]:
    options = ServiceOptions(max_slots=2, queue=30)
    with (
        load(bundle("mini", max_new_tokens=512), threads=1) as pipeline,
        Service(pipeline, options) as service,
    ):
        yield service


def send(where: str, body: dict[str, Any]) -> urllib.request.Request:
    head = {"Content-Type": "application/json"}
    return urllib.request.Request(f"{where}/v1/chat/completions", json.dumps(body).encode(), head)


def ask(where: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Status, and what does not differ from run to run; of a stream, its text and what follows."""
    try:
        with urllib.request.urlopen(send(where, body), timeout=120) as response:
            status, raw = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, raw = error.code, error.read()
    if not raw.startswith(b"data: "):
        return status, _timeless(json.loads(raw))
    events = [line.removeprefix(b"data: ") for line in raw.split(b"\n\n")]
    chunks = [_timeless(json.loads(event)) for event in events if event.startswith(b"{")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return status, ("".join(choice["delta"].get("content", "") for choice in choices), chunks[-2:])


def _timeless(answer: dict[str, Any]) -> dict[str, Any]:
    answer.get("star", {}).pop("timings_ms", None)
    return {name: value for name, value in answer.items() if name not in ("id", "created")}


def test_answers_are_those_of_a_local_server(where: str, local: Service) -> None:
    """One after the other, and sixteen at once."""
    with listening(local) as here:
        right = [ask(here, body) for body in BODIES]
    assert [ask(where, body) for body in BODIES] == right
    assert [status for status, _ in right] == [200, 200, 200, 200, 400, 400, 504]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda body: ask(where, body), BODIES * 4)) == right * 4


def test_a_photo_of_a_phone_is_answered(where: str, local: Service, tmp_path: Path) -> None:
    """More than gRPC takes by default, or Triton over HTTP."""
    photo = tmp_path / "photo.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (3000, 4000), np.uint8)
    Image.fromarray(noise).save(photo, quality=50)
    assert photo.stat().st_size > 5_000_000
    body = {"messages": asked(photo, NUMBER)}
    with listening(local) as here:
        assert ask(where, body) == ask(here, body)


def test_schemas_logprobs_and_follow_ups_come_over(server: Running, local: Service) -> None:
    data = PICTURE.read_bytes()
    said = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": NUMBER}]},
        {"role": "assistant", "content": "56"},
        {"role": "user", "content": COLOR},
    ]
    queries = [
        Query(image=data, prompt=NUMBER, schema={"enum": ["six", "seven"]}, top_logprobs=2),
        Query(image=data, prompt=NUMBER, reprune=False),
        Query(image=data, prompt=tuple(said), reprune=False),
        Query(image=data, prompt=tuple(said)),
    ]
    upstream = Upstream(server.grpc, 60.0)
    try:
        for query in queries:
            here, there = local.submit(query).answer(), upstream.submit(query).answer()
            found, right = (replace(one, timings_ms={}, logprobs=None) for one in (there, here))
            assert found == right
            pairs = list(zip(there.logprobs or (), here.logprobs or (), strict=True))
            assert len(pairs) == (len(here.token_ids) if query.schema else 0)
            for one, other in pairs:
                assert (one.token, one.bytes) == (other.token, other.bytes)
                assert [top.token for top in one.top_logprobs] == [top.token for top in other.top_logprobs]
                assert one.logprob == pytest.approx(other.logprob, rel=1e-5, abs=1e-5)  # float32
    finally:
        upstream.close()
    server.wait_for("star_prefix_cache_hits_total", 1)


def test_a_stream_that_the_client_drops_frees_its_slot(server: Running, where: str) -> None:
    cancelled = server.metric("star_requests_finished_total", outcome="cancelled")
    body = {"messages": asked(PICTURE, NUMBER), "stream": True, **LONG}
    with urllib.request.urlopen(send(where, body), timeout=60) as response:
        response.readline()
    server.wait_for("star_requests_finished_total", cancelled + 1, outcome="cancelled")
    server.wait_for("star_slots_in_use", 0)


def test_places_that_others_took_are_429(serve: Callable[..., Running], bundle: Callable[..., Path]) -> None:
    narrow = serve(bundle("mha", max_new_tokens=1024), "--max-slots", "1", "--queue", "1")
    done = threading.Event()

    def take() -> None:
        while not done.is_set():
            with suppress(StarExportError):  # the question below may have been there first
                list(stream(narrow.grpc, PICTURE, "Describe it."))

    with front(narrow) as where, ThreadPoolExecutor(2) as pool:
        taking = [pool.submit(take) for _ in range(2)]
        deadline, status = time.monotonic() + 30, 200
        try:
            while status == 200 and time.monotonic() < deadline:
                status, body = ask(where, {"messages": asked(PICTURE), "max_tokens": 1})
        finally:
            done.set()
        assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
        assert body["error"]["message"] == "2 requests are here already; try again later"
        assert not any(job.exception() for job in taking)


def test_a_tritonserver_that_dies(bundle: Callable[..., Path], tmp_path: Path) -> None:
    """In the middle of a stream: an event says so, and further requests are 503."""
    made = [
        ENVIRONMENT / "bin/star-export",
        "triton",
        bundle("mha", max_new_tokens=1024),
        "-o",
        tmp_path / "r",
    ]
    subprocess.run(made, check=True)
    code = "import sys, pathlib, star_export.serving.triton.tritonserver as server;"
    code += "server.serve(pathlib.Path(sys.argv[1]), sys.argv[2:])"
    dying = launch(tmp_path / "r", [str(ENVIRONMENT / "bin/python"), "-c", code, str(tmp_path / "r")])
    pid = dying.process.pid
    with front(dying) as where:
        body = {"messages": asked(PICTURE), "stream": True}
        with urllib.request.urlopen(send(where, body), timeout=60) as response:
            response.readline()
            (child,) = children(pid)
            stubs = children(child)
            os.kill(child, signal.SIGKILL)
            *_, last = (line for line in response.read().split(b"\n\n") if line)
        error = json.loads(last.removeprefix(b"data: "))["error"]
        gone = "the server behind this one does not answer; try again later"
        assert (error["code"], error["message"]) == ("upstream_unreachable", gone)
        assert ask(where, body) == (503, {"error": error})
    assert dying.process.wait(30) != 0
    for stub in stubs:  # they may outlive it
        with suppress(ProcessLookupError):
            os.kill(stub, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """Of all threads of a process."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]


def test_the_page_is_that_of_a_local_server(
    where: str,
    local: Service,
    visit: Callable[..., Visit],  # noqa: F811
) -> None:
    """Asked, drawn, asked again with another budget, gone on with, and refused."""
    page = visit(where)
    page.set_input_files("#files", PICTURE)
    page.ask(NUMBER)
    page.locator("#keep").fill("16")
    page.locator(".answer:nth-child(2) .dropped").wait_for()
    assert (page.drawn(0), page.drawn(1)) == (64, 16)
    page.show("stage 1")
    assert (page.drawn(0), page.drawn(1)) == (518, 518)
    page.get_by_label("Keep the same patches").check()
    page.ask(COLOR)
    assert page.drawn() == 16
    with listening(local) as beside:
        for body, said in zip(page.asked(), page.locator(".text").all_inner_texts(), strict=True):
            whole = {name: value for name, value in body.items() if not name.startswith("stream")}
            assert ask(beside, whole)[1]["choices"][0]["message"]["content"] == said
    assert all(fact != "\u2013" for fact in page.locator(".turn").first.locator("dd").all_inner_texts())
    page.set_input_files("#files", {"name": "x.png", "mimeType": "image/png", "buffer": b"nothing"})
    page.fill("#question", NUMBER)
    page.keyboard.press("Enter")
    page.locator(".error", has_text="is not a picture that Pillow can read").wait_for()
