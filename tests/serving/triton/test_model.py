"""The models that Triton runs, on a real bundle, with a fake of Triton around them."""

import io
import json
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from star_export.answer.pipeline import Pipeline, load
from star_export.answer.sampling import Sampling
from star_export.bundle import open_bundle
from star_export.contract import DECODE
from star_export.engines import Runtime
from star_export.serving.options import ServiceOptions
from star_export.serving.triton.fields import INPUTS
from star_export.serving.triton.repository import ServeOptions, write_repository
from tests.serving.gate import lose_gpu, wait_until
from tests.serving.triton import fake_triton
from tests.serving.triton.fake_triton import Code, InferenceResponse, Request

fake_triton.install()
from star_export.serving.triton import model as triton_model  # noqa: E402
from star_export.serving.triton import unary as triton_unary  # noqa: E402

PICTURE = (Path(__file__).parents[3] / "docs/shapes.png").read_bytes()
ASKED: dict[str, Any] = {"image": PICTURE, "prompt": "What is this?"}
TYPES = {"STRING": object, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "BOOL": np.bool_}
LAST = fake_triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
KINDS = {field.name: TYPES[field.kind] for field in INPUTS}


@pytest.fixture(scope="module")
def mha(bundle) -> Pipeline:
    """Random weights: answers are nonsense, and 32 tokens long."""
    return load(bundle("mha"), threads=1)


