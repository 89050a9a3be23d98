"""The real tritonserver, over every protocol: the answers of ``star-export run``, alone and under load."""

import base64
import http.client
import json
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from tritonclient.utils import InferenceServerException

from star_export.answer.pipeline import Pipeline, load
from star_export.answer.sampling import Sampling
from star_export.errors import BusyError, DeadlineError, StarExportError
from star_export.serving.triton.client import collect, stream
from tests.serving.triton.conftest import ENVIRONMENT, launch

pytestmark = pytest.mark.triton

PICTURE = Path(__file__).parents[3] / "docs/shapes.png"
EXAMPLES = Path(__file__).parents[3] / "examples"
NUMBER = "What number is written?"
LONG = 1024
CASES: list[dict[str, Any]] = [
    {"prompt": NUMBER},
    {"prompt": NUMBER, "keep": 29},
    {"prompt": "What color is the square?", "max_new_tokens": 1},
    {"prompt": "How many rings are there?", "temperature": 0.8, "top_p": 0.9, "seed": 3},
    {"prompt": NUMBER, "stop": ["6"]},
    {"prompt": NUMBER, "schema": '{"enum": ["six", "seven"]}', "top_logprobs": 2},
]
DTYPES = {
    "keep": "INT32",
    "max_new_tokens": "INT32",
    "seed": "INT64",
    "temperature": "FP32",
    "top_p": "FP32",
    "timeout_s": "FP32",
    "reprune": "BOOL",
    "top_logprobs": "INT32",
}


@pytest.fixture(scope="module")
def mini(bundle) -> Pipeline:
    return load(bundle("mini"), threads=1)


@pytest.fixture(scope="module")
def server(serve, bundle):
    return serve(bundle("mini"))


@pytest.fixture(scope="module")
def narrow(serve, bundle):
    """One slot, a queue of one, long answers."""
    return serve(bundle("mha", max_new_tokens=LONG), "--max-slots", "1", "--queue", "1")


def expected(pipeline: Pipeline, case: dict[str, Any]) -> tuple[str, list[int], str]:
    sampling = Sampling(**{k: case[k] for k in ("temperature", "top_p", "seed") if k in case})
    settings = {k: case[k] for k in ("keep", "max_new_tokens", "stop", "schema") if k in case}
    result = pipeline.generate(PICTURE, case["prompt"], sampling=sampling, **settings).result()
    return result.text, list(result.token_ids), result.finish_reason


def tensors(module: Any, case: dict[str, Any], picture: bytes | None = None) -> list[Any]:
    data = PICTURE.read_bytes() if picture is None else picture
    values = {"image": [data], **{k: v if isinstance(v, list) else [v] for k, v in case.items()}}
    found = []
    for name, value in values.items():
        dtype = DTYPES.get(name, "BOOL" if name == "stream" else "BYTES")
        encoded = [v.encode() if isinstance(v, str) else v for v in value]
        array = np.array(encoded, tritonclient.utils.triton_to_np_dtype(dtype))
        found.append(module.InferInput(name, array.shape, dtype))
        found[-1].set_data_from_numpy(array)
    return found


def read(result: Any) -> tuple[str, list[int], str]:
    return (
        result.as_numpy("text")[0].decode(),
        result.as_numpy("token_ids").tolist(),
        result.as_numpy("finish_reason")[0].decode(),
    )


def over_generate(server, case: dict[str, Any]) -> tuple[str, list[int], str]:
    body = {"image": base64.b64encode(PICTURE.read_bytes()).decode(), **case}
    url = f"http://{server.http}/v2/models/star_llava/generate"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode())) as response:
        found = json.load(response)
    ids = found["token_ids"]
    return found["text"], ids if isinstance(ids, list) else [ids], found["finish_reason"]


