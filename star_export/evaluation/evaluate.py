"""A bundle's score on a task, and what of the unpruned bundle's score it keeps."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from star_export.answer.pipeline import Pipeline, open_pipeline
from star_export.bundle import MANIFEST, Bundle, open_bundle
from star_export.engines import Runtime
from star_export.errors import SettingsError, option
from star_export.evaluation.answering import Batched, Bundled, Looker, Variant
from star_export.evaluation.record import Record, Row
from star_export.evaluation.statistics import Score, ScoreTable, kinds_table
from star_export.evaluation.task import Task
from star_export.evaluation.tasks import open_task
from star_export.files import sha256, write_json
from star_export.progress import CaseProgress
from star_export.reports import store_report
from star_export.serving.scheduler import Scheduler
from star_export.specs import ExportSpec, Keep, check_keep, spelled_keep

UNPRUNED = "unpruned"
#: Questions that are asked before the first answers are written, in batches: slots are seldom empty then.
AHEAD = 4


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options of ``star-export eval``; see its help for each."""

    bundle: Path
    task: str = "shapes"
    data: Path | None = None
    split: str | None = None
    seed: int = 0
    limit: int | None = None
    keep: Sequence[Keep] = ()
    baseline: Path | None = None
    alone: bool = False
    batch: int = 1
    model: str | None = None
    answers: Path | None = None
    resume: bool = False
    min_accuracy: float | None = None
    min_retention: float | None = None
    runtime: Runtime = field(default_factory=Runtime)


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        bundle: The bundle's folder.
        task: Name of the task.
        split: The split.
        seed: Seed of the split.
        questions: How many were asked.
        scores: By variant: ``unpruned``, and ``keep N`` or ``keep X %``; empty where others keep the answers.
        answers: The file with every answer.
        judge: Who scores them, if it cannot be done here.
        submissions: By variant, files in the form that the judge takes.
        missed: Limits that a score is below, a line each; empty when all are met.
    """

    bundle: str
    task: str
    split: str
    seed: int
    questions: int
    scores: dict[str, Score]
    answers: str
    judge: str | None
    submissions: dict[str, str]
    missed: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every limit was met."""
        return not self.missed

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"passed": self.passed, **asdict(self)}

    def to_markdown(self) -> str:
        """A table: overall, what the task reports besides, by kind; a column per variant; empty unscored."""
        return kinds_table(self.scores) if self.scores else ""


def evaluate_bundle(
    options: EvalOptions,
    progress: CaseProgress = lambda _done, _all: None,
    say: Callable[[str], None] = lambda _line: None,
) -> Evaluation:
    """Ask a bundle every question of a split, and the unpruned bundle too unless ``options.alone``.

    Args:
        options: What to ask of whom.
        progress: Called with questions done and questions in all.
        say: Told what is being built.

    Raises:
        SettingsError: If an option is out of range.
        InputError: If a benchmark's files or pictures are missing or damaged; what was answered is kept.
        BundleError, CheckpointError: If a bundle, or the checkpoint of the baseline, cannot be read.
        PlatformError: If the baseline has to be built and a package is missing.
    """
    bundle = open_bundle(options.bundle, verify=True)
    task = open_task(options.task, split=options.split, data=options.data)
    split = options.split or task.splits[-1]
    limit = _check(options, bundle.spec, task, split)
    with ExitStack() as stack:
        baseline = None
        if bundle.spec.schedule and not options.alone:
            baseline = stack.enter_context(_baseline(options, bundle, say))
        variants = _variants(options, baseline, stack)
        path = options.answers or answers_path(options, split)
        settings = _settings(options, bundle, baseline, variants, task, split)
        record = Record(path, settings, resume=options.resume)
        rows = ask_all(
            task,
            variants,
            record,
            split=split,
            seed=options.seed,
            limit=limit,
            progress=progress,
            together=1 if options.batch == 1 else AHEAD * options.batch,
        )
    judge = task.judge(split)
    scores = {} if judge else _scores(task, rows, variants)
    evaluation = Evaluation(
        bundle=str(options.bundle),
        task=options.task,
        split=split,
        seed=options.seed,
        questions=limit,
        scores=scores,
        answers=str(path),
        judge=judge,
        submissions=_submit(task, split, rows, variants, path) if judge else {},
        missed=tuple(_missed(options, scores)),
    )
    _store(bundle, evaluation, rows, settings | {"limit": options.limit})
    return evaluation


