"""Ways to stop or to break a scheduler where a test wants it, and to wait for it."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from star_export.answer.pipeline import Pipeline
from star_export.contract import DECODE
from star_export.errors import DeviceError


class Gate:
    """Stops a session before every run of one graph, and lets it through run by run."""

    def __init__(self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, graph: str) -> None:
        self._before, self._permits = threading.Semaphore(0), threading.Semaphore(0)
        run = pipeline.session.run

        def gated(name: str, feeds: Any, caches: Any = None) -> Any:
            if name == graph:
                self._before.release()
                assert self._permits.acquire(timeout=60)
            return run(name, feeds, caches)

        monkeypatch.setattr(pipeline.session, "run", gated)

    def wait(self) -> None:
        """Until the graph is about to run."""
        assert self._before.acquire(timeout=60)

    def go(self, runs: int = 1) -> None:
        self._permits.release(runs)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lose_gpu(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, ready: Callable[[], bool]) -> None:
    """A fake loss: a session that raises what CUDA's calls make of an illegal address."""
    run = pipeline.session.run

    def lose(graph: str, feeds: Any, caches: Any = None) -> Any:
        if graph != DECODE:
            return run(graph, feeds, caches)
        wait_until(ready)
        raise DeviceError("the GPU is lost, running: cudaErrorIllegalAddress")

    monkeypatch.setattr(pipeline.session, "run", lose)
