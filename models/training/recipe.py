"""What the training of one model differs in from that of another."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic

import torch
from tokenizers import Tokenizer

from models.training.model import Student
from models.training.packing import CourseT, Lessons


@dataclass(frozen=True, kw_only=True)
class Phase(Generic[CourseT]):
    """A stretch of the training.

    Attributes:
        name: Shown in the log.
        course: What is looked at.
        steps: Optimiser steps.
        batch: Pictures a step.
        rate: Learning rate.
        decay: Steps at the end over which the rate falls to zero.
    """

    name: str
    course: CourseT
    steps: int
    batch: int
    rate: float
    decay: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[CourseT]):
    """How one model comes about.

    Attributes:
        phases: Stretches of the training, in order.
        kinds: Kinds of questions, by the number that the lessons give them.
        corpus: Sentences for the tokenizer, by seed.
        processor: Makes the processor from those sentences.
        lessons: Makes the data from a course, the tokenizer and a seed.
        student: Makes the model of a course.
        beginning: Weights to begin with, by name, made from the processor.
        stretched: Fits weights to another course's pictures.
        dtype: What the model computes in.
    """

    phases: tuple[Phase[CourseT], ...]
    kinds: tuple[str, ...]
    corpus: Callable[[int], list[str]]
    processor: Callable[[Iterable[str]], Any]
    lessons: Callable[[CourseT, Tokenizer, int], Lessons[CourseT]]
    student: Callable[[CourseT, Any], Student]
    beginning: Callable[[Any], dict[str, torch.Tensor]]
    stretched: Callable[[dict[str, torch.Tensor], CourseT], dict[str, torch.Tensor]]
    dtype: torch.dtype
