"""VQAv2: ``test-dev`` for the server, ``val`` scored here."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from star_export.evaluation.benchmarks.benchmark import SHORT, Benchmark, Question
from star_export.evaluation.benchmarks.data import LLAVA_LISTS
from star_export.evaluation.benchmarks.scoring import submitted, vqa_accuracy
from star_export.evaluation.task import Example

QUESTIONS = "vqav2/v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "vqav2/v2_mscoco_val2014_annotations.json"
TEST_DEV = "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl"
TEST = "vqav2/llava_vqav2_mscoco_test2015.jsonl"
SOURCE = "https://visualqa.org/download.html"


@dataclass(frozen=True)
class Asked:
    """A question of the published list."""

    question_id: int
    image_id: int
    question: str


@dataclass(frozen=True)
class AskedList:
    """The published list."""

    questions: list[Asked]


@dataclass(frozen=True)
class Answered:
    """What one person answered."""

    answer: str


@dataclass(frozen=True)
class Annotation:
    """The answers to a question."""

    question_id: int
    answer_type: str
    multiple_choice_answer: str
    answers: Annotated[list[Answered], Meta(min_length=1)]


@dataclass(frozen=True)
class AnnotationList:
    """The published answers."""

    annotations: list[Annotation]


@dataclass(frozen=True)
class Listed:
    """A line of LLaVA-1.5's list."""

    question_id: int
    image: str
    text: str


@dataclass(frozen=True)
class Numbered:
    """A line of LLaVA-1.5's list, of which only the number matters."""

    question_id: int


class VQAv2(Benchmark):
    """Ten people's answers a question; kinds are yes/no, number and other."""

    splits = ("test-dev", "val")
    pictures = SOURCE

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._whole_test: list[Numbered] = []

    def read(self, split: str) -> Iterable[Question]:
        """Questions of ``val`` with their answers, or LLaVA-1.5's list of ``test-dev`` without."""
        return self._read_test() if split == "test-dev" else self._read_val()

    def _read_test(self) -> Iterable[Question]:
        folder = self.data.root / "vqav2/test2015"
        self._whole_test = self.data.lines(TEST, Numbered, source=LLAVA_LISTS)  # or it is missed in the end
        for line in self.data.lines(TEST_DEV, Listed, source=LLAVA_LISTS):
            yield Question(
                id=str(line.question_id), kind="test-dev", picture=folder / line.image, prompt=line.text
            )

    def _read_val(self) -> Iterable[Question]:
        asked = self.data.json(QUESTIONS, AskedList, source=SOURCE).questions
        given = self.data.json(ANNOTATIONS, AnnotationList, source=SOURCE).annotations
        answers = {annotation.question_id: annotation for annotation in given}
        self.data.check_pairs((q.question_id for q in asked), answers, names=f"{QUESTIONS} and {ANNOTATIONS}")
        for question in asked:
            annotation = answers[question.question_id]
            name = f"vqav2/val2014/COCO_val2014_{question.image_id:012d}.jpg"
            yield Question(
                id=str(question.question_id),
                kind=annotation.answer_type,
                picture=self.data.root / name,
                prompt=f"{question.question}\n{SHORT}",
                answer=annotation.multiple_choice_answer,
                references=tuple(answer.answer for answer in annotation.answers),
            )

    def score(self, example: Example, answer: str) -> float | None:
        """Soft accuracy; None on ``test-dev``."""
        return vqa_accuracy(answer, example.references) if example.references else None

    def judge(self, split: str) -> str | None:
        """EvalAI has the answers of ``test-dev``."""
        return "https://eval.ai/web/challenges/challenge-page/830" if split == "test-dev" else None

    def submission(self, split: str, answers: Mapping[int, str]) -> Any:
        """An answer to every question of the whole test split, as the server asks; empty but on test-dev."""
        questions = self.questions(split)
        found = {questions[index].id: submitted(text) for index, text in answers.items()}
        return [
            {"question_id": line.question_id, "answer": found.get(str(line.question_id), "")}
            for line in self._whole_test
        ]
