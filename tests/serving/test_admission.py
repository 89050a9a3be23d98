"""Places for requests: exactly as many as there are, whoever asks at once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from star_export.errors import BusyError
from star_export.serving import admission as module
from star_export.serving.admission import Admission, Place

THREADS, LIMIT = 24, 5


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places take a while to be made, so that others ask meanwhile."""
    clock = SimpleNamespace(monotonic=lambda: time.sleep(0.002))
    monkeypatch.setattr(module, "time", clock)


@pytest.mark.usefixtures("slow_clock")
def test_of_many_that_arrive_together_exactly_the_limit_comes_in() -> None:
    admission, barrier = Admission(LIMIT), threading.Barrier(THREADS)

    def arrive() -> Place | None:
        barrier.wait(20)
        try:
            return admission.enter()
        except BusyError:
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        for number in range(1, 21):
            places = [one.result() for one in [pool.submit(arrive) for _ in range(THREADS)]]
            inside = [place for place in places if place is not None]
            assert len(inside) == admission.present == LIMIT
            assert admission.refused == number * (THREADS - LIMIT)
            for place in inside:
                place.leave()
            assert admission.present == 0


def test_as_many_as_fit_are_never_refused() -> None:
    """However fast they come and go."""
    admission = Admission(LIMIT)

    def visit() -> None:
        for _ in range(2000):
            with admission.enter():
                assert admission.present <= LIMIT

    with ThreadPoolExecutor(LIMIT) as pool:
        for one in [pool.submit(visit) for _ in range(LIMIT)]:
            one.result()
    assert (admission.present, admission.refused) == (0, 0)


def test_a_place_is_given_back_once() -> None:
    admission = Admission(2)
    first, second = admission.enter(), admission.enter()
    first.leave()
    first.leave()
    assert admission.present == 1
    admission.enter()
    with pytest.raises(BusyError, match=r"^2 requests are here already; try again later$"):
        admission.enter()
    second.leave()
    assert admission.present == 1


def test_a_block_gives_its_place_back_unless_a_ticket_holds_it() -> None:
    admission = Admission(2)
    with pytest.raises(KeyError), admission.enter():
        raise KeyError
    assert admission.present == 0
    with admission.enter() as place:
        place.held = True
    assert admission.present == 1
    place.leave()
    assert admission.present == 0


def test_closing_lets_nobody_in_and_waits_for_those_inside() -> None:
    admission = Admission(2)
    place = admission.enter()
    admission.close()
    with pytest.raises(BusyError, match="shutting down"):
        admission.enter()
    assert admission.refused == 0
    start = time.monotonic()
    admission.wait_until_empty(0.05)
    assert time.monotonic() - start >= 0.05
    threading.Timer(0.05, place.leave).start()
    admission.wait_until_empty(60)
    assert time.monotonic() - start < 30
    assert admission.present == 0
