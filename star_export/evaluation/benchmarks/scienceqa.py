"""ScienceQA, test: multiple choice, half of it about pictures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated

from msgspec import Meta

from star_export.evaluation.benchmarks.benchmark import LETTERS, Benchmark, Question, choices
from star_export.evaluation.benchmarks.scoring import letter
from star_export.evaluation.record import Row
from star_export.evaluation.task import Example

PROBLEMS, SPLITS = "scienceqa/problems.json", "scienceqa/pid_splits.json"
#: What the kinds of questions without a picture end with.
TEXT_ONLY = ", text only"


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
    """Kinds are the subjects, each again for questions without a picture."""

    splits = ("test-image", "test")
    pictures = "https://github.com/lupantech/ScienceQA"

    def read(self, split: str) -> Iterable[Question]:
        """The questions of the published split, or those of them that have a picture."""
        problems = self.data.json(PROBLEMS, dict[str, Problem], source=self.pictures)
        ids = self.data.json(SPLITS, dict[str, list[str]], source=self.pictures).get("test", [])
        known = [key for key in ids if key in problems]
        self.data.check_pairs(known, ids, names=f"{PROBLEMS} and {SPLITS}")
        for key in ids:
            if problems[key].image or split == "test":
                yield self._question(key, problems[key])

    def score(self, example: Example, answer: str) -> float:
        """1 for the right letter."""
        return float(letter(answer, letters=LETTERS) == example.answer)

    def metrics(self, rows: Sequence[Row], variant: str) -> dict[str, float]:
        """Right answers about pictures in percent, as LLaVA-1.5's evaluation calls them."""
        about = [row.answers[variant].score or 0.0 for row in rows if not row.kind.endswith(TEXT_ONLY)]
        return {"IMG-Accuracy": 100 * fmean(about)} if about else {}

    def _question(self, key: str, problem: Problem) -> Question:
        folder, hint = self.data.root / "scienceqa/images/test" / key, f"Context: {problem.hint}"
        return Question(
            id=key,
            kind=problem.subject if problem.image else problem.subject + TEXT_ONLY,
            picture=folder / problem.image if problem.image else None,
            prompt=choices(problem.question, problem.choices, hint=hint if problem.hint else ""),
            answer=LETTERS[problem.answer],
        )
