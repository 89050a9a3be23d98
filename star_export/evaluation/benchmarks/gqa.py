"""GQA, testdev balanced: exact answers."""

from collections.abc import Iterable
from dataclasses import dataclass

from star_export.evaluation.benchmarks.benchmark import Benchmark, Question
from star_export.evaluation.benchmarks.data import LLAVA_LISTS
from star_export.evaluation.task import Example

LIST = "gqa/llava_gqa_testdev_balanced.jsonl"
ANSWERS = "gqa/data/testdev_balanced_questions.json"


@dataclass(frozen=True)
class Listed:
    """A line of LLaVA-1.5's list."""

    question_id: str
    image: str
    text: str


@dataclass(frozen=True)
class Types:
    """What sort of question it is."""

    structural: str


@dataclass(frozen=True)
class Answered:
    """A question of the published file."""

    answer: str
    types: Types


class GQA(Benchmark):
    """Kinds are open questions, and binary ones: yes or no, or one of two."""

    splits = ("testdev",)
    pictures = "https://cs.stanford.edu/people/dorarad/gqa/download.html"

    def read(self, split: str) -> Iterable[Question]:
        """LLaVA-1.5's list with the published answers."""
        lines = self.data.lines(LIST, Listed, source=LLAVA_LISTS)
        answers = self.data.json(ANSWERS, dict[str, Answered], source=self.pictures)
        self.data.check_pairs((line.question_id for line in lines), answers, names=f"{LIST} and {ANSWERS}")
        for line in lines:
            answer = answers[line.question_id]
            yield Question(
                id=line.question_id,
                kind="open" if answer.types.structural == "query" else "binary",
                picture=self.data.root / "gqa/data/images" / line.image,
                prompt=line.text,
                answer=answer.answer,
            )

    def score(self, example: Example, answer: str) -> float:
        """1 for the exact answer, in lower case and without a final full stop."""
        return float(answer.strip().rstrip(".").lower() == example.answer)