@pytest.fixture(scope="module")
def start(bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """``start(max_slots=1)``: a model as Triton starts it."""
    models = []

    def make(**options: Any) -> Any:
        repository = tmp_path_factory.mktemp("triton") / "repository"
        write_repository(
            open_bundle(bundle("mha")), repository, ServeOptions(runtime=Runtime(threads=1), **options)
        )
        config = (repository / "star_llava/config.pbtxt").read_text()
        settings = re.findall(r'key: "(\w+)" value: { string_value: "(.*?)" }', config)
        model = triton_model.TritonPythonModel()
        model.initialize({
            "model_config": json.dumps({"parameters": {k: {"string_value": v} for k, v in settings}}),
            "model_repository": str(repository / "star_llava"),
            "model_version": "1",
            "model_name": "star_llava",
        })  # fmt: skip
        models.append(model)
        return model

    yield make
    for model in models:
        model.finalize()


@pytest.fixture(scope="module")
def model(start):
    return start(max_slots=2)


@pytest.fixture(scope="module")
def narrow(start):
    """One slot and one place to wait."""
    return start(max_slots=1, queue=1, timeout_s=30.0)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``slow(model)``: a token takes 20 ms, an answer 0.6 s."""

    def patch(model: Any, seconds: float = 0.02) -> None:
        session = model._service.pipeline.session
        run = session.run

        def slowly(graph, feeds, caches=None):
            time.sleep(seconds if graph == DECODE else 0)
            return run(graph, feeds, caches)

        monkeypatch.setattr(session, "run", slowly)

    return patch


def request(parameters: dict[str, Any] | None = None, **fields: Any) -> Request:
    inputs = {}
    for name, value in (ASKED | fields).items():
        items = value if isinstance(value, list) else [value]
        encoded = [x.encode() if isinstance(x, str) else x for x in items]
        inputs[name] = np.array(encoded, KINDS[name])
    return Request(inputs, parameters)


def send(model: Any, *requests: Request) -> None:
    model.execute(list(requests))


def ask(model: Any, **fields: Any) -> list[InferenceResponse]:
    one = request(**fields)
    send(model, one)
    return list(one.sender)


def refusal(model: Any, parameters: dict[str, Any] | None = None, **fields: Any) -> tuple[Code, str]:
    one = request(parameters, **fields)
    send(model, one)
    return error_of(one)


def error_of(one: Request) -> tuple[Code, str]:
    *_, last = one.sender
    error = last.error()
    assert error is not None, last.plain()
    return error.code(), error.message()


def present(model: Any) -> int:
    return model._service.stats().present


def finished(model: Any) -> Mapping[str, int]:
    return model._service.stats().finished


@dataclass(frozen=True)
class Outcome:
    """What a request led to, times aside."""

    text: str
    token_ids: list[int]
    finish_reason: str
    stage2_tokens: int
    responses: int


def outcome(model: Any, **fields: Any) -> Outcome:
    found = [response.plain() for response in ask(model, **fields)]
    for early in found[:-1]:
        assert set(early) == {"text", "token_ids"}
    last = found[-1]
    timings = json.loads(last["timings_ms"])
    assert timings["total"] >= timings["ttft"] > 0
    return Outcome(
        "".join(one["text"] for one in found),
        [token for one in found for token in one["token_ids"]],
        last["finish_reason"],
        json.loads(last["usage"])["stage2_tokens"],
        len(found),
    )


def expected(pipeline: Pipeline, **fields: Any) -> Outcome:
    given = ASKED | fields
    sampling = Sampling(**{k: given[k] for k in ("temperature", "top_p", "seed") if k in given})
    settings = {k: given[k] for k in ("keep", "max_new_tokens", "stop", "schema") if k in given}
    result = pipeline.generate(given["image"], given["prompt"], sampling=sampling, **settings).result()
    return Outcome(result.text, list(result.token_ids), result.finish_reason, len(result.stage2_indices), 1)


def turned() -> bytes:
    data = io.BytesIO()
    Image.open(io.BytesIO(PICTURE)).convert("RGB").rotate(90).save(data, "PNG")
    return data.getvalue()


HOT = {"temperature": 2.0, "seed": 3}
#: For each input: requests with and without it, whose outcomes must differ.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "image": ({}, {"image": turned()}),
    "prompt": ({}, {"prompt": "Where?"}),
    "keep": ({}, {"keep": 29}),
    "max_new_tokens": ({}, {"max_new_tokens": 3}),
    "temperature": ({"seed": 3}, HOT),
    "top_p": (HOT, HOT | {"top_p": 0.1}),
    "seed": (HOT, HOT | {"seed": 0}),
    "stop": ({}, {"stop": ["never said", " ", "e", "y"]}),
    "schema": ({}, {"schema": '{"enum": ["a ring", "a square"]}'}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_input_has_its_effect(model, mha: Pipeline, name: str) -> None:
    without, with_ = CHANGES[name]
    found = outcome(model, **with_)
    assert found == expected(mha, **with_)
    assert found != outcome(model, **without)


def test_inputs_without_an_effect_on_the_answer_are_tested_too() -> None:
    """Below, and ``show`` over HTTP; a new input has to be entered somewhere."""
    others = {"messages", "reprune", "show", "stream", "timeout_s", "top_logprobs"}
    assert {f.name for f in INPUTS} == {*CHANGES, *others}


def test_logprobs_come_with_their_tokens(model) -> None:
    for stream in (True, False):
        for found in (one.plain() for one in ask(model, top_logprobs=2, stream=stream)):
            told = [len(one["top_logprobs"]) for one in json.loads(found["logprobs"])]
            assert told == [2] * len(found["token_ids"])


@pytest.mark.parametrize("reprune", [True, False])
def test_messages_are_a_prompt(model, mha: Pipeline, reprune: bool) -> None:
    turns = [
        {"role": "user", "content": "What is this?"},
        {"role": "assistant", "content": "A square."},
        {"role": "user", "content": "Where?"},
    ]
    one = request(messages=json.dumps(turns), reprune=reprune)
    del one.inputs["prompt"]
    send(model, one)
    (response,) = one.sender
    alone = mha.generate(PICTURE, turns, reprune=reprune).result()
    assert tuple(response.plain()["token_ids"]) == alone.token_ids


def test_a_seed_of_zero_is_a_seed(model) -> None:
    assert len({outcome(model, temperature=2.0, seed=0).text for _ in range(3)}) == 1


def test_a_stream_comes_in_pieces_that_make_the_answer(model, slow) -> None:
    slow(model)
    whole, pieces = outcome(model, stream=False), outcome(model, stream=True)
    assert whole.responses == outcome(model).responses == 1
    assert pieces.responses > 3
    assert (pieces.text, pieces.token_ids) == (whole.text, whole.token_ids)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": b"no picture"}, "image must be an encoded picture"),
        ({"prompt": b"\xff"}, "prompt must be UTF-8"),
        ({"messages": "[]"}, "prompt and messages are both given; give one of them"),
        ({"image": [PICTURE, PICTURE]}, "this bundle takes at most 1 picture, got 2; "),
        ({"keep": 9999}, "keep=9999 is not below"),
        ({"timeout_s": float("nan")}, "timeout_s must be above 0, got nan"),
        ({"parameters": {"keeps": 3}}, "unknown field keeps; did you mean keep?"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(model, fields, message: str) -> None:
    code, said = refusal(model, **fields)
    assert code is Code.INVALID_ARG
    assert message in said
    assert present(model) == 0
    assert "--" not in said


@pytest.mark.parametrize("name", ["image", "prompt"])
def test_a_missing_input_is_named(model, name: str) -> None:
    one = request()
    del one.inputs[name]
    send(model, one)
    assert error_of(one) == (Code.INVALID_ARG, f"{name} is missing; every request needs it")


def test_tritons_own_parameters_are_no_fields(model) -> None:
    one = request({"id": "7", "binary_data_output": True, "triton_enable_empty_final_response": True})
    send(model, one)
    (answer,) = one.sender
    assert answer.plain()["finish_reason"] == "length"


def test_a_late_request_ends(model, slow) -> None:
    slow(model)
    assert refusal(model, timeout_s=0.05) == (Code.CANCELLED, "the request took longer than 0.05 s")


def test_the_repositorys_limits_are_the_services(start) -> None:
    limits = {"kv_cache_mib": 9, "max_slots": 1, "queue": 3, "timeout_s": 7.5, "feature_cache_mib": 2}
    limits |= {"prefix_cache_mib": 3}
    assert start(**limits)._service.options == ServiceOptions(**limits)


def test_a_cancelled_request_leaves_its_slot(model, slow) -> None:
    slow(model)
    before = finished(model)["cancelled"]
    one = request(stream=True)
    send(model, one)
    responses = iter(one.sender)
    next(responses)
    one.sender.cancelled = True
    assert error_of(one) == (Code.CANCELLED, "the request was cancelled")
    assert finished(model)["cancelled"] == before + 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_cannot_be_sent_is_not_made(model, slow, stream: bool, caplog) -> None:
    slow(model)
    before = finished(model)
    one = request(stream=stream)
    one.sender.broken = True
    send(model, one)
    wait_until(lambda: sum(finished(model).values()) == sum(before.values()) + 1)
    wait_until(lambda: present(model) == 0)
    end = "cancelled" if stream else "length"
    assert finished(model)[end] == before[end] + 1
    wait_until(lambda: "an error could not be sent" in caplog.text)
    assert "an error could not be sent: the response cannot be sent" in caplog.text


def test_a_full_queue_refuses_and_takes_again(narrow, slow) -> None:
    slow(narrow, 0.06)
    asked = [request() for _ in range(4)]
    send(narrow, *asked)  # all at once
    busy = (Code.UNAVAILABLE, "2 requests are here already; try again later")
    assert [error_of(one) for one in asked[2:]] == [busy] * 2
    for one in asked[:2]:
        (answer,) = one.sender
        assert answer.plain()["finish_reason"] == "length"
    assert outcome(narrow).finish_reason == "length"
    assert narrow._service.stats().refused == 2


def test_finalize_finishes_what_runs_and_takes_no_more(start, slow) -> None:
    model = start(max_slots=1)
    slow(model)
    one = request()
    send(model, one)
    wait_until(lambda: model._service.stats().accepted == 1)
    model.finalize()
    (answer,) = one.sender
    assert answer.plain()["finish_reason"] == "length"
    code, message = refusal(model)
    assert code is Code.UNAVAILABLE
    assert "shutting down" in message
    assert not model._metrics._thread.is_alive()


def test_a_lost_gpu_fails_every_request_and_ends_the_server(start, monkeypatch, caplog) -> None:
    model, killed = start(max_slots=1, queue=8), []
    lose_gpu(model._service.pipeline, monkeypatch, lambda: model._service.stats().accepted == 3)
    monkeypatch.setattr(os, "kill", lambda *what: killed.append(what))
    asked = [request() for _ in range(3)]
    send(model, *asked)
    with caplog.at_level(logging.CRITICAL):
        assert [error_of(one) for one in asked] == [
            (Code.INTERNAL, "the GPU is lost, running: cudaErrorIllegalAddress")
        ] * 3
        wait_until(lambda: bool(killed))
    assert killed == [(os.getppid(), signal.SIGTERM)]
    assert "the GPU is lost, running: cudaErrorIllegalAddress; this server ends" in caplog.text
    assert refusal(model)[0] is Code.UNAVAILABLE
    model.finalize()


def test_a_failure_that_is_no_loss_leaves_the_server_alone(model, mha: Pipeline, monkeypatch) -> None:
    def fail(graph, feeds, caches=None):
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(model._service.pipeline.session, "run", fail)
        assert refusal(model, keep=7, image=turned()) == (Code.INTERNAL, "RuntimeError()")
    assert outcome(model) == expected(mha)


@pytest.fixture
def unary(model, monkeypatch) -> triton_unary.TritonPythonModel:
    monkeypatch.setitem(fake_triton.InferenceRequest.models, "star_llava", model)
    return triton_unary.TritonPythonModel()


def test_infer_has_the_same_inputs_and_one_response(unary, mha: Pipeline) -> None:
    for with_ in [with_ for _, with_ in CHANGES.values()] + [{"stream": True}]:
        assert outcome(unary, **with_) == expected(mha, **with_)


def test_infer_passes_on_errors_as_they_are(unary, model, slow, monkeypatch) -> None:
    assert refusal(unary, keep=9999) == refusal(model, keep=9999)
    assert refusal(unary, {"keeps": 1}) == refusal(model, {"keeps": 1})
    slow(model)
    late = (Code.CANCELLED, "the request took longer than 0.05 s")
    assert refusal(unary, timeout_s=0.05) == late
    with monkeypatch.context() as patch:
        patch.setattr(model._service._scheduler.admission, "limit", 0)
        assert refusal(unary) == (Code.UNAVAILABLE, "0 requests are here already; try again later")
    response = InferenceResponse(error=fake_triton.TritonError("the model is unloading"))
    gone = fake_triton.Answering(lambda sender: sender.send(response, flags=LAST))
    monkeypatch.setitem(fake_triton.InferenceRequest.models, "star_llava", gone)
    assert refusal(unary) == (Code.INTERNAL, "the model is unloading")
    monkeypatch.delitem(fake_triton.InferenceRequest.models, "star_llava")
    assert refusal(unary) == (Code.INTERNAL, "'star_llava'")