def long_stream(server, prompt: str = "Describe it.", **more: Any) -> http.client.HTTPResponse:
    body = {"image": base64.b64encode(PICTURE.read_bytes()).decode(), "prompt": prompt, "stream": True}
    connection = http.client.HTTPConnection(server.http)
    connection.request("POST", "/v2/models/star_llava/generate_stream", json.dumps(body | more))
    return connection.getresponse()


def over_generate_stream(server, case: dict[str, Any]) -> tuple[str, list[int], str]:
    lines = long_stream(server, **case).read().split(b"\n")
    found = [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: ")]
    ids = [one["token_ids"] for one in found]
    tokens = [token for some in ids for token in (some if isinstance(some, list) else [some])]
    return "".join(one["text"] for one in found), tokens, found[-1]["finish_reason"]


def over_client(server, case: dict[str, Any]) -> tuple[str, list[int], str]:
    inputs = {name: value for name, value in case.items() if name != "prompt"}
    whole = collect(stream(server.grpc, PICTURE, case["prompt"], **inputs))
    assert whole["usage"]["stage2_tokens"] == case.get("keep", 64)
    assert whole["timings_ms"]["total"] >= whole["timings_ms"]["ttft"] > 0
    return whole["text"], whole["token_ids"], whole["finish_reason"]


def over_http_infer(server, case: dict[str, Any]) -> tuple[str, list[int], str]:
    with tritonclient.http.InferenceServerClient(server.http) as client:
        return read(client.infer("star_llava_infer", tensors(tritonclient.http, case)))


def over_grpc_infer(server, case: dict[str, Any]) -> tuple[str, list[int], str]:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        return read(client.infer("star_llava_infer", tensors(tritonclient.grpc, case)))


def over_grpc_stream(server, case: dict[str, Any]) -> tuple[str, list[int], str]:
    updates: queue.Queue[Any] = queue.Queue()
    text, ids = "", []
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: updates.put(error or result))
        client.async_stream_infer("star_llava", tensors(tritonclient.grpc, {**case, "stream": True}))
        while True:
            update = updates.get(timeout=60)
            if isinstance(update, Exception):
                raise update
            text += update.as_numpy("text")[0].decode()
            ids += update.as_numpy("token_ids").tolist()
            if update.as_numpy("finish_reason") is not None:
                return text, ids, update.as_numpy("finish_reason")[0].decode()


PROTOCOLS = [
    over_generate,
    over_generate_stream,
    over_client,
    over_http_infer,
    over_grpc_infer,
    over_grpc_stream,
]


@pytest.mark.parametrize("ask", PROTOCOLS)
def test_answers_are_those_of_run(server, mini: Pipeline, ask: Callable[..., Any]) -> None:
    for case in CASES:
        assert ask(server, case) == expected(mini, case)


def test_answers_under_load_are_those_of_run(server, mini: Pipeline) -> None:
    wanted = [expected(mini, case) for case in CASES]
    work = [(ask, case) for ask in PROTOCOLS for case in range(len(CASES))] * 2
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda job: job[0](server, CASES[job[1]]), work))
    assert answers == [wanted[case] for _, case in work]


