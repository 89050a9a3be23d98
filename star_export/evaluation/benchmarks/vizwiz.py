"""VizWiz: ``test`` for the server, ``val`` scored here; some pictures do not show what is asked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from star_export.evaluation.benchmarks.benchmark import SHORT, Benchmark, Question
from star_export.evaluation.benchmarks.scoring import submitted, vqa_accuracy
from star_export.evaluation.task import Example

HINT = "When the provided information is insufficient, respond with 'Unanswerable'."


@dataclass(frozen=True)
class Answered:
    """What one person answered."""

    answer: str


@dataclass(frozen=True)
class Asked:
    """A question of the published file; without answers in ``test.json``."""

    image: str
    question: str
    answer_type: str = "test"
    answers: tuple[Answered, ...] = ()


class VizWiz(Benchmark):
    """Ten people's answers a question; kinds are those of the file, ``unanswerable`` among them."""

    splits = ("test", "val")
    pictures = "https://vizwiz.org/tasks-and-datasets/vqa/"

    def read(self, split: str) -> Iterable[Question]:
        """The questions of ``test.json`` or ``val.json``."""
        name = f"vizwiz/{split}.json"
        questions = self.data.json(name, list[Asked], source=self.pictures)
        if split == "val":
            answered = (asked.image for asked in questions if asked.answers)
            self.data.check_pairs((asked.image for asked in questions), answered, names=name)
        for asked in questions:
            references = tuple(answer.answer for answer in asked.answers)
            yield Question(
                id=asked.image,
                kind=asked.answer_type,
                picture=self.data.root / "vizwiz" / split / asked.image,
                prompt=f"{asked.question}\n{HINT}\n{SHORT}",
                answer=max(references, key=references.count, default=""),
                references=references,
            )

    def score(self, example: Example, answer: str) -> float | None:
        """VQA's soft accuracy, where ``unanswerable`` is an answer like others; None on ``test``."""
        return vqa_accuracy(answer, example.references) if example.references else None

    def judge(self, split: str) -> str | None:
        """EvalAI has the answers of ``test``."""
        return "https://eval.ai/web/challenges/challenge-page/2185" if split == "test" else None

    def submission(self, split: str, answers: Mapping[int, str]) -> Any:
        """An answer a picture."""
        questions = self.questions(split)
        return [{"image": questions[index].id, "answer": submitted(text)} for index, text in answers.items()]
