"""The client over real gRPC, against a fake of Triton's front end before the real model."""

import json
import socket
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from star_export.cli.commands import app
from star_export.errors import (
    BundleError,
    BusyError,
    DeadlineError,
    DeviceError,
    InputError,
    PlatformError,
    SettingsError,
    StarExportError,
)
from star_export.serving.triton.client import collect, stream
from star_export.serving.triton.fields import INPUTS
from tests.serving.triton import fake_triton
from tests.serving.triton.fake_triton import Answering, InferenceResponse, Sender, Tensor

fake_triton.install()
from star_export.serving.triton.refusal import refuse  # noqa: E402

PICTURE = Path(__file__).parents[3] / "docs/shapes.png"
USAGE = {"stage1_tokens": 518, "stage2_tokens": 64}
TIMINGS = {"ttft": 1.4, "total": 2.6}


def text(name: str, value: str) -> Tensor:
    return Tensor(name, np.array([value.encode()], object))


def piece(value: str, *ids: int) -> list[Tensor]:
    logprobs = [{"token": "?", "logprob": -i} for i in ids]
    return [
        text("text", value),
        Tensor("token_ids", np.array(ids, np.int32)),
        text("logprobs", json.dumps(logprobs)),
    ]


def answer(sender: Sender) -> None:
    sender.send(InferenceResponse(piece("a r\u00e9d ", 5, 6)))
    last = {"finish_reason": "stop", "usage": json.dumps(USAGE), "timings_ms": json.dumps(TIMINGS)}
    final = [*piece("dog", 2), *(text(name, value) for name, value in last.items())]
    sender.send(InferenceResponse(final), flags=fake_triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


WHOLE = {
    "text": "a r\u00e9d dog",
    "token_ids": [5, 6, 2],
    "finish_reason": "stop",
    "usage": USAGE,
    "timings_ms": TIMINGS,
    "logprobs": [{"token": "?", "logprob": -i} for i in (5, 6, 2)],
}


@pytest.mark.parametrize("scheme", ["", "grpc://"])
def test_an_answer_comes_in_pieces(scheme: str) -> None:
    with fake_triton.serve(Answering(answer)) as (address, _):
        found = list(stream(scheme + address, PICTURE, "What?"))
    logprobs = json.dumps(WHOLE["logprobs"][:2])
    assert found[0] == {"text": "a r\u00e9d ", "token_ids": [5, 6], "logprobs": logprobs}
    assert len(found) == 2
    assert collect(iter(found)) == WHOLE
    with pytest.raises(PlatformError, match="broke off"):
        collect(iter(found[:1]))


def test_every_input_arrives_with_its_type() -> None:
    given = {
        "keep": 29,
        "max_new_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.25,
        "seed": 1 << 40,
        "stop": ["\u00e9", "b"],
        "reprune": False,
        "schema": '{"type": "string"}',
        "top_logprobs": 3,
        "timeout_s": 8.0,
        "show": True,
    }
    with fake_triton.serve(Answering(answer)) as (address, seen):
        list(stream(address, PICTURE, "W\u00e4s?", **given))
        list(stream(address, PICTURE, "What?", keep=None))
        list(stream(address, [PICTURE, PICTURE], [{"role": "user", "content": "W\u00e4s?"}]))
    found = {name: array.tolist() for name, array in seen[0].inputs.items()}
    assert found.pop("stop") == ["\u00e9".encode(), b"b"]
    assert found.pop("schema") == [given.pop("schema").encode()]
    assert found.pop("image") == [PICTURE.read_bytes()]
    assert found.pop("prompt") == ["W\u00e4s?".encode()]
    assert found.pop("stream") == [True]
    assert found == {name: [value] for name, value in given.items() if name != "stop"}
    assert set(seen[0].inputs) | {"messages"} == {field.name for field in INPUTS}
    dtypes = {str(array.dtype) for array in seen[0].inputs.values()}
    assert dtypes == {"object", "int32", "int64", "float32", "bool"}
    assert set(seen[1].inputs) == {"image", "prompt", "stream"}
    assert set(seen[2].inputs) == {"image", "messages", "stream"}
    assert seen[2].inputs["image"].tolist() == 2 * [PICTURE.read_bytes()]
    assert json.loads(seen[2].inputs["messages"][0]) == [{"role": "user", "content": "W\u00e4s?"}]


@pytest.mark.parametrize(
    ("raised", "kind", "says"),
    [
        (InputError("bad picture"), InputError, "says: bad picture"),
        (SettingsError("bad number, try again"), InputError, "says: bad number, try again"),
        (BusyError("the queue is full"), BusyError, "says: the queue is full"),
        (DeadlineError("too long"), DeadlineError, "says: too long"),
        (CancelledError("cancelled"), DeadlineError, "says: cancelled"),
        (BundleError("try again"), StarExportError, "failed: try again"),
        (DeviceError("the GPU is lost"), StarExportError, "failed: the GPU is lost"),
        (StarExportError("not finite"), StarExportError, "failed: not finite"),
        (ValueError(), StarExportError, r"failed: ValueError\(\)"),
    ],
)
def test_errors_arrive_as_what_they_are(raised, kind, says) -> None:
    with (
        fake_triton.serve(Answering(lambda sender: refuse(sender, raised))) as (address, _),
        pytest.raises(StarExportError, match=f"^{address} {says}") as caught,
    ):
        list(stream(address, PICTURE, "What?"))
    assert type(caught.value) is kind


def test_a_server_that_is_not_there_or_not_ready() -> None:
    with pytest.raises(PlatformError, match=r"^no answer from localhost:1: .*; is a server .* gRPC port"):
        list(stream("localhost:1", PICTURE, "What?"))
    with (
        fake_triton.serve(Answering(answer), ready=False) as (address, _),
        pytest.raises(PlatformError, match="does not serve star_llava, or not yet"),
    ):
        list(stream(address, PICTURE, "What?"))


def test_a_port_that_says_nothing() -> None:
    with socket.socket() as silent:
        silent.bind(("localhost", 0))
        silent.listen()
        url, began = f"localhost:{silent.getsockname()[1]}", time.monotonic()
        with pytest.raises(PlatformError, match=f"no answer from {url}"):
            list(stream(url, PICTURE, "What?", timeout=0.2))
    assert time.monotonic() - began < 10


def test_waiting_has_an_end() -> None:
    def dawdle(sender: Sender) -> None:
        time.sleep(0.5)
        answer(sender)

    with fake_triton.serve(Answering(dawdle)) as (address, _):
        with pytest.raises(DeadlineError, match=r"nothing came from .* for 0.2 s"):
            list(stream(address, PICTURE, "What?", timeout=0.2))
        assert len(list(stream(address, PICTURE, "What?", timeout=20))) == 2


def test_who_stops_reading_cancels() -> None:
    begins = Answering(lambda sender: sender.send(InferenceResponse(piece("a"))))
    with fake_triton.serve(begins) as (at, seen):
        responses = stream(at, PICTURE, "What?")
        next(responses)
        assert not seen[0].sender.cancelled
        deadline = time.monotonic() + 10
        responses.close()  # type: ignore[attr-defined]
        while not seen[0].sender.cancelled:
            time.sleep(0.01)
        assert time.monotonic() < deadline  # it waited for no further piece
        seen[0].sender.send(InferenceResponse(), flags=1)  # lets the fake's thread end


@pytest.mark.parametrize("url", ["http://localhost:8000", "localhost", "localhost:http", "grpc://localhost"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(SettingsError, match="is no address of a gRPC port; give one such as localhost:8001"):
        list(stream(url, PICTURE, "What?"))


def test_what_is_wrong_before_a_server_is_asked(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(InputError, match=r"^cannot read .*none\.png: .*; give the path of a picture$"):
        list(stream("localhost:1", tmp_path / "none.png", "What?"))
    with pytest.raises(InputError, match=r"unknown field keeps; did you mean keep\?"):
        list(stream("localhost:1", PICTURE, "What?", keeps=3))
    with pytest.raises(SettingsError, match="keep must fit into INT32, got 2147483648"):
        list(stream("localhost:1", PICTURE, "What?", keep=1 << 31))
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(PlatformError, match=r"^Triton.*\); run: pip install 'star-export\[client\]'$"):
        list(stream("localhost:1", PICTURE, "What?"))


def test_the_command_asks_in_a_conversation(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog."}]
    (tmp_path / "talk.json").write_text(json.dumps(said))
    with fake_triton.serve(Answering(answer)) as (address, seen):
        command = ["client", address, "--image", str(PICTURE), "--messages"]
        for source in (str(tmp_path / "talk.json"), json.dumps(said)):
            assert CliRunner().invoke(app, [*command, source, "--no-reprune"]).exit_code == 0
            assert json.loads(seen[-1].inputs["messages"][0]) == said
            assert seen[-1].inputs["reprune"].tolist() == [False]
        for given, message in (
            (["none.json"], "cannot read messages 'none.json'"),
            (["[1"], "it is not JSON"),
            ([str(tmp_path / "talk.json"), "--prompt", "What?"], "give prompt or messages, one of them"),
        ):
            refused = CliRunner().invoke(app, [*command, *given])
            assert isinstance(refused.exception, InputError)
            assert message in str(refused.exception)
    assert len(seen) == 2


def test_the_command_prints_the_answer() -> None:
    with fake_triton.serve(Answering(answer)) as (address, seen):
        command = ["client", address, "--image", str(PICTURE), "--prompt", "What?"]
        shown = CliRunner().invoke(app, [*command, "--stop", "x", "--seed", "0"])
        as_json = CliRunner().invoke(app, [*command, "--json"])
    assert (shown.exit_code, shown.stdout) == (0, "a r\u00e9d dog\n")
    assert "518 -> 64 visual tokens, 1 ms to the first token, 3 ms in all" in shown.stderr
    assert seen[0].inputs["stop"].tolist() == [b"x"]
    assert seen[0].inputs["seed"].tolist() == [0]
    assert "stop" not in seen[1].inputs
    assert json.loads(as_json.stdout) == WHOLE
