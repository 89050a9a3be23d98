"""The front door before Triton: the answers, errors and endings of one that runs the graphs itself."""

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from typer.testing import CliRunner

from star_export.bundle import open_bundle
from star_export.cli.commands import app
from star_export.engines import Runtime
from star_export.errors import (
    BusyError,
    DeviceError,
    InputError,
    NonFiniteError,
    PlatformError,
    UnreachableError,
)
from star_export.serving.http.upstream import Upstream
from star_export.serving.query import Query
from star_export.serving.service import Service
from star_export.serving.triton.repository import ServeOptions, model_config, parameters, write_repository
from tests.serving.gate import wait_until
from tests.serving.triton import fake_triton
from tests.serving.triton.fake_triton import Answering, InferenceResponse, Sender

from .conftest import COLOR, PLACE, asked, client_of, listening, picture, text

fake_triton.install()
from star_export.serving.triton import model as triton_model  # noqa: E402
from star_export.serving.triton.refusal import refuse  # noqa: E402

HOT = {"temperature": 100.0, "seed": 1, "max_tokens": 12}
FINAL = fake_triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL


@pytest.fixture(scope="module")
def config(folder: Path) -> str:
    """What Triton says of the model."""
    options = ServeOptions(max_slots=2, queue=1, timeout_s=60, runtime=Runtime(threads=1))
    return model_config("star_llava", parameters(open_bundle(folder), options))


@contextmanager
def before(model: Any, config: str, timeout_s: float = 60.0) -> Iterator[tuple[str, Upstream]]:
    """The address of a front door before a model on Triton."""
    with fake_triton.serve(model, config=config) as (address, _):
        upstream = Upstream(f"grpc://{address}", timeout_s)
        try:
            with listening(upstream) as where:
                yield where, upstream
        finally:
            upstream.close()


@pytest.fixture(scope="module")
def remote(
    folder: Path, config: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Upstream]]:
    """One before the same bundle as the local service's."""
    repository = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(open_bundle(folder), repository, ServeOptions(runtime=Runtime(threads=1)))
    settings = re.findall(r'key: "(\w+)" value: { string_value: "(.*?)" }', config)
    model = triton_model.TritonPythonModel()
    model.initialize({
        "model_config": json.dumps({"parameters": {k: {"string_value": v} for k, v in settings}}),
        "model_repository": str(repository / "star_llava"),
        "model_version": "1",
        "model_name": "star_llava",
    })  # fmt: skip
    try:
        with before(model, config) as found:
            yield found
    finally:
        model.finalize()


