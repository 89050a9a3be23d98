"""What a task is: pictures, questions, and when an answer is right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from star_export.errors import InputError, option
from star_export.evaluation.record import Row


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question about one picture, or about none.

    Attributes:
        index: Its number in the split.
        kind: What sort of question it is, for a score of its own.
        image: RGB; None where the question is text alone.
        question: As a user would type it.
        answer: The expected answer; empty where it is not published.
        references: What each of several people answered, where several were asked.
    """

    index: int
    kind: str
    image: Image.Image | None
    question: str
    answer: str
    references: tuple[str, ...] = ()


def needed_image(example: Example) -> Image.Image:
    """Its picture, for who chooses among visual tokens.

    Raises:
        InputError: If it has none.
    """
    if example.image is None:
        raise InputError(
            "a question has no picture, so there is nothing to choose from; "
            f"take questions that all have one, such as {option('split', 'test-image')} of scienceqa"
        )
    return example.image


class Task(Protocol):
    """A set of examples. A new task is one module and one line in `star_export.evaluation.tasks`."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Their names; the last is the usual one."""

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

    def score(self, example: Example, answer: str) -> float | None:
        """From 0 (wrong) to 1 (right); None where others keep the answers."""

    @property
    def files(self) -> Mapping[str, str]:
        """Hex SHA-256 of the files that the questions were read from, by name; none for drawn tasks."""
        return {}

    def metrics(self, rows: Sequence[Row], variant: str) -> dict[str, float]:
        """What is reported of one variant's answers besides the mean of their scores, as published."""
        return {}

    def judge(self, split: str) -> str | None:
        """Who scores the answers of a split, if it cannot be done here."""
        return None

    def submission(self, split: str, answers: Mapping[int, str]) -> Any:
        """The answers by index, as JSON values in the form that the judge takes."""
        return dict(answers)
