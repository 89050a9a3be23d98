"""Serving on a GPU: the scheduler and Triton's model on TensorRT sessions, answers as of one at a time.

On the fake GPU, expected answers are ONNX Runtime's own; on a real one, those of the same engines
without a scheduler, for the trained model, whose best token leads clearly.
"""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from star_export.answer.generation import Request
from star_export.answer.pipeline import Pipeline, load
from star_export.answer.sampling import Sampling
from star_export.bundle import Bundle
from star_export.contract import DECODE
from star_export.engines import Runtime
from star_export.errors import BusyError, DeviceError, NonFiniteError
from star_export.preprocessing import load_image
from star_export.serving.scheduler import Scheduler
from star_export.serving.triton.repository import ServeOptions, write_repository
from tests.fake_gpu.machine import LATE, Machine
from tests.serving.gate import wait_until
from tests.serving.triton import fake_triton

fake_triton.install()
from star_export.serving.triton import model as triton_model  # noqa: E402

PICTURE = Path(__file__).parents[2] / "docs/shapes.png"
PROMPTS = ("What color is the square?", "What number is written?", "How many rings are there?")
LOST = "the GPU is lost, running on the GPU: cudaErrorIllegalAddress"


@pytest.fixture(scope="module")
def bundle_(machine: Machine, backend: str) -> Bundle:
    if machine.fake is None:
        return machine.engines(backend, "mini")
    return machine.engines(backend, "mini", dtype="float32")  # the one that others build too


@pytest.fixture(scope="module")
def gpu(bundle_: Bundle, backend: str) -> Pipeline:
    return load(bundle_.folder, backend=backend)


@pytest.fixture(scope="module")
def alone(machine: Machine, gpu: Pipeline) -> Pipeline:
    """What answers one request at a time, for comparison."""
    return gpu if machine.fake is None else load(gpu.bundle.folder, threads=1)


def requests(pipeline: Pipeline, machine: Machine) -> list[Request]:
    """Different pictures, prompts, budgets and lengths; sampled ones where not a bit may differ."""
    picture = load_image(PICTURE)
    return [
        pipeline.request(
            picture.rotate(90 * (i % 3)),
            PROMPTS[(i + i // 3) % 3],
            keep=(64, 58, 29)[i % 3],
            max_new_tokens=(32, 1, 5)[i % 3],
            sampling=Sampling(temperature=0.7, seed=i) if i % 2 and machine.fake else None,
        )
        for i in range(9)
    ]


def tokens_of(pipeline: Pipeline, asked: Request) -> tuple[int, ...]:
    return pipeline.answer(asked).result().token_ids


@LATE
def test_answers_are_those_of_one_at_a_time(machine: Machine, gpu: Pipeline, alone: Pipeline) -> None:
    asked = requests(gpu, machine)
    with Scheduler(gpu, slots=3) as scheduler:
        tickets = [scheduler.submit(one) for one in asked]
        answers = [ticket.answer().token_ids for ticket in tickets]
    assert answers == [tokens_of(alone, one) for one in asked]


@LATE
@pytest.mark.parametrize("place", [0, 1])
def test_nans_stay_with_their_request(machine: Machine, gpu: Pipeline, alone: Pipeline, place: int) -> None:
    """The slot is clean for the next request, and the neighbour never notices."""
    good = [replace(one, max_new_tokens=9) for one in requests(gpu, machine)[:2]]
    nan = replace(good[0].images[0], pixels=np.full_like(good[0].images[0].pixels, np.nan))
    bad = replace(good[0], images=(nan,))
    sent = [*good[:place], bad, *good[place:], *good]
    with Scheduler(gpu, slots=2) as scheduler:
        tickets = [scheduler.submit(one) for one in sent]
        with pytest.raises(NonFiniteError, match="not finite"):
            tickets.pop(place).answer()
        answers = [ticket.answer().token_ids for ticket in tickets]
    assert answers == 2 * [tokens_of(alone, one) for one in good]


@LATE
def test_a_conversation_goes_on_from_kept_caches(machine: Machine, gpu: Pipeline, alone: Pipeline) -> None:
    """They travel to the host and back."""
    turns = [{"role": "user", "content": PROMPTS[0]}]
    with Scheduler(gpu, slots=2) as scheduler:
        for question in PROMPTS[1:]:
            asked = gpu.request(PICTURE, turns, reprune=False)
            answer = scheduler.submit(asked).answer()
            assert answer.token_ids == tokens_of(alone, asked)
            turns += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": question}]
        assert scheduler.snapshot().prefix_hits == 1


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """``start(bundle, backend)``: a model as Triton starts it."""
    models = []

    def make(bundle: Bundle, backend: str) -> Any:
        options = ServeOptions(runtime=Runtime(backend=backend), max_slots=2, kv_cache_mib=64)
        write_repository(bundle, tmp_path / "repository", options)
        home = tmp_path / "repository/star_llava"
        text = (home / "config.pbtxt").read_text()
        settings = re.findall(r'key: "(\w+)" value: { string_value: "(.*?)" }', text)
        config = {"parameters": {key: {"string_value": value} for key, value in settings}}
        own = {"model_repository": str(home), "model_version": "1", "model_name": "star_llava"}
        models.append(triton_model.TritonPythonModel())
        models[-1].initialize({"model_config": json.dumps(config), **own})
        return models[-1]

    yield make
    for model in models:
        model.finalize()


def send(model: Any, *prompts: str) -> list[fake_triton.Request]:
    """One request for each prompt."""
    sent = [
        fake_triton.Request({
            "image": np.array([PICTURE.read_bytes()], object),
            "prompt": np.array([prompt.encode()], object),
        })
        for prompt in prompts
    ]  # fmt: skip
    model.execute(sent)
    return sent


@LATE
def test_triton_answers(bundle_: Bundle, backend: str, alone: Pipeline, start: Callable[..., Any]) -> None:
    sent = send(start(bundle_, backend), *PROMPTS)
    found = [[response.plain()["text"] for response in one.sender] for one in sent]
    assert found == [[alone.generate(PICTURE, prompt).result().text] for prompt in PROMPTS]


def test_a_lost_gpu_ends_everything(
    lazy_gpu: Any,
    fake_engine_bundle: Callable[..., Bundle],
    start: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caches are gone in the middle of an answer: an engine leaves its memory."""
    bundle, killed = fake_engine_bundle("tensorrt", "mini", "sm89", dtype="float32"), []
    monkeypatch.setattr(os, "kill", lambda *what: killed.append(what))
    model = start(bundle, "tensorrt")
    run, stats = model._service.pipeline.session.run, model._service._scheduler.stats

    def lose(graph: str, feeds: Any, caches: Any = None) -> Any:
        if graph == DECODE:
            lazy_gpu.memory.blocks.pop(caches._memory.buffer.pointer, None)
        return run(graph, feeds, caches)

    monkeypatch.setattr(model._service.pipeline.session, "run", lose)
    for one in send(model, *PROMPTS):
        *_, last = one.sender
        assert last.error().message().startswith(LOST)
    with pytest.raises(BusyError, match="shutting down"):
        model._service._scheduler.submit(model._service.pipeline.request(PICTURE, "What?"))
    with pytest.raises(DeviceError, match="the GPU is lost"):
        model._service.pipeline.session.synchronize()
    wait_until(lambda: bool(killed))
    assert killed == [(os.getppid(), signal.SIGTERM)]
    assert stats.finished == {"error": len(PROMPTS)}
