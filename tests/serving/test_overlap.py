"""Requests that are prepared beside the decode steps of others: nobody waits, and nobody notices."""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from star_export.answer.pipeline import Pipeline, load
from star_export.answer.request import Request
from star_export.contract import DECODE, PREFILL
from star_export.engines import Runtime, open_session
from star_export.errors import DeviceError
from star_export.serving.scheduler import Scheduler
from star_export.serving.ticket import Piece, Ticket
from tests.serving.gate import wait_until

PICTURE = Path(__file__).parents[2] / "docs/shapes.png"
LONG = 400


@pytest.fixture(scope="module")
def mha(bundle: Callable[..., Path]) -> Pipeline:
    """Random weights: answers are nonsense, and long."""
    return load(bundle("mha", max_new_tokens=LONG), threads=1)


class Hold:
    """Holds the thread of a prefill that has filled its caches, until it may go on."""

    def __init__(self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.holding, self.filled, self._may_go = False, threading.Event(), threading.Event()
        self.steps = 0
        run = pipeline.session.run

        def held(graph: str, feeds: Any, caches: Any = None) -> Any:
            outputs = run(graph, feeds, caches)
            if graph == PREFILL and self.holding:
                self.filled.set()
                assert self._may_go.wait(60)
            self.steps += graph == DECODE
            return outputs

        monkeypatch.setattr(pipeline.session, "run", held)

    def wait(self, steps: int) -> None:
        """Until the caches are filled, and others have made some steps since."""
        assert self.filled.wait(60)
        target = self.steps + steps
        wait_until(lambda: self.steps >= target)

    def go(self) -> None:
        self.holding = False
        self._may_go.set()


def asked(pipeline: Pipeline, number: int, new_tokens: int = LONG) -> Request:
    return pipeline.request(PICTURE, "Hm?" * (number + 1), keep=9 + number, max_new_tokens=new_tokens)


def started(scheduler: Scheduler, *requests: Request) -> list[Ticket]:
    """Tickets of requests that run, one slot after the other."""
    tickets = []
    for request in requests:
        tickets.append(scheduler.submit(request))
        assert isinstance(tickets[-1].next(60), Piece)
    return tickets


def alone(pipeline: Pipeline, request: Request) -> tuple[int, ...]:
    return pipeline.answer(request).result().token_ids


def test_neighbours_go_on_and_nobody_writes_into_the_prompt(
    mha: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that arrives has the slot in the middle of three, so that every step reaches its row."""
    requests = [asked(mha, number) for number in range(4)]
    right = [alone(mha, request) for request in requests]
    hold = Hold(mha, monkeypatch)
    with Scheduler(mha, slots=3) as scheduler:
        first, second, third = started(scheduler, *requests[:3])
        second.cancel()
        wait_until(lambda: len(scheduler._running) == 2)
        hold.holding = True
        last = scheduler.submit(requests[3])
        hold.wait(steps=4)
        assert not last.transcript.token_ids
        assert sorted(scheduler._running) == [0, 2]
        hold.go()
        assert [ticket.answer().token_ids for ticket in (first, third, last)] == [right[n] for n in (0, 2, 3)]
        assert last.slot == 1


def test_who_leaves_while_its_prompt_is_read_leaves_at_once(
    mha: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slot is free when the thread is done with it."""
    requests = [asked(mha, 0), asked(mha, 1), asked(mha, 2, 5)]
    hold = Hold(mha, monkeypatch)
    with Scheduler(mha, slots=2) as scheduler:
        (first,) = started(scheduler, requests[0])
        hold.holding = True
        gone, patient = (scheduler.submit(request) for request in requests[1:])
        assert hold.filled.wait(60)
        gone.cancel()
        assert gone.answer().finish_reason == "cancelled"
        assert scheduler.admission.present == 2
        first.answer()
        assert not patient.transcript.token_ids
        hold.go()
        assert patient.answer().token_ids == alone(mha, asked(mha, 2, 5))
        assert gone.usage is None
    assert scheduler.stats.finished == {"cancelled": 1, "length": 2}


def test_a_gpu_that_is_lost_beside_a_step_is_lost_for_all_once(
    mha: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, all_here = list[DeviceError](), threading.Event()
    scheduler = Scheduler(mha, slots=2, on_lost=lost.append)
    requests = [asked(mha, number) for number in range(3)]
    (first,) = started(scheduler, requests[0])
    run = mha.session.run

    def lose(graph: str, feeds: Any, caches: Any = None) -> Any:
        if graph == PREFILL:
            assert all_here.wait(60)
            raise DeviceError("the GPU is lost")
        return run(graph, feeds, caches)

    monkeypatch.setattr(mha.session, "run", lose)
    tickets = [first, *(scheduler.submit(request) for request in requests[1:])]
    all_here.set()
    for ticket in tickets:
        with pytest.raises(DeviceError, match="the GPU is lost"):
            ticket.answer()
    scheduler.close()
    assert (len(lost), scheduler.stats.finished) == (1, {"error": 3})


def test_threads_of_vision_and_prefill_yield_where_batches_are_decoded(mha: Pipeline) -> None:
    """All but those of decode, which there are as many of."""

    def niceness() -> dict[str, int]:
        threads = {}
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):  # Some other thread that has ended since.
                threads[task.name] = int((task / "stat").read_text().rpartition(")")[2].split()[16])
        return threads

    before = niceness()
    base = min(before.values())
    with open_session(mha.bundle, Runtime(threads=3, batches=True)):
        # A thread that Python has joined can be in the kernel's list for a moment longer.
        wait_until(lambda: len(niceness().keys() - before.keys()) <= 6)
        during = niceness()
    new = sorted(during[thread] for thread in during.keys() - before.keys())
    assert new == [base] * 2 + [base + 5] * 2 * 2
