"""Packed questions: all that are asked about one picture stand in one sequence, in segments."""

from dataclasses import dataclass, replace
from typing import ClassVar, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch.utils.data import Dataset

from star_export.evaluation.shapes.questions import Question

SEGMENT = 16  # tokens of a question and its answer, at most


@dataclass(frozen=True, kw_only=True)
class Course:
    """What one phase of the training looks at.

    Attributes:
        questions: Questions about each picture; none in the vision phase.
        split: Split the pictures come from.
    """

    questions: int
    split: str = "train"

    def examination(self) -> Self:
        """The same on the validation split."""
        return replace(self, split="validation")


@dataclass(frozen=True, kw_only=True)
class Phrasing:
    """What stands around a question and its answer, and tokens: their ends and the padding."""

    question: str
    answer: str
    end: str
    padding: str


CourseT = TypeVar("CourseT", bound=Course)


class Lessons(Dataset[dict[str, torch.Tensor]], Generic[CourseT]):
    """Picture ``i`` of a split, drawn when it is asked for, with questions about it."""

    phrasing: ClassVar[Phrasing]

    def __init__(self, course: CourseT, tokenizer: Tokenizer, seed: int) -> None:
        self.course, self.tokenizer, self.seed = course, tokenizer, seed
        self._end, self._padding = (
            tokenizer.token_to_id(token) for token in (self.phrasing.end, self.phrasing.padding)
        )

    def __len__(self) -> int:
        return 1 << 40

    def _places(self, rng: np.random.Generator, tokens: int) -> torch.Tensor:
        """Positions of the visual tokens ``[tokens]``, from 0.

        In training some share theirs with the one before. Where a patch lies must be read from
        its features then, which have it, as in a large LLaVA; not from the token's number.
        """
        if self.course.split != "train":
            return torch.arange(tokens)
        advances: npt.NDArray[np.bool_] = rng.random(tokens) < rng.uniform(0.85, 1.0)
        advances[0] = False
        return torch.from_numpy(np.cumsum(advances))

    def _segment(self, question: Question) -> tuple[list[int], list[int]]:
        """Token ids of one question, padded to :data:`SEGMENT`; labels are -100 but for the answer."""
        before = self._encode(self.phrasing.question.format(question.text))
        answer = [*self._encode(self.phrasing.answer.format(question.answer)), self._end]
        padding = SEGMENT - len(before) - len(answer)
        assert padding >= 0, question
        ids = before + answer + [self._padding] * padding
        # Position t is asked for the token at t + 1.
        labels = [-100] * (len(before) - 1) + answer + [-100] * (padding + 1)
        return ids, labels

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _token(self, beginning: str) -> int:
        """Which token of a question the last one of its beginning is."""
        return len(self._encode(f"\n{beginning}")) - 1
