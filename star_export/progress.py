"""What long work reports to."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Progress(Protocol):
    """What a build reports to: one step after the other."""

    def start(self, step: str, total_bytes: int | None = None) -> None:
        """A step begins; ``total_bytes`` when its length is known."""

    def advance(self, done_bytes: int) -> None:
        """Another ``done_bytes`` of the running step are done."""


class NoProgress:
    """For builds that nobody watches."""

    def start(self, step: str, total_bytes: int | None = None) -> None:
        """Nothing to show."""

    def advance(self, done_bytes: int) -> None:
        """Nothing to show."""


#: Told how many cases of a long run are done, and how many there are.
CaseProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class StepReport:
    """How long one step took and what it wrote."""

    step: str
    seconds: float
    bytes: int


class Steps:
    """Runs the steps of a build and measures each.

    Args:
        folder: What they write to.
        progress: Told about each.
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder, self.progress = folder, progress
        self.reports: list[StepReport] = []

    @contextmanager
    def step(self, name: str, total_bytes: int | None = None) -> Iterator[None]:
        """One of them; ``total_bytes`` when its length is known."""
        self.progress.start(name, total_bytes)
        begin, before = time.perf_counter(), self._bytes()
        yield
        self.reports.append(StepReport(name, time.perf_counter() - begin, self._bytes() - before))

    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
