"""What all benchmarks have in common: questions, nearly all about pictures, and LLaVA-1.5's prompts."""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from star_export.errors import InputError
from star_export.evaluation.benchmarks.data import DataFolder
from star_export.evaluation.task import Example, Task
from star_export.preprocessing import load_image

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCDE"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question as a benchmark's files have it.

    Attributes:
        id: What the benchmark calls it.
        kind: What sort of question it is, for a score of its own.
        picture: The picture's file, or the file itself in base64; None for a question without one.
        prompt: What is asked.
        answer: The expected answer; empty where it is not published.
        references: What each of several people answered, where several were asked.
    """

    id: str
    kind: str
    picture: Path | str | None
    prompt: str
    answer: str = ""
    references: tuple[str, ...] = ()


class Benchmark(Task):
    """A task whose questions are read from files; a split is read when it is first used.

    Args:
        root: A folder laid out as LLaVA-1.5's evaluation has it, ``playground/data/eval``.
    """

    #: Names of the splits; the last is the usual one.
    splits: tuple[str, ...]
    #: Where the pictures are published.
    pictures: str
    max_new_tokens = 128

    def __init__(self, root: Path) -> None:
        self.data = DataFolder(root)
        self._questions: dict[str, list[Question]] = {}
        self._picture: tuple[Path | str, Image.Image] | None = None

    def read(self, split: str) -> Iterable[Question]:
        """The questions of a split, in the order of the files.

        Raises:
            InputError: If a file is missing, damaged or does not belong to the others.
        """
        raise NotImplementedError

    def questions(self, split: str) -> Sequence[Question]:
        """:meth:`read`, once."""
        if split not in self._questions:
            self._questions[split] = list(self.read(split))
        return self._questions[split]

    @property
    def files(self) -> Mapping[str, str]:
        """Hashes of the files read so far."""
        return self.data.hashes

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of the questions read so far."""
        return tuple(dict.fromkeys(q.kind for questions in self._questions.values() for q in questions))

    def size(self, split: str) -> int:
        """How many questions there are."""
        return len(self.questions(split))

    def example(self, split: str, seed: int, index: int) -> Example:
        """Question ``index``; a benchmark has one order only, whatever the seed."""
        question = self.questions(split)[index]
        return Example(
            index=index,
            kind=question.kind,
            image=self._open(question),
            question=question.prompt,
            answer=question.answer,
            references=question.references,
        )

    def _open(self, question: Question) -> Image.Image | None:
        """Its picture; the same object for questions in a row, so that it is looked at once."""
        if (source := question.picture) is None:
            return None
        if self._picture is None or self._picture[0] != source:
            try:
                encoded = source if isinstance(source, Path) else base64.b64decode(source, validate=True)
                self._picture = source, load_image(encoded)
            except (InputError, binascii.Error) as error:
                raise InputError(
                    f"question {question.id}: {error}; its pictures are published at {self.pictures}"
                ) from error
        return self._picture[1]


def choices(question: str, options: Sequence[str], *, hint: str = "") -> str:
    """A question with its options by letter, and the request for the letter."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([*([hint] if hint else []), question, *lines, LETTER])
