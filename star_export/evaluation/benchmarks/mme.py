"""MME: two yes-or-no questions a picture, one of each answer, in fourteen subtasks."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from star_export.errors import InputError
from star_export.evaluation.benchmarks.benchmark import SHORT, Benchmark, Question
from star_export.evaluation.record import Row
from star_export.evaluation.task import Example

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
FOLDER = "MME/MME_Benchmark_release_version"
REQUEST = "Please answer yes or no."


class MME(Benchmark):
    """Kinds are the subtasks; the two questions of a picture stand next to each other."""

    splits = ("test",)
    pictures = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation"

    def read(self, split: str) -> Iterable[Question]:
        """Every subtask: texts beside their pictures, or in a folder beside that of the pictures."""
        for subtask in (*PERCEPTION, *COGNITION):
            folder = self.data.root / FOLDER / subtask
            apart = (folder / "questions_answers_YN").is_dir()
            texts = sorted((folder / "questions_answers_YN" if apart else folder).glob("*.txt"))
            if not texts:
                raise InputError(f"{folder} has no questions (*.txt); MME is published at {self.pictures}")
            for text in texts:
                yield from self._pair(subtask, text, _picture(folder / "images" if apart else folder, text))

    def _pair(self, subtask: str, text: Path, picture: Path) -> Iterable[Question]:
        name = text.relative_to(self.data.root).as_posix()
        lines = self.data.read(name, source=self.pictures).decode(errors="replace").splitlines()
        pairs = [line.split("\t") for line in lines if line.strip()]
        if len(pairs) != 2 or any(len(p) != 2 or p[1].strip().lower() not in ("yes", "no") for p in pairs):
            raise InputError(f"{text} must have two lines, each a question, a tab and Yes or No")
        for question, answer in pairs:
            yield Question(
                id=f"{subtask}/{picture.name}",
                kind=subtask,
                picture=picture,
                prompt=f"{question.replace(REQUEST, '').strip()}\n{SHORT}",
                answer=answer.strip().lower(),
            )

    def score(self, example: Example, answer: str) -> float:
        """1 where the answer begins with yes, or no, as expected."""
        said = answer.strip().lower()[:4]
        found = next((word for word in ("yes", "no") if word in said), "other")
        return float(found == example.answer)

    def metrics(self, rows: Sequence[Row], variant: str) -> dict[str, float]:
        """A subtask's score is its accuracy plus its share of pictures with two right answers, in percent.

        Perception (of 2000) and cognition (of 800) add up their subtasks, once each was asked.
        """
        scores: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            scores[row.kind][row.index // 2].append(row.answers[variant].score or 0.0)
        subtasks = {subtask: _score(list(pictures.values())) for subtask, pictures in scores.items()}
        found = {
            name: sum(subtasks[part] for part in parts)
            for name, parts in {"perception": PERCEPTION, "cognition": COGNITION}.items()
            if subtasks.keys() >= set(parts)
        }
        return found | {f"score, {subtask}": value for subtask, value in subtasks.items()}


def _score(pictures: Sequence[Sequence[float]]) -> float:
    """Accuracy and accuracy of pairs, both in percent, added up."""
    answers = [score for picture in pictures for score in picture]
    both = sum(sum(picture) == 2 for picture in pictures)
    return 100 * (sum(answers) / len(answers) + both / len(pictures))


def _picture(folder: Path, text: Path) -> Path:
    """The picture of a text: of the same name, whatever its format."""
    same = sorted(path for path in folder.glob(f"{text.stem}.*") if path.suffix != ".txt")
    return same[0] if same else folder / f"{text.stem}.jpg"
