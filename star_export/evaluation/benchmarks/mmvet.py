"""MM-Vet: open answers, which GPT-4 scores at the authors' own page."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from star_export.evaluation.benchmarks.benchmark import Benchmark, Question
from star_export.evaluation.task import Example


@dataclass(frozen=True)
class Asked:
    """A question of the published file."""

    imagename: str
    question: str
    answer: str
    capability: tuple[str, ...]


class MMVet(Benchmark):
    """Kinds are the capabilities that a question needs, together."""

    splits = ("test",)
    pictures = "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip"
    max_new_tokens = 1024

    def read(self, split: str) -> Iterable[Question]:
        """The published questions, asked as they are."""
        asked = self.data.json("mm-vet/mm-vet.json", dict[str, Asked], source=self.pictures)
        for key, question in asked.items():
            yield Question(
                id=key,
                kind=", ".join(question.capability),
                picture=self.data.root / "mm-vet/images" / question.imagename,
                prompt=question.question,
                answer=question.answer,
            )

    def score(self, example: Example, answer: str) -> None:
        """None: GPT-4 compares with the expected answer."""
        return

    def judge(self, split: str) -> str:
        """The authors' evaluator."""
        return "https://huggingface.co/spaces/whyu/MM-Vet_Evaluator (GPT-4)"

    def submission(self, split: str, answers: Mapping[int, str]) -> Any:
        """The answers by the questions' names."""
        return {self.questions(split)[index].id: text for index, text in answers.items()}