def post(where: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Status and JSON of an answer, or the objects of a stream, without what differs from run to run."""
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{where}/v1/chat/completions", json.dumps(body).encode(), head)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            status, raw = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, raw = error.code, error.read()
    if not raw.startswith(b"data: "):
        return status, _timeless(json.loads(raw))
    events = [line.removeprefix(b"data: ") for line in raw.split(b"\n\n")]
    return status, [_timeless(json.loads(event)) for event in events if event.startswith(b"{")]


def _timeless(answer: dict[str, Any]) -> dict[str, Any]:
    answer.get("star", {}).pop("timings_ms", None)
    return {name: value for name, value in answer.items() if name not in ("id", "created")}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"keep": 29},
        {"keep": [200, 7], "show": True},
        {"temperature": 4.0, "top_p": 0.5, "seed": 5, "max_completion_tokens": 9},
        {**HOT, "stop": ["never said", "e"]},
        {"keep": 9999},
        {"max_completion_tokens": 0},
        {"temperature": -1},
        {"stop": [""]},
        {"timeout_s": 0},
        {"timeout_s": 1e-9},
        {"messages": [{"role": "user", "content": [picture(Path(__file__)), text("What?")]}]},
    ],
)
def test_an_answer_is_that_of_a_local_model(
    where: str, remote: tuple[str, Upstream], shapes: list[Path], more: dict[str, Any]
) -> None:
    body = {"messages": asked(shapes[0]), **more}
    assert post(remote[0], body) == post(where, body)


def test_conversations_and_streams_too(where: str, remote: tuple[str, Upstream], shapes: list[Path]) -> None:
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [picture(shapes[0]), text(COLOR)]},
        {"role": "assistant", "content": "réd"},
        {"role": "user", "content": [text(PLACE), picture(shapes[1])]},
    ]
    body = {"messages": said, **HOT, "stream": True, "stream_options": {"include_usage": True}, "show": True}
    (_, here), (_, there) = post(where, body), post(remote[0], body)

    def told(events: list[Any]) -> str:
        return "".join(e["choices"][0]["delta"].get("content", "") for e in events if e["choices"])

    assert told(there) == told(here) != ""
    assert there[-2:] == here[-2:]
    assert len(there) > 4  # it came in pieces


def test_logprobs_and_schemas_come_over(
    service: Service, remote: tuple[str, Upstream], shapes: list[Path]
) -> None:
    data = shapes[0].read_bytes()
    for query in (
        Query(image=data, prompt=COLOR, top_logprobs=2, max_new_tokens=4),
        Query(image=data, prompt=COLOR, schema={"enum": ["red", "blue"]}, top_logprobs=0),
        Query(image=data, prompt=COLOR, reprune=False),
    ):
        here, there = service.submit(query), remote[1].submit(query)
        found, right = (replace(ticket.answer(), timings_ms={}) for ticket in (there, here))
        assert replace(found, logprobs=None) == replace(right, logprobs=None)
        assert _plain(found.logprobs) == pytest.approx(_plain(right.logprobs), rel=1e-5, abs=1e-5)
        assert there.stages == here.stages


def _plain(logprobs: Any) -> dict[str, float]:
    """By place and token; in float32, and caches of another length add up in another order."""
    rows = enumerate(logprobs or ())
    return {
        f"{i} {one.token} {top.token}": top.logprob for i, one in rows for top in (one, *one.top_logprobs)
    }


def test_models_and_metrics_are_told(where: str, remote: tuple[str, Upstream], shapes: list[Path]) -> None:
    def get(address: str, path: str) -> str:
        with urllib.request.urlopen(f"{address}{path}") as response:
            return str(response.read().decode())

    here, there = (
        json.loads(get(address, "/v1/models"))["data"][0]["star"] for address in (where, remote[0])
    )
    assert there == here
    assert json.loads(get(remote[0], "/health")) == {"status": "ready"}
    before = remote[1].stats()
    answer = post(remote[0], {"messages": asked(shapes[0])})[1]
    wait_until(lambda: remote[1].stats().present == 0)
    after = remote[1].stats()
    assert after.tokens - before.tokens == answer["usage"]["completion_tokens"]
    assert after.finished["stop"] == before.finished["stop"] + 1
    assert after.kv_bytes_saved > before.kv_bytes_saved
    shown = get(remote[0], "/metrics")
    assert f'star_tokens_total{{model="mini"}} {after.tokens}' in shown
    assert "star_slots" not in shown  # which only Triton knows


def test_who_goes_lets_the_request_go(config: str, shapes: list[Path]) -> None:
    seen: list[Sender] = []
    with before(Answering(seen.append), config) as (where, upstream):
        client = client_of(where, timeout=0.5)
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="mini", messages=asked(shapes[0]))  # type: ignore[arg-type]
        wait_until(lambda: seen[0].cancelled)
        wait_until(lambda: upstream.stats().present == 0)
        assert upstream.stats().finished["cancelled"] == 1
        seen[0].send(InferenceResponse(), flags=FINAL)  # lets the fake's thread end


@pytest.mark.parametrize(
    ("raised", "status", "code", "says"),
    [
        (BusyError("3 requests are here already"), 429, "rate_limit_exceeded", "3 requests are here already"),
        (InputError("the prompt is empty"), 400, None, "the prompt is empty"),
        (DeviceError("the GPU is lost"), 503, "device_lost", "the GPU is lost"),
        (NonFiniteError("the logits are NaN"), 500, None, "the logits are NaN"),
        (ValueError("/home/secret"), 500, None, "the server failed; its log says why"),
    ],
)
def test_errors_keep_their_meaning(
    config: str, shapes: list[Path], raised: Exception, status: int, code: str | None, says: str
) -> None:
    model = Answering(lambda sender: refuse(sender, raised, forwarded=True))
    with before(model, config) as (where, _):
        found, body = post(where, {"messages": asked(shapes[0])})
    assert (found, body["error"]["code"], body["error"]["message"]) == (status, code, says)


def test_a_request_that_waits_too_long_is_let_go(config: str, shapes: list[Path]) -> None:
    seen: list[Sender] = []
    with before(Answering(seen.append), config, timeout_s=0.3) as (where, _):
        found, body = post(where, {"messages": asked(shapes[0])})
        wait_until(lambda: seen[0].cancelled)
        seen[0].send(InferenceResponse(), flags=FINAL)
    assert (found, body["error"]["code"]) == (504, "timeout")
    assert body["error"]["message"] == "the request took longer than 0.3 s"


def test_full_places_are_known_here(config: str) -> None:
    with before(Answering(lambda _sender: None), config) as (_, upstream):
        places = [upstream.enter() for _ in range(3)]
        with pytest.raises(BusyError, match="3 requests are here already"):
            upstream.enter()
        for place in places:
            place.leave()


def test_a_server_that_goes_away(config: str, shapes: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    with fake_triton.serve(Answering(lambda _sender: None), config=config) as (address, _):
        upstream = Upstream(address, 60.0)
    with listening(upstream) as where:
        began = time.monotonic()
        found, body = post(where, {"messages": asked(shapes[0])})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{where}/health")
    upstream.close()
    assert (found, body["error"]["code"]) == (503, "upstream_unreachable")
    assert body["error"]["message"] == "the server behind this one does not answer; try again later"
    assert json.loads(refused.value.read()) == {"status": "unreachable"}
    assert time.monotonic() - began < 10
    assert f"no answer from {address}: " in caplog.text


def test_an_answer_that_breaks_off_is_no_answer(config: str, shapes: list[Path]) -> None:
    ends = Answering(
        lambda sender: sender.send(InferenceResponse(error=fake_triton.TritonError("bye")), flags=FINAL)
    )
    with before(ends, config) as (where, _):
        found, body = post(where, {"messages": asked(shapes[0])})
    assert (found, body["error"]["code"]) == (503, "upstream_unreachable")


def test_what_is_wrong_at_the_start_is_one_line(config: str) -> None:
    silent = Answering(lambda _sender: None)
    with pytest.raises(
        UnreachableError, match=r"^no answer from grpc://localhost:1: .*is this its gRPC port"
    ):
        Upstream("grpc://localhost:1", 60.0)
    with (
        fake_triton.serve(silent, config='name: "other"') as (address, _),
        pytest.raises(UnreachableError, match="unknown model: 'star_llava'"),
    ):
        Upstream(address, 60.0)
    older = re.sub(r"parameters { key: .card.*", "", config)
    with (
        fake_triton.serve(silent, config=older) as (address, _),
        pytest.raises(PlatformError, match="is none of this version: 'card'; write it again with this one"),
    ):
        Upstream(address, 60.0)
    run = CliRunner().invoke(app, ["serve", "--upstream", "http://localhost:8000", "--port", "0"])
    assert "is no address of a gRPC port" in str(run.exception)
