"""Pictures with questions from a file: one line of JSON each, ``{"image": ..., "question": ...}``.

Paths are relative to the file. An ``"answer"`` is right when it is the expected one, whatever its case.
"""

from dataclasses import dataclass
from pathlib import Path

from star_export.errors import InputError
from star_export.evaluation.task import Example, Task
from star_export.preprocessing import load_image
from star_export.typed import convert, parse

ALL, PAIR = "all", "pair"


@dataclass(frozen=True)
class Pair:
    """One line of the file."""

    image: str
    question: str
    answer: str | None = None


class Pairs(Task):
    """A file's pairs, as a task with one split.

    Args:
        path: The file.
        max_new_tokens: Tokens of an answer, at most.

    Attributes:
        answered: Whether all pairs have answers; otherwise none has.

    Raises:
        InputError: If the file cannot be read, is empty, or a line is no pair.
    """

    splits, kinds = (ALL,), (PAIR,)

    def __init__(self, path: Path, *, max_new_tokens: int = 32) -> None:
        self.path, self._max_new_tokens = path, max_new_tokens
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        self.lines = [number for number, line in enumerate(lines, 1) if line.strip()]
        self.pairs = [self._pair(number, lines[number - 1]) for number in self.lines]
        if not self.pairs:
            raise InputError(f'{path} is empty; give lines of {{"image": "dog.png", "question": "..."}}')
        self.answered = self.pairs[0].answer is not None
        for index, pair in enumerate(self.pairs):
            if (pair.answer is not None) != self.answered:
                has, line = ("has no", 0) if self.answered else ("has an", 0)
                raise InputError(
                    f"{self.place(index)} {has} answer, unlike {self.place(line)}; give all answers or none"
                )

    @property
    def max_new_tokens(self) -> int:
        """Tokens of an answer, at most."""
        return self._max_new_tokens

    def place(self, index: int) -> str:
        """Where pair ``index`` stands, for messages."""
        return f"{self.path} line {self.lines[index]}"

    def size(self, split: str) -> int:
        """How many pairs there are."""
        del split
        return len(self.pairs)

    def example(self, split: str, seed: int, index: int) -> Example:
        """Pair ``index``.

        Raises:
            InputError: If its picture cannot be read.
        """
        del split, seed
        pair = self.pairs[index]
        try:
            image = load_image(self.path.parent / pair.image)
        except InputError as error:
            raise InputError(f"{self.place(index)}: {error.marked}") from error
        return Example(index=index, kind=PAIR, image=image, question=pair.question, answer=pair.answer or "")

    def score(self, example: Example, answer: str) -> float:
        """1 for the expected answer; case, spaces and a final full stop do not matter."""
        return float(_plain(answer) == _plain(example.answer))

    def _pair(self, number: int, line: bytes) -> Pair:
        try:
            return convert(parse(line), Pair)
        except ValueError as error:
            raise InputError(
                f"{self.path} line {number} is no pair of image and question ({error})"
            ) from error


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".")
