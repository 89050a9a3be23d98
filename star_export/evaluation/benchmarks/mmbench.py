"""MMBench, dev: multiple choice, each question again with its options in every other order."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence

from star_export.errors import InputError
from star_export.evaluation.benchmarks.benchmark import Benchmark, Question, choices
from star_export.evaluation.benchmarks.scoring import letter
from star_export.evaluation.record import Row
from star_export.evaluation.task import Example

FILE = "mmbench/mmbench_dev_20230712.tsv"
COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image")
OPTIONS = "ABCD"
#: What is added to a question's number in another order of its options, once for each.
ROUND = 1_000_000


class MMBench(Benchmark):
    """Kinds are the abilities."""

    splits = ("dev",)
    pictures = "https://download.openmmlab.com/mmclassification/datasets/mmbench/mmbench_dev_20230712.tsv"

    def read(self, split: str) -> Iterable[Question]:
        """The published table, whose pictures are in it."""
        text = self.data.read(FILE, source=self.pictures).decode(errors="replace")
        csv.field_size_limit(1 << 30)
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t")
        lacking = [column for column in COLUMNS if column not in (table.fieldnames or ())]
        if lacking:
            raise InputError(
                f"{self.data.root / FILE} is no table of MMBench: column {lacking[0]} is missing"
            )
        pictures: dict[str, str] = {}  # one string for all orders of a question's options
        for line in table:
            cells = {column: line[column] or "" for column in COLUMNS}
            whole = None not in line.values() and cells["index"].isdecimal()
            if not whole or cells["answer"] not in tuple(OPTIONS):
                place = f"{self.data.root / FILE}, line {table.line_num}"
                raise InputError(f"{place} is not whole; take the published file of the dev split again")
            cells["image"] = pictures.setdefault(cells["image"], cells["image"])
            yield _question(cells)

    def score(self, example: Example, answer: str) -> float:
        """1 for the right letter."""
        return float(letter(answer, letters=OPTIONS) == example.answer)

    def metrics(self, rows: Sequence[Row], variant: str) -> dict[str, float]:
        """Questions that are right in every order of their options, in percent; of those asked in all."""
        questions = self.questions(self.splits[-1])
        orders: dict[int, int] = defaultdict(int)
        for question in questions:
            orders[int(question.id) % ROUND] += 1
        scores: dict[int, list[float]] = defaultdict(list)
        for row in rows:
            scores[int(questions[row.index].id) % ROUND].append(row.answers[variant].score or 0.0)
        whole = [min(found) for number, found in scores.items() if len(found) == orders[number]]
        return {"circular": 100 * sum(whole) / len(whole)} if whole else {}


def _question(cells: dict[str, str]) -> Question:
    options: list[str] = []
    for option in (cells[column] for column in OPTIONS):
        if _empty(option):
            break
        options.append(option)
    hint = "" if _empty(cells["hint"]) else cells["hint"]
    return Question(
        id=cells["index"],
        kind=cells["category"],
        picture=cells["image"],
        prompt=choices(cells["question"], options, hint=hint),
        answer=cells["answer"],
    )


def _empty(cell: str) -> bool:
    return cell.lower() in ("", "nan", "none")