@pytest.mark.parametrize(
    ("case", "picture", "message"),
    [
        ({"prompt": NUMBER}, b"\xffno picture", "not a picture"),
        ({"prompt": " "}, None, "the prompt is empty"),
        ({"prompt": b"\xff"}, None, "prompt must be UTF-8"),
        ({"prompt": NUMBER, "keep": 9999}, None, "keep=9999 is not below"),
        ({"prompt": NUMBER, "max_new_tokens": 0}, None, "max_new_tokens must be from 1"),
        ({"prompt": NUMBER, "temperature": float("nan")}, None, "temperature must be"),
        ({"prompt": NUMBER, "top_p": 2.0}, None, "top_p must be"),
        ({"prompt": NUMBER, "stop": [""]}, None, "stop takes"),
        ({"prompt": NUMBER, "timeout_s": float("nan")}, None, "timeout_s must be above 0"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(server, mini, case, picture, message) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        with pytest.raises(InferenceServerException, match=message) as caught:
            client.infer("star_llava_infer", tensors(tritonclient.grpc, case, picture))
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert client.is_server_ready()
    assert over_generate(server, CASES[0]) == expected(mini, CASES[0])


def test_the_client_command_answers(server, mini: Pipeline) -> None:
    text, ids, _ = expected(mini, CASES[1])
    command = [sys.executable, "-m", "star_export.cli", "client", server.grpc, "--image", str(PICTURE)]
    command += ["--prompt", NUMBER, "--keep", "29"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{text}\n")
    assert "518 -> 29 visual tokens" in done.stderr
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert json.loads(done.stdout)["token_ids"] == ids
    done = subprocess.run([*command, "--keep", "9999"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {server.grpc} says:")
    assert "keep=9999 is not below" in done.stderr


def test_the_examples_answer(server, mini: Pipeline) -> None:
    text, _, _ = expected(mini, CASES[1])
    for command, address in (
        ([sys.executable, EXAMPLES / "triton_client.py"], server.grpc),
        (["bash", EXAMPLES / "triton_client.sh"], server.http),
    ):
        done = subprocess.run([*command, address, PICTURE, NUMBER], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        pieces = re.findall(r'"text":"(.*?)"', done.stdout) or [done.stdout.strip()]
        assert "".join(pieces) == text


def test_a_photo_of_a_phone_is_answered(server, mini: Pipeline, tmp_path: Path) -> None:
    """12 megapixels, 5 MB: over HTTP, that much ends the server."""
    noise = np.random.default_rng(0).integers(0, 256, (3000, 4000), np.uint8)
    photo = tmp_path / "photo.jpg"
    Image.fromarray(noise).save(photo, quality=50)
    assert photo.stat().st_size > 5_000_000
    whole = collect(stream(server.grpc, photo, NUMBER))
    assert whole["text"] == mini.generate(photo, NUMBER).result().text
    assert over_generate(server, CASES[0]) == expected(mini, CASES[0])
    done = subprocess.run(
        ["bash", EXAMPLES / "triton_client.sh", server.http, photo, NUMBER], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "too large for HTTP" in done.stderr


def test_unknown_fields_are_refused(server) -> None:
    for path in ("generate", "generate_stream"):
        body = {"image": "eA==", "prompt": NUMBER, "max_tokens": 3}
        url = f"http://{server.http}/v2/models/star_llava/{path}"
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()))
        assert "unknown field max_tokens; did you mean max_new_tokens?" in caught.value.read().decode()
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        given = tensors(tritonclient.grpc, CASES[0])
        with pytest.raises(
            InferenceServerException, match="unknown field keeps; did you mean keep"
        ) as refused:
            client.infer("star_llava_infer", given, parameters={"keeps": 3})
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_metrics_count(server) -> None:
    labels = {"model": "star_llava"}
    time.sleep(1.5)  # what earlier requests counted is published twice a second
    before = server.metric("star_requests_finished_total", outcome="stop", **labels)
    saved = server.metric("star_kv_bytes_saved_total", **labels)
    usage = collect(stream(server.grpc, PICTURE, NUMBER))["usage"]
    server.wait_for("star_requests_finished_total", before + 1, outcome="stop", **labels)
    spared = usage["kv_bytes_unpruned"] - usage["kv_bytes"]
    assert server.metric("star_kv_bytes_saved_total", **labels) == saved + spared
    assert server.metric("star_slots", **labels) == 32
    server.wait_for("star_slots_in_use", 0, **labels)


def test_a_stream_that_the_client_drops_frees_its_slot(narrow) -> None:
    """Over gRPC by cancelling, over HTTP by closing the connection."""
    cancelled = narrow.metric("star_requests_finished_total", outcome="cancelled")
    updates: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(narrow.grpc) as client:
        client.start_stream(lambda result, error: updates.put(error or result))
        case = {"prompt": "Describe it.", "stream": True}
        client.async_stream_infer("star_llava", tensors(tritonclient.grpc, case))
        assert not isinstance(updates.get(timeout=60), Exception)
        client.stop_stream(cancel_requests=True)
    narrow.wait_for("star_requests_finished_total", cancelled + 1, outcome="cancelled")
    response = long_stream(narrow)
    response.readline()
    response.close()
    narrow.wait_for("star_slots_in_use", 0)
    answer = collect(stream(narrow.grpc, PICTURE, "Describe it."))
    assert len(answer["token_ids"]) == LONG


def test_a_full_queue_says_try_again(narrow) -> None:
    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(over_client, narrow, {"prompt": "Describe it."}) for _ in range(6)]
    errors = [job.exception() for job in jobs if job.exception()]
    assert 1 <= len(errors) <= 4  # one slot and one place to wait: two that arrive together are answered
    for error in errors:
        assert isinstance(error, BusyError)
        assert "try again later" in str(error)


def test_a_request_that_takes_too_long_ends(narrow) -> None:
    with tritonclient.grpc.InferenceServerClient(narrow.grpc) as client:
        inputs = tensors(tritonclient.grpc, {"prompt": "Describe it."})
        inputs.append(tritonclient.grpc.InferInput("timeout_s", [1], "FP32"))
        inputs[-1].set_data_from_numpy(np.array([0.01], np.float32))
        with pytest.raises(InferenceServerException, match="the request took longer than") as caught:
            client.infer("star_llava_infer", inputs)
    assert caught.value.status() == "StatusCode.CANCELLED"
    with pytest.raises(DeadlineError, match="the request took longer than"):
        list(stream(narrow.grpc, PICTURE, "Describe it.", timeout_s=0.01))


def test_shutting_down_finishes_what_runs(serve, bundle) -> None:
    server = serve(bundle("mha"), "--max-slots", "2")
    response = long_stream(server)
    first = response.readline()
    stopping = threading.Thread(target=server.process.send_signal, args=(signal.SIGTERM,))
    stopping.start()
    lines = [first, *response.read().split(b"\n")]
    updates = [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: ")]
    assert updates[-1]["finish_reason"] == "length"
    start = time.monotonic()
    assert server.process.wait(60) == 0
    assert time.monotonic() - start < 30


#: A test double: the session loses its GPU when a file appears beside the model.
LOSE = """
from pathlib import Path
from star_export.errors import DeviceError

class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        session = self._service.pipeline.session
        run = session.run
        def lose(graph, feeds, caches=None):
            if (Path(__file__).parent / "lost").exists():
                raise DeviceError("the GPU is lost, running: cudaErrorIllegalAddress")
            return run(graph, feeds, caches)
        session.run = lose
"""


def test_a_server_that_lost_its_gpu_goes_down(bundle, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    subprocess.run([ENVIRONMENT / "bin/star-export", "triton", bundle("mha"), "-o", repository], check=True)
    with (repository / "star_llava/1/model.py").open("a") as file:
        file.write(LOSE)
    code = "import sys, pathlib, star_export.serving.triton.tritonserver as server;"
    code += "server.serve(pathlib.Path(sys.argv[1]), sys.argv[2:])"
    server = launch(repository, [str(ENVIRONMENT / "bin/python"), "-c", code, str(repository)])
    try:
        assert collect(stream(server.grpc, PICTURE, "Describe it."))["finish_reason"] == "length"
        (repository / "star_llava/1/lost").touch()
        with pytest.raises(
            StarExportError, match="failed: the GPU is lost, running: cudaErrorIllegalAddress"
        ):
            list(stream(server.grpc, PICTURE, "Describe it."))
        assert server.process.wait(30) != 0
    finally:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
    log = (tmp_path / "log.txt").read_text()
    assert "the GPU is lost, running: cudaErrorIllegalAddress; this server ends" in log
    assert "the server ended by itself" in log
