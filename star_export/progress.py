"""What long work reports to."""

from collections.abc import Callable
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
