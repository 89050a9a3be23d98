"""ScienceQA, test: multiple choice about pictures."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from star_export.evaluation.benchmarks.benchmark import LETTERS, Benchmark, Question, choices
from star_export.evaluation.benchmarks.scoring import letter
from star_export.evaluation.task import Example

PROBLEMS, SPLITS = "scienceqa/problems.json", "scienceqa/pid_splits.json"


@dataclass(frozen=True)
class Problem:
    """A question of the published file."""

    question: str
    choices: Annotated[list[str], Meta(max_length=len(LETTERS))]
    answer: Annotated[int, Meta(ge=0, lt=len(LETTERS))]
    hint: str
    image: str | None
    subject: str


class ScienceQA(Benchmark):
    """Kinds are the subjects. Questions without a picture are left out: a bundle needs one."""

    splits = ("test-image",)
    pictures = "https://github.com/lupantech/ScienceQA"

    def read(self, split: str) -> Iterable[Question]:
        """The questions of the published split that have a picture."""
        problems = self.data.json(PROBLEMS, dict[str, Problem], source=self.pictures)
        ids = self.data.json(SPLITS, dict[str, list[str]], source=self.pictures).get("test", [])
        known = [key for key in ids if key in problems]
        self.data.check_pairs(known, ids, names=f"{PROBLEMS} and {SPLITS}")
        for key in ids:
            problem = problems[key]
            if problem.image is not None:
                hint = f"Context: {problem.hint}" if problem.hint else ""
                yield Question(
                    id=key,
                    kind=problem.subject,
                    picture=self.data.root / "scienceqa/images/test" / key / problem.image,
                    prompt=choices(problem.question, problem.choices, hint=hint),
                    answer=LETTERS[problem.answer],
                )

    def score(self, example: Example, answer: str) -> float:
        """1 for the right letter."""
        return float(letter(answer, letters=LETTERS) == example.answer)
