"""POPE: is an object in the picture? Questions about random, popular and adversarial objects."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from star_export.evaluation.benchmarks.benchmark import SHORT, Benchmark, Question
from star_export.evaluation.benchmarks.scoring import f1
from star_export.evaluation.record import Row
from star_export.evaluation.task import Example

CATEGORIES = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Listed:
    """A line of a published file."""

    question_id: int
    image: str
    text: str
    label: Literal["yes", "no"]


class POPE(Benchmark):
    """Kinds are the three files."""

    splits = ("test",)
    pictures = "http://images.cocodataset.org/zips/val2014.zip"

    def read(self, split: str) -> Iterable[Question]:
        """The three published files, one after the other."""
        for category in CATEGORIES:
            name, source = f"pope/coco/coco_pope_{category}.json", "https://github.com/AoiDragon/POPE"
            for line in self.data.lines(name, Listed, source=f"{source}, output/coco"):
                yield Question(
                    id=f"{category} {line.question_id}",
                    kind=category,
                    picture=self.data.root / "pope/val2014" / line.image,
                    prompt=f"{line.text}\n{SHORT}",
                    answer=line.label,
                )

    def score(self, example: Example, answer: str) -> float:
        """1 where the first sentence says yes, or no, as expected."""
        return float(yes_or_no(answer) == example.answer)

    def metrics(self, rows: Sequence[Row], variant: str) -> dict[str, float]:
        """F1, accuracy and share of yes of every category in percent; their mean F1 comes first."""
        found: dict[str, float] = {}
        for category in CATEGORIES:
            pairs = [
                (row.expected, yes_or_no(row.answers[variant].text)) for row in rows if row.kind == category
            ]
            if pairs:
                found |= {f"{name}, {category}": 100 * value for name, value in _measures(pairs).items()}
        scores = [value for name, value in found.items() if name.startswith("F1")]
        return {"F1": fmean(scores), **found}


def _measures(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Measures of pairs of what is right and what was said."""
    true, false, missed = (pairs.count(pair) for pair in (("yes", "yes"), ("no", "yes"), ("yes", "no")))
    return {
        "F1": f1(true=true, false=false, missed=missed),
        "accuracy": (len(pairs) - false - missed) / len(pairs),
        "yes": (true + false) / len(pairs),
    }


def yes_or_no(answer: str) -> str:
    """``no`` where the first sentence has the word No, no or not; everything else is ``yes``."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"
