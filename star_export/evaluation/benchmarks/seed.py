"""SEED-Bench: multiple choice about pictures, or also about one frame of each video."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from star_export.evaluation.benchmarks.benchmark import Benchmark, Question, choices
from star_export.evaluation.benchmarks.data import LLAVA_LISTS
from star_export.evaluation.record import Row
from star_export.evaluation.task import Example

#: Types of questions about videos.
VIDEO = ("Action Recognition", "Action Prediction", "Procedure Understanding")
FILE, LIST = "seed_bench/SEED-Bench.json", "seed_bench/llava-seed-bench.jsonl"


@dataclass(frozen=True)
class Asked:
    """A question of the published file."""

    question_id: str | int
    question_type_id: int
    question: str
    choice_a: str
    choice_b: str
    choice_c: str
    choice_d: str
    answer: Literal["A", "B", "C", "D"]
    data_id: str
    data_type: Literal["image", "video"]


@dataclass(frozen=True)
class Published:
    """The published file."""

    questions: list[Asked]
    question_type: dict[str, int]


@dataclass(frozen=True)
class Listed:
    """A line of LLaVA-1.5's list, of which only the picture matters."""

    question_id: str | int
    image: str


class SEED(Benchmark):
    """Kinds are the twelve types of questions, nine of them about pictures."""

    splits = ("all", "image")
    pictures = "https://github.com/AILab-CVC/SEED-Bench/blob/main/DATASET.md"

    def read(self, split: str) -> Iterable[Question]:
        """The published questions; LLaVA-1.5's list says which frame stands for a video."""
        published = self.data.json(FILE, Published, source=self.pictures)
        kinds = {number: name for name, number in published.question_type.items()}
        frames: dict[str, str] = {}
        if split == "all":
            lines = self.data.lines(LIST, Listed, source=LLAVA_LISTS)
            frames = {str(line.question_id): line.image for line in lines}
            ids = (str(asked.question_id) for asked in published.questions)
            self.data.check_pairs(frames, ids, names=f"{FILE} and {LIST}")
        for asked in published.questions:
            if split == "all" or asked.data_type == "image":
                picture = frames.get(str(asked.question_id), f"SEED-Bench-image/{asked.data_id}")
                options = (asked.choice_a, asked.choice_b, asked.choice_c, asked.choice_d)
                yield Question(
                    id=str(asked.question_id),
                    kind=kinds.get(asked.question_type_id, str(asked.question_type_id)),
                    picture=self.data.root / "seed_bench" / picture,
                    prompt=choices(asked.question, options),
                    answer=asked.answer,
                )

    def score(self, example: Example, answer: str) -> float:
        """1 for the right letter and nothing else."""
        return float(answer.strip() == example.answer)

    def metrics(self, rows: Sequence[Row], variant: str) -> dict[str, float]:
        """Right answers about pictures and about videos in percent, where both were asked."""
        found: dict[str, list[float]] = {"image": [], "video": []}
        for row in rows:
            found["video" if row.kind in VIDEO else "image"].append(row.answers[variant].score or 0.0)
        if not all(found.values()):
            return {}
        return {name: 100 * fmean(scores) for name, scores in found.items()}
