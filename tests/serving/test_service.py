"""The core of every front door on a real bundle: who comes in, what is refused, how long it may take."""

import io
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from star_export.answer import request as request_module
from star_export.answer.pipeline import Pipeline, load
from star_export.answer.sampling import Sampling
from star_export.contract import DECODE, PREFILL, VISION
from star_export.errors import BusyError, DeadlineError, DeviceError, InputError, SettingsError
from star_export.serving.options import ServiceOptions
from star_export.serving.query import Query
from star_export.serving.service import Service
from star_export.serving.stats import OUTCOMES, Counts
from tests.serving.gate import Gate, lose_gpu, wait_until

PICTURE = (Path(__file__).parents[2] / "docs/shapes.png").read_bytes()
ASKED = Query(image=PICTURE, prompt="What is this?")
SHORT = replace(ASKED, max_new_tokens=1)
LONG = 32  # the mha bundle's max_new_tokens


@pytest.fixture(scope="module")
def mha(bundle: Callable[..., Path]) -> Pipeline:
    """Random weights: answers are nonsense, and long."""
    return load(bundle("mha"), threads=1)


@pytest.fixture
def start(mha: Pipeline) -> Iterator[Callable[..., Service]]:
    """``start(max_slots=1)``: a service on the bundle."""
    services = []

    def make(on_lost: Callable[[DeviceError], None] = lambda _error: None, **options: Any) -> Service:
        chosen = ServiceOptions(**{"timeout_s": 20.0, **options})  # so long closing waits where a test fails
        services.append(Service(mha, chosen, on_lost=on_lost))
        return services[-1]

    yield make
    for service in services:
        service.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache_mib": 0}, "kv_cache_mib must be at least 1, got 0"),
        ({"max_slots": 0}, "max_slots must be at least 1, got 0"),
        ({"queue": -1}, "queue must be at least 0, got -1"),
        ({"feature_cache_mib": -1}, "feature_cache_mib must be at least 0, got -1"),
        ({"timeout_s": 0.0}, "timeout_s must be a finite number above 0, got 0"),
        ({"timeout_s": float("nan")}, "timeout_s must be a finite number above 0, got nan"),
        ({"timeout_s": float("inf")}, "timeout_s must be a finite number above 0, got inf"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^{message}$"):
        ServiceOptions(**options)


def test_slots_are_those_that_fit(mha: Pipeline, start: Callable[..., Service]) -> None:
    assert start(max_slots=3, queue=0).stats().slots == 3
    long_enough = mha.session.capacities((540, 90))  # for the warm-up's request
    fit = (8 << 20) // mha.spec.sequence_bytes(long_enough)
    assert (8 << 20) // mha.spec.slot_bytes < fit < 32
    assert start(kv_cache_mib=8).stats().slots == fit


def test_the_warm_up_reaches_every_slot_and_is_not_counted(
    mha: Pipeline, start: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    allocated: list[Any] = []
    ran: list[str] = []
    allocate, run = mha.session.allocate_caches, mha.session.run
    monkeypatch.setattr(
        mha.session, "allocate_caches", lambda *size: allocated.append(allocate(*size)) or allocated[-1]
    )
    monkeypatch.setattr(mha.session, "run", lambda graph, *rest: ran.append(graph) or run(graph, *rest))
    stats = start(max_slots=3, queue=1).stats()
    caches = allocated[0].numpy("past_key_values.0.key")
    assert caches[:, :, 1].any(axis=(1, 2)).tolist() == [True] * 3  # decode alone writes the first row
    assert (ran.count(VISION), ran.count(PREFILL)) == (2, 3 + 1)
    assert stats.finished == dict.fromkeys(OUTCOMES, 0)
    assert stats == Counts(slots=3).snapshot(
        present=0, refused=0, feature_hits=0, feature_misses=0, feature_bytes=0
    )


def test_answers_are_the_pipelines(mha: Pipeline, start: Callable[..., Service]) -> None:
    query = replace(ASKED, keep=29, max_new_tokens=9, temperature=2.0, top_p=0.5, seed=3, stop=("qqq",))
    right = mha.generate(
        PICTURE, ASKED.prompt, keep=29, max_new_tokens=9, stop=("qqq",),
        sampling=Sampling(temperature=2.0, top_p=0.5, seed=3),
    ).result()  # fmt: skip
    service = start(max_slots=2)
    answer = service.submit(query).answer()
    assert (answer.text, answer.token_ids) == (right.text, right.token_ids)
    stats = service.stats()
    assert (stats.accepted, stats.present, stats.tokens) == (1, 0, 9)
    assert stats.finished == {"stop": 0, "length": 1, "cancelled": 0, "error": 0}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"image": b"no picture"}, InputError, "image must be an encoded picture"),
        ({"image": b"\xffno picture"}, InputError, "is not a picture"),
        ({"prompt": " "}, InputError, "the prompt is empty"),
        ({"keep": 0}, SettingsError, "keep"),
        ({"max_new_tokens": 0}, SettingsError, r"max.new.tokens must be from 1 to 32, got 0"),
        ({"temperature": float("nan")}, SettingsError, "temperature must be"),
        ({"top_p": 2.0}, SettingsError, r"top.p must be"),
        ({"seed": -1}, SettingsError, "seed must not be negative"),
        ({"stop": ("",)}, SettingsError, "stop takes"),
        ({"timeout_s": 0.0}, InputError, "timeout_s must be above 0, got 0"),
        ({"timeout_s": float("nan")}, InputError, "timeout_s must be above 0, got nan"),
    ],
)
def test_what_cannot_be_answered_gives_its_place_back(
    mha: Pipeline, start: Callable[..., Service], change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    service = start(max_slots=1, queue=0)
    place = service.enter()
    for given in (place, None):
        with pytest.raises(kind, match=message):
            service.submit(replace(ASKED, **change), given)
        assert service.stats().present == 0
    assert service.submit(SHORT).answer().finish_reason == "length"
    assert (service.stats().accepted, service.stats().refused) == (1, 0)


def test_who_fits_is_never_refused(start: Callable[..., Service]) -> None:
    """Three clients, two slots and a queue of one: who has an answer finds a place for the next request."""
    service = start(max_slots=2, queue=1)
    together = threading.Barrier(3)

    def client() -> int:
        together.wait(20)
        return sum(service.submit(SHORT).answer().finish_reason == "length" for _ in range(12))

    with ThreadPoolExecutor(3) as pool:
        assert [one.result() for one in [pool.submit(client) for _ in range(3)]] == [12] * 3
    stats = service.stats()
    assert (stats.accepted, stats.refused, stats.present) == (36, 0, 0)


def test_of_many_at_once_exactly_slots_and_queue_come_in(
    mha: Pipeline, start: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start(max_slots=2, queue=3)
    gate, together = Gate(mha, monkeypatch, DECODE), threading.Barrier(16)

    def client() -> str:
        together.wait(20)
        try:
            ticket = service.submit(ASKED)
        except BusyError as error:
            return str(error)
        return ticket.answer().finish_reason

    with ThreadPoolExecutor(16) as pool:
        clients = [pool.submit(client) for _ in range(16)]
        gate.wait()
        wait_until(lambda: sum(one.done() for one in clients) == 11)
        assert service.stats().present == 5
        gate.go(1000)
        found = sorted(one.result() for one in clients)
    assert found == ["5 requests are here already; try again later"] * 11 + ["length"] * 5
    assert (service.stats().accepted, service.stats().refused, service.stats().present) == (5, 11, 0)


def test_pictures_are_decoded_by_as_many_at_once_as_there_are_cores(
    start: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    service, decode, now, most = start(max_slots=1, queue=7), request_module.load_image, [], []

    def slowly(image: Any) -> Any:
        now.append(image)
        most.append(len(now))
        time.sleep(0.05)
        now.pop()
        return decode(image)

    monkeypatch.setattr(request_module, "load_image", slowly)
    with ThreadPoolExecutor(8) as pool:
        for ticket in [pool.submit(service.submit, SHORT) for _ in range(8)]:
            ticket.result().answer()
    assert (len(most), max(most)) == (8, 2)


def test_a_request_may_ask_for_less_time_never_for_more(
    mha: Pipeline, start: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start(max_slots=1, timeout_s=0.3)
    gate = Gate(mha, monkeypatch, DECODE)
    asked = {None: 0.3, 60.0: 0.3, 0.2: 0.2}
    tickets = [service.submit(replace(ASKED, timeout_s=seconds)) for seconds in asked]
    time.sleep(0.4)
    gate.go(1000)
    for ticket, seconds in zip(tickets, asked.values(), strict=True):
        with pytest.raises(DeadlineError, match=f"took longer than {seconds} s"):
            ticket.answer()


def test_time_counts_from_the_arrival(start: Callable[..., Service]) -> None:
    service = start(max_slots=1, timeout_s=0.3)
    place = service.enter()
    time.sleep(0.4)  # a body that comes slowly, or a picture that waits for others
    with pytest.raises(DeadlineError, match=r"took longer than 0\.3 s"):
        service.submit(SHORT, place).answer()
    assert service.submit(SHORT).answer().finish_reason == "length"


def test_who_leaves_before_the_end_lets_the_request_go(
    mha: Pipeline, start: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start(max_slots=1)
    gate = Gate(mha, monkeypatch, DECODE)
    with service.submit(ASKED) as ticket:
        gate.wait()
    gate.go(1000)
    assert len(ticket.answer().token_ids) == 2  # of prefill and of the step that ran
    assert (service.stats().finished["cancelled"], service.stats().present) == (1, 0)
    with service.submit(SHORT) as ticket:
        assert ticket.answer().finish_reason == "length"
    assert not ticket.cancelled


@pytest.mark.parametrize(("mib", "seen"), [(0, 2), (1, 1)])
def test_the_feature_cache_has_the_size_that_was_asked_for(
    mha: Pipeline, start: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, mib: int, seen: int
) -> None:
    service, ran, run = start(max_slots=1, feature_cache_mib=mib), [], mha.session.run
    monkeypatch.setattr(mha.session, "run", lambda graph, *rest: ran.append(graph) or run(graph, *rest))
    for _ in range(2):
        service.submit(SHORT).answer()
    assert ran.count(VISION) == seen


def test_closing_finishes_who_is_here_and_lets_nobody_in(start: Callable[..., Service]) -> None:
    """The one that runs, and the one whose picture has not even come."""
    service = start(max_slots=1, queue=2)
    running, place = service.submit(ASKED), service.enter()
    closing = threading.Thread(target=service.close)
    closing.start()

    def closed() -> bool:
        try:
            service.enter().leave()
        except BusyError as error:
            return "shutting down" in str(error)
        return False

    wait_until(closed)
    arriving = service.submit(SHORT, place)
    assert [one.answer().finish_reason for one in (running, arriving)] == ["length"] * 2
    closing.join(20)
    assert not closing.is_alive()


def test_closing_waits_no_longer_than_a_request_may_take(start: Callable[..., Service]) -> None:
    service = start(max_slots=1, timeout_s=0.2)
    place = service.enter()
    begin = time.monotonic()
    service.close()
    assert 0.2 <= time.monotonic() - begin < 20
    with pytest.raises(BusyError, match="shutting down"):
        service.submit(SHORT, place)
    assert service.stats().present == 0


def test_a_lost_gpu_fails_everyone_and_is_told(
    mha: Pipeline, start: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[DeviceError] = []
    service = start(on_lost=lost.append, max_slots=1, queue=8)
    arriving = service.enter()
    lose_gpu(mha, monkeypatch, lambda: service.stats().accepted == 3)
    for ticket in [service.submit(ASKED) for _ in range(3)]:
        with pytest.raises(DeviceError, match="the GPU is lost, running"):
            ticket.answer()
    wait_until(lambda: bool(lost))
    with pytest.raises(BusyError, match="shutting down"):
        service.enter()
    with pytest.raises(BusyError, match="shutting down"):
        service.submit(SHORT, arriving)
    stats = service.stats()
    assert (len(lost), stats.finished["error"], stats.present) == (1, 3, 0)


def test_a_failure_that_is_no_loss_leaves_the_service_alone(
    mha: Pipeline, start: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    service = start(max_slots=1, on_lost=lambda error: pytest.fail(str(error)))

    def fail(*_: Any) -> Any:
        raise RuntimeError("out of luck")

    unseen = io.BytesIO()
    Image.new("RGB", (9, 9)).save(unseen, "PNG")
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(mha.session, "run", fail)
        with pytest.raises(RuntimeError, match="out of luck"):
            service.submit(replace(ASKED, image=unseen.getvalue())).answer()
    assert "a request failed" in caplog.text
    assert service.submit(SHORT).answer().finish_reason == "length"
    assert (service.stats().finished["error"], service.stats().present) == (1, 0)
