"""Clients that go, clients that find no place, and servers that end."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from star_export.answer.pipeline import Pipeline
from star_export.contract import DECODE, VISION
from star_export.errors import DeviceError, PlatformError, SettingsError
from star_export.serving.http.models import Models
from star_export.serving.http.options import HttpOptions
from star_export.serving.http.server import serve
from star_export.serving.options import ServiceOptions
from star_export.serving.service import Service
from tests.serving.gate import Gate, lose_gpu, wait_until

from .conftest import MODEL, asked, client_of, listening

LONG = {"temperature": 100.0, "seed": 1, "max_tokens": 32}


@pytest.fixture(scope="module")
def service(loaded: Pipeline) -> Iterator[Service]:
    """Room for one request."""
    with Service(loaded, ServiceOptions(max_slots=1, queue=0, timeout_s=60)) as service:
        yield service


def send(where: str, messages: list[dict[str, Any]], **options: Any) -> http.client.HTTPConnection:
    """Ask, and wait for nothing."""
    address = urlsplit(where)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    body = json.dumps({"messages": messages, **LONG, **options})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_slot_is_free_one_step_after_its_client_went(
    service: Service,
    loaded: Pipeline,
    where: str,
    shapes: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
) -> None:
    before = service.stats()
    gate = Gate(loaded, monkeypatch, DECODE)
    connection = send(where, asked(shapes[0]), stream=stream)
    gate.wait()
    (ticket,) = service._scheduler._running.values()
    connection.close()
    wait_until(lambda: ticket.cancelled)
    gate.go(1)
    wait_until(lambda: service.stats().present == 0)
    after = service.stats()
    assert after.finished["cancelled"] == before.finished["cancelled"] + 1
    assert after.tokens == before.tokens + 2  # of prefill, and of the step that had begun


def test_a_client_that_goes_before_its_prompt_was_read_costs_no_prefill(
    service: Service, loaded: Pipeline, where: str, shapes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = service.stats()
    gate = Gate(loaded, monkeypatch, VISION)
    connection = send(where, asked(shapes[1]), stream=True)
    gate.wait()
    ticket = (service._scheduler._arriving or pytest.fail("nothing arrives")).ticket
    connection.close()
    wait_until(lambda: ticket.cancelled)
    gate.go(1)
    wait_until(lambda: service.stats().present == 0)
    assert service.stats().first_tokens == before.first_tokens


def test_a_client_that_goes_while_it_waits_to_be_prepared_is_not_queued(
    service: Service, where: str, shapes: list[Path]
) -> None:
    before = service.stats()
    held = [service._preparing.acquire(timeout=20) for _ in range(os.cpu_count() or 1)]
    connection = send(where, asked(shapes[0]))
    wait_until(lambda: service.stats().present == 1)
    connection.close()
    for _ in held:
        service._preparing.release()
    wait_until(lambda: service.stats().present == 0)
    assert service.stats().tokens <= before.tokens + 2


def test_half_a_connection_is_none(
    service: Service, loaded: Pipeline, where: str, shapes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(loaded, monkeypatch, DECODE)
    connection = send(where, asked(shapes[0]), stream=True)
    gate.wait()
    connection.sock.shutdown(socket.SHUT_WR)
    (ticket,) = service._scheduler._running.values()
    wait_until(lambda: ticket.cancelled)
    gate.go(1)
    wait_until(lambda: service.stats().present == 0)


def test_who_finds_no_place_is_told_to_try_again(
    service: Service, loaded: Pipeline, where: str, shapes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(loaded, monkeypatch, DECODE)
    first = send(where, asked(shapes[0]), max_tokens=2)
    gate.wait()
    with pytest.raises(openai.RateLimitError) as refused:
        client_of(where).chat.completions.create(model=MODEL, messages=asked(shapes[0]))  # type: ignore[arg-type]
    assert refused.value.response.headers["Retry-After"] == "1"
    assert refused.value.code == "rate_limit_exceeded"
    with ThreadPoolExecutor(1) as threads:  # the client waits so long of its own accord
        patient = client_of(where, max_retries=5).chat.completions
        again = threads.submit(patient.create, model=MODEL, messages=asked(shapes[0]), max_tokens=1)  # type: ignore[arg-type]
        gate.go(100)
        assert json.loads(first.getresponse().read())["usage"]["completion_tokens"] == 2
        assert again.result(60).usage.completion_tokens == 1


def test_a_request_that_takes_too_long_ends_its_stream_with_an_error(
    service: Service, loaded: Pipeline, where: str, shapes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(where)
    gate = Gate(loaded, monkeypatch, DECODE)
    options: dict[str, Any] = {**LONG, "stream": True, "extra_body": {"timeout_s": 1.0}}
    stream = client.chat.completions.create(model=MODEL, messages=asked(shapes[0]), **options)
    gate.wait()
    (ticket,) = service._scheduler._running.values()
    wait_until(lambda: ticket.over)
    gate.go(1)
    with pytest.raises(openai.APIError, match="the request took longer than 1 s"):
        list(stream)


def test_a_server_that_drains_says_so(loaded: Pipeline, shapes: list[Path]) -> None:
    with Service(loaded, ServiceOptions(max_slots=1, queue=0)) as own, listening(own) as where:
        assert urllib.request.urlopen(f"{where}/health").read() == b'{"status":"ready"}'
        own.drain()
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{where}/health")
        with pytest.raises(openai.InternalServerError, match="shutting down") as refused:
            client_of(where).chat.completions.create(model=MODEL, messages=asked(shapes[0]))  # type: ignore[arg-type]
        assert (refused.value.status_code, refused.value.code) == (503, "shutting_down")


def test_a_lost_gpu_ends_the_server(
    loaded: Pipeline, shapes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever started it starts it again: this process cannot use the GPU any more."""
    found: list[Any] = []

    @contextmanager
    def start(lost: Callable[[DeviceError], None]) -> Iterator[dict[str, Service]]:
        with Service(loaded, ServiceOptions(max_slots=1), on_lost=lost) as service:
            yield {MODEL: service}

    def ask(where: str) -> None:
        lose_gpu(loaded, monkeypatch, lambda: True)
        try:
            client_of(where).chat.completions.create(model=MODEL, messages=asked(shapes[0]), **LONG)  # type: ignore[call-overload]
        except openai.APIStatusError as error:
            found.append((error.status_code, error.code))

    threads: list[threading.Thread] = []

    def ready(where: str) -> None:
        threads.append(threading.Thread(target=ask, args=[where]))
        threads[0].start()

    with pytest.raises(DeviceError, match="the GPU is lost"):
        serve(start, HttpOptions(port=0), on_ready=ready)
    threads[0].join(60)
    assert found == [(503, "device_lost")]


