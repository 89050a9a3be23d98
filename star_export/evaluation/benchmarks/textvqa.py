"""TextVQA, validation: with the words that an OCR system read in the prompt, or without."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from star_export.evaluation.benchmarks.benchmark import SHORT, Benchmark, Question
from star_export.evaluation.benchmarks.data import LLAVA_LISTS
from star_export.evaluation.benchmarks.scoring import soft_accuracy, submitted
from star_export.evaluation.task import Example

ANNOTATIONS = "textvqa/TextVQA_0.5.1_val.json"
WITH_OCR = "textvqa/llava_textvqa_val_v051_ocr.jsonl"
OCR = "Reference OCR token:"


@dataclass(frozen=True)
class Asked:
    """A question of the published file."""

    question: str
    image_id: str
    answers: Annotated[tuple[str, ...], Meta(min_length=1)]

    @property
    def key(self) -> tuple[str, str]:
        """What it is found by: a picture has several questions."""
        return self.image_id, self.question.lower()


@dataclass(frozen=True)
class Annotations:
    """The published file."""

    data: list[Asked]


@dataclass(frozen=True)
class Listed:
    """A line of LLaVA-1.5's list: the question, what the OCR system read, what to answer with."""

    question_id: str
    text: str

    @property
    def key(self) -> tuple[str, str]:
        """What the question is found by."""
        first, *rest = self.text.split("\n")
        return self.question_id, (rest[0] if first.startswith(OCR) and rest else first).lower()


class TextVQA(Benchmark):
    """Ten people's answers a question; ``val-ocr`` has LLaVA-1.5's hints in the prompt."""

    splits = ("val", "val-ocr")
    pictures = "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip"

    def read(self, split: str) -> Iterable[Question]:
        """The published questions, with LLaVA-1.5's prompts if they have hints."""
        source = "https://dl.fbaipublicfiles.com/textvqa/data/TextVQA_0.5.1_val.json"
        asked = self.data.json(ANNOTATIONS, Annotations, source=source).data
        prompts = {question.key: f"{question.question}\n{SHORT}" for question in asked}
        if split == "val-ocr":
            lines = self.data.lines(WITH_OCR, Listed, source=LLAVA_LISTS)
            prompts = {line.key: line.text for line in lines}
            names = f"{ANNOTATIONS} and {WITH_OCR}"
            self.data.check_pairs(prompts, (question.key for question in asked), names=names)
        for question in asked:
            yield Question(
                id=f"{question.question} ({question.image_id})",
                kind="text",
                picture=self.data.root / f"textvqa/train_images/{question.image_id}.jpg",
                prompt=prompts[question.key],
                answer=max(question.answers, key=question.answers.count),
                references=question.answers,
            )

    def score(self, example: Example, answer: str) -> float:
        """Soft accuracy of words as EvalAI compares them."""
        return soft_accuracy(submitted(answer), [submitted(reference) for reference in example.references])
