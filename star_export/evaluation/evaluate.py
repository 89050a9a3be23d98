"""A bundle's score on a task, and what of the unpruned bundle's score it keeps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from star_export.bundle import MANIFEST
from star_export.errors import SettingsError
from star_export.evaluation.answering import Bundled, Looker, Variant
from star_export.evaluation.record import Record, Row
from star_export.evaluation.statistics import Score, Scores, kinds_table
from star_export.evaluation.task import Task, open_task
from star_export.files import sha256
from star_export.pipeline import load

UNPRUNED = "unpruned"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options of ``star-export eval``; see its help for each."""

    bundle: Path
    task: str = "shapes"
    split: str = "test"
    seed: int = 0
    limit: int | None = None
    keep: Sequence[int] = ()
    baseline: Path | None = None
    answers: Path | None = None
    resume: bool = False
    backend: str = "onnxruntime"
    plugin_library: Path | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        bundle: The bundle's folder.
        task: Name of the task.
        split: The split.
        seed: Seed of the split.
        questions: How many were asked.
        scores: By variant: ``unpruned`` and ``keep N``.
        answers: The file with every answer.
    """

    bundle: str
    task: str
    split: str
    seed: int
    questions: int
    scores: dict[str, Score]
    answers: str

    def below(self, *, min_accuracy: float | None, min_retention: float | None) -> list[str]:
        """What misses a limit, a line each; for a CI gate.

        Raises:
            SettingsError: If a retention is asked for and there is no baseline.
        """
        if min_retention is not None and all(s.retention is None for s in self.scores.values()):
            raise SettingsError(
                "--min-retention needs a pruned bundle and an unpruned baseline that answers something right"
            )
        missed = []
        for name, score in self.scores.items():
            if min_accuracy is not None and score.accuracy.value < min_accuracy:
                missed.append(f"{name} answers {score.accuracy.value:.4f} right, below {min_accuracy:g}")
            if min_retention is not None and score.retention and score.retention.value < min_retention:
                missed.append(
                    f"{name} keeps {score.retention.value:.4f} of unpruned, below {min_retention:g}"
                )
        return missed

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """A table: overall and by kind, a column per variant."""
        return kinds_table(self.scores)


def evaluate_bundle(options: EvalOptions, progress: Progress = lambda _done, _all: None) -> Evaluation:
    """Ask a bundle every question of a split.

    Args:
        options: What to ask of whom.
        progress: Called with questions done and questions in all.

    Raises:
        SettingsError: If an option is out of range.
        BundleError: If a bundle is damaged.
    """
    task, limit = check_options(options)
    variants = _variants(options)
    settings = {
        "task": options.task,
        "split": options.split,
        "seed": options.seed,
        "backend": options.backend,
        "bundle": sha256(options.bundle / MANIFEST),
        "baseline": sha256(options.baseline / MANIFEST) if options.baseline else None,
        "variants": list(variants),
    }
    path = options.answers or answers_path(options)
    record = Record(path, settings, resume=options.resume)
    rows = ask_all(
        task, variants, record, split=options.split, seed=options.seed, limit=limit, progress=progress
    )
    found, baseline = Scores(rows), UNPRUNED if UNPRUNED in variants else None
    return Evaluation(
        bundle=str(options.bundle),
        task=options.task,
        split=options.split,
        seed=options.seed,
        questions=limit,
        scores={name: found.score(name, baseline=baseline) for name in variants},
        answers=str(path),
    )


def ask_all(
    task: Task,
    variants: Mapping[str, Variant],
    record: Record,
    *,
    split: str,
    seed: int,
    limit: int,
    progress: Progress,
) -> list[Row]:
    """Ask every variant every question that the record does not answer yet."""
    for index in range(limit):
        progress(index, limit)
        if index not in record.rows:
            example = task.example(split, seed, index)
            answers = {name: variant.answer(example, task) for name, variant in variants.items()}
            record.add(Row(index, example.kind, example.question, example.answer, answers))
    progress(limit, limit)
    return [record.rows[index] for index in range(limit)]


def answers_path(options: EvalOptions) -> Path:
    """Where the answers go unless the user says otherwise: beside the bundle."""
    folder = options.bundle.resolve()
    return folder.with_name(f"{folder.name}.{options.task}-{options.split}-{options.seed}.jsonl")


def check_options(options: EvalOptions) -> tuple[Task, int]:
    """The task, and how many of its questions to ask.

    Raises:
        SettingsError: If there is no such task or split, or not so many questions.
    """
    task = open_task(options.task, split=options.split)
    return task, check_limit(task, options.split, options.limit)


def check_limit(task: Task, split: str, limit: int | None) -> int:
    """Questions to ask.

    Raises:
        SettingsError: If there are not so many.
    """
    size = task.size(split)
    wanted = size if limit is None else limit
    if not 1 <= wanted <= size:
        raise SettingsError(f"--limit must be from 1 to the {size} questions of {split}, got {wanted}")
    return wanted


def _variants(options: EvalOptions) -> dict[str, Variant]:
    """The unpruned baseline, if there is one, and the bundle at every budget."""
    looker = _open(options, options.bundle)
    variants: dict[str, Variant] = {}
    if options.baseline is not None:
        variants[UNPRUNED] = Bundled(_open(options, options.baseline), None)
    if looker.pipeline.spec.star is None:
        looker.pipeline.budget(options.keep[0] if options.keep else None)  # refuses --keep
        return {UNPRUNED: Bundled(looker, None)}
    for keep in dict.fromkeys(looker.pipeline.budget(k) for k in options.keep or (None,)):
        variants[f"keep {keep}"] = Bundled(looker, keep)
    return variants


def _open(options: EvalOptions, folder: Path) -> Looker:
    return Looker(
        load(folder, backend=options.backend, threads=options.threads, plugin_library=options.plugin_library)
    )
