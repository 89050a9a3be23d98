"""What a task is: pictures, questions, and when an answer is right."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from star_export.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question about one picture.

    Attributes:
        index: Its number in the split.
        kind: What sort of question it is, for a score of its own.
        image: RGB.
        question: As a user would type it.
        answer: The expected answer.
    """

    index: int
    kind: str
    image: Image.Image
    question: str
    answer: str


class Task(Protocol):
    """A set of examples. A new task is one module and one line in :data:`TASKS`."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Their names."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of questions, in the order of a report."""

    @property
    def max_new_tokens(self) -> int:
        """Tokens that an answer may need."""

    def size(self, split: str) -> int:
        """How many examples a split has."""

    def example(self, split: str, seed: int, index: int) -> Example:
        """Example ``index``; always the same for one split and seed."""

    def score(self, example: Example, answer: str) -> float:
        """From 0 (wrong) to 1 (right)."""


def _shapes() -> Task:
    from star_export.evaluation.shapes import Shapes

    return Shapes()


TASKS: dict[str, Callable[[], Task]] = {"shapes": _shapes}


def open_task(name: str, *, split: str) -> Task:
    """The task called ``name``.

    Raises:
        SettingsError: If there is no such task, or it has no such split.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SettingsError(f"--task {name} does not exist; {hint}tasks are {', '.join(TASKS)}")
    task = TASKS[name]()
    if split not in task.splits:
        raise SettingsError(f"--split must be one of {', '.join(task.splits)} for {name}, got {split}")
    return task
