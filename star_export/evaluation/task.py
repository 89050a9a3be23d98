"""What a task is: pictures, questions, and when an answer is right."""

from dataclasses import dataclass
from typing import Protocol

from PIL import Image


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
    """A set of examples. A new task is one module and one line in `star_export.evaluation.tasks`."""

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