def _check(options: EvalOptions, spec: ExportSpec, task: Task, split: str) -> int:
    """How many questions to ask; refuse what cannot be done before minutes of work."""
    limits = {"min_accuracy": options.min_accuracy, "min_retention": options.min_retention}
    for name, limit in limits.items():
        if limit is not None and (judge := task.judge(split)):
            raise SettingsError(f"{option(name)} needs scores; those of {split} are made by {judge}")
    if options.min_retention is not None and (not spec.schedule or options.alone):
        raise SettingsError(
            f"{option('min_retention')} compares a pruned bundle with its baseline; here is none"
        )
    if spec.schedule:
        for keep in options.keep:
            check_keep(spec.schedule, keep)
    return check_limit(task, split, options.limit)


def _scores(task: Task, rows: Sequence[Row], variants: Iterable[str]) -> dict[str, Score]:
    found = ScoreTable(rows)
    first = UNPRUNED if UNPRUNED in variants else None
    return {
        name: replace(found.score(name, baseline=first), metrics=task.metrics(rows, name))
        for name in variants
    }


def _submit(
    task: Task, split: str, rows: Sequence[Row], variants: Iterable[str], answers: Path
) -> dict[str, str]:
    """Write each variant's answers beside the file of all answers, in the form that the judge takes."""
    written: dict[str, str] = {}
    for name in variants:
        texts = {row.index: row.answers[name].text for row in rows}
        target = answers.with_name(f"{answers.stem}.{name.replace(' ', '-').replace('%', 'percent')}.json")
        write_json(target, task.submission(split, texts))
        written[name] = str(target)
    return written


@contextmanager
def _baseline(options: EvalOptions, bundle: Bundle, say: Callable[[str], None]) -> Iterator[Path]:
    from star_export.baseline import unpruned_baseline  # needs the export extra to build one

    source = options.model or bundle.manifest["source"]["model"]
    with unpruned_baseline(
        bundle, options.baseline, source=source, runtime=options.runtime, progress=say
    ) as folder:
        yield folder


def _settings(
    options: EvalOptions,
    bundle: Bundle,
    baseline: Path | None,
    variants: Mapping[str, Variant],
    task: Task,
    split: str,
) -> dict[str, Any]:
    """All that the answers depend on. A baseline that is built again has the same weights."""
    weights = open_bundle(baseline).weights if baseline else ()
    data = {"data": dict(task.files)} if task.files else {}
    batch = {"batch": options.batch} if options.batch > 1 else {}
    return {
        "task": options.task,
        "split": split,
        "seed": options.seed,
        "backend": options.runtime.backend,
        "bundle": sha256(bundle.path(MANIFEST)),
        "baseline": [file.sha256 for file in weights],
        "variants": list(variants),
        **data,
        **batch,
    }


def _store(bundle: Bundle, found: Evaluation, rows: Sequence[Row], settings: dict[str, Any]) -> None:
    """Put the scores into the bundle, those of each kind of question with their intervals."""
    shares = [f"{name} {100 * score.accuracy.value:.1f} %" for name, score in found.scores.items()]
    shares = shares or [f"answers for {found.judge}"]
    answers, scores = Path(found.answers), asdict(found)["scores"]
    for kind in dict.fromkeys(row.kind for row in rows):
        alone = ScoreTable([row for row in rows if row.kind == kind])
        for name in scores:
            scores[name]["kinds"][kind] = asdict(alone.score(name).accuracy)
    store_report(
        bundle,
        what=f"eval {found.task} {found.split}",
        backend=settings["backend"],
        passed=found.passed,
        summary=f"{', '.join(shares)} of {found.questions} questions" + "; too low" * (not found.passed),
        versions={},
        settings=settings,
        result={
            "questions": found.questions,
            "scores": scores,
            "missed": found.missed,
            "answers": {"name": answers.name, "sha256": sha256(answers)},
        },
    )