@pytest.fixture
def process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """``star-export serve`` as users start it, and what it said when it was ready."""
    command = [sys.executable, "-m", "star_export.cli", "serve", str(folder), "--name", MODEL, "--port", "0"]
    options = ["--threads", "1", "--max-slots", "1", "--json", "--log-prompts"]
    with subprocess.Popen([*command, *options], stdout=-1, stderr=-1, text=True) as started:
        assert started.stdout is not None
        yield started, json.loads(started.stdout.readline() or pytest.fail(started.communicate()[1]))
        started.kill()


def test_a_server_that_is_told_to_end_finishes_what_is_here(
    process: tuple[subprocess.Popen[str], dict[str, Any]], shapes: list[Path]
) -> None:
    started, said = process
    where = said["address"]
    assert said["models"] == [MODEL]
    client = client_of(where)

    def ask(_: int) -> int:
        answer = client.chat.completions.create(model=MODEL, messages=asked(shapes[0]), **LONG)  # type: ignore[call-overload]
        return int(answer.usage.completion_tokens)

    with ThreadPoolExecutor(6) as threads:
        answers = threads.map(ask, range(6))
        wait_until(lambda: _metric(where, "star_requests_accepted_total") == 6)
        started.send_signal(signal.SIGTERM)
        assert list(answers) == [32] * 6
    _, log = started.communicate(timeout=60)
    assert started.returncode == 0
    assert log.count("POST /v1/chat/completions 200") == log.count("asked: [{") == 6
    assert "Traceback" not in log
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(where)


def _metric(where: str, name: str) -> float:
    with urllib.request.urlopen(f"{where}/metrics") as response:
        lines = response.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name}{{")).split()[-1])


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "star_export.serving.http.server", None)
    with pytest.raises(PlatformError, match=r"run: pip install 'star-export\[serve\]'"):
        Models(folders=(folder,)).serve(HttpOptions(port=0))


@pytest.mark.parametrize(
    ("folders", "names", "message"),
    [
        (("a", "b"), ("one",), "name must be given once for each model, got 1 names for 2 models"),
        ((), (), "there is nothing to serve; give a bundle's folder, or upstream"),
        (("x/a", "y/a"), (), "two models have one name; give each its own with name"),
        (("a",), ("",), "must be printable, not blank, and not end with a slash, got ''; give another name"),
    ],
)
def test_models_have_names_of_their_own(folders: Any, names: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Models(folders=tuple(map(Path, folders)), names=names)


def test_an_address_that_is_taken_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from star_export.cli import main

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["star-export", "serve", str(folder), "--port", str(port)])
        monkeypatch.setattr("star_export.cli.serve.show_requests", lambda: None)  # it outlives the capture
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"error: cannot listen at 127.0.0.1:{port}: Address already in use; give another --port or --host\n"
    )