def _missed(options: EvalOptions, scores: Mapping[str, Score]) -> Iterator[str]:
    for name, score in scores.items():
        right, limit = score.accuracy.value, options.min_accuracy
        if limit is not None and right < limit:
            yield f"{name} answers {right:.4f} right, below {limit:g}"
        kept, limit = score.retention, options.min_retention
        if limit is not None and kept is not None and kept.value < limit:
            yield f"{name} keeps {kept.value:.4f} of the unpruned accuracy, below {limit:g}"


def ask_all(
    task: Task,
    variants: Mapping[str, Variant],
    record: Record,
    *,
    split: str,
    seed: int,
    limit: int,
    progress: CaseProgress,
    together: int = 1,
) -> list[Row]:
    """Ask every variant every question that the record does not answer yet, some of them together."""
    for first in range(0, limit, together):
        progress(first, limit)
        asked = [index for index in range(first, min(first + together, limit)) if index not in record.rows]
        examples = [task.example(split, seed, index) for index in asked]
        answers = {name: variant.answer_all(examples, task) for name, variant in variants.items()}
        for place, example in enumerate(examples):
            own = {name: found[place] for name, found in answers.items()}
            record.add(Row(example.index, example.kind, example.question, example.answer, own))
    progress(limit, limit)
    return [record.rows[index] for index in range(limit)]


def answers_path(options: EvalOptions, split: str) -> Path:
    """Where the answers go unless the user says otherwise: beside the bundle."""
    folder = options.bundle.resolve()
    return folder.with_name(f"{folder.name}.{options.task}-{split}-{options.seed}.jsonl")


def check_limit(task: Task, split: str, limit: int | None) -> int:
    """Questions to ask.

    Raises:
        SettingsError: If there are not so many.
    """
    size = task.size(split)
    wanted = size if limit is None else limit
    if not 1 <= wanted <= size:
        raise SettingsError(
            f"{option('limit')} must be from 1 to the {size} questions of {split}, got {wanted}"
        )
    return wanted


def _variants(options: EvalOptions, baseline: Path | None, stack: ExitStack) -> dict[str, Variant]:
    """The unpruned baseline, if there is one, and the bundle at every budget; ``stack`` closes them."""
    pipeline, at = _open(options.bundle, options, stack)
    variants: dict[str, Variant] = {}
    if baseline is not None:
        variants[UNPRUNED] = _open(baseline, options, stack)[1](None)
    if not pipeline.spec.schedule:
        pipeline.budget(options.keep[0] if options.keep else None)  # refuses keep
        return {UNPRUNED: at(None)}
    for keep in options.keep or (None,):
        variants[_budget_name(pipeline, keep)] = at(keep)
    return variants


def _open(
    folder: Path, options: EvalOptions, stack: ExitStack
) -> tuple[Pipeline, Callable[[Keep | None], Variant]]:
    """A bundle, and what answers at a budget."""
    runtime = replace(options.runtime, batches=options.batch > 1)
    pipeline = stack.enter_context(open_pipeline(folder, runtime))
    if options.batch == 1:
        return pipeline, partial(Bundled, Looker(pipeline))
    most = pipeline.session.max_batch
    if most is not None and options.batch > most:
        raise SettingsError(
            f"{option('batch')} must be from 1 to the {most} of {folder}, got {options.batch}"
        )
    # Nobody reads along: between two steps is quicker on the whole.
    scheduler = Scheduler(pipeline, slots=options.batch, queue=AHEAD * options.batch, overlap=False)
    return pipeline, partial(Batched, stack.enter_context(scheduler))


def _budget_name(pipeline: Pipeline, keep: Keep | None) -> str:
    """What a budget is called: a number, or a share where each picture's number is its own."""
    stages = pipeline.spec.decoder_stages
    if keep is None and stages and stages[-1].share is not None:
        return f"keep {100 * stages[-1].share:g} %"
    return f"keep {spelled_keep(pipeline.budget(keep))}"
