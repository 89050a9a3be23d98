"""The smallest schedule that answers as the unpruned model does, on given pictures and questions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from star_export.answer.pipeline import open_pipeline
from star_export.answer.request import Requests
from star_export.baseline import baseline_options, unpruned_baseline
from star_export.bundle import MANIFEST, Bundle, open_bundle
from star_export.checkpoint.checkpoint import open_checkpoint
from star_export.engines import Runtime
from star_export.errors import InputError, SettingsError, StarExportError, option
from star_export.evaluation.answering import Bundled, Looker, Variant
from star_export.evaluation.evaluate import ask_all, check_limit
from star_export.evaluation.methods import UNPRUNED
from star_export.evaluation.pairs import ALL, Pairs
from star_export.evaluation.parts import Assembled, Before, Inside, built_parts
from star_export.evaluation.record import Record
from star_export.evaluation.task import Task, needed_image
from star_export.evaluation.tasks import BENCHMARKS, TASKS, open_task
from star_export.evaluation.trials import Trial, built_trials, own_trials
from star_export.evaluation.tuning_report import Asked, Reporter, Tuning, build_command, smallest
from star_export.files import sha256
from star_export.flops import Layout
from star_export.progress import CaseProgress
from star_export.specs import ExportSpec, Keep


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Options of ``star-export tune``; see its help for each."""

    bundle: Path
    data: Path | None = None
    task: str | None = None
    split: str = "test"
    seed: int = 0
    limit: int | None = None
    keep: Sequence[Keep] = ()
    layers: Sequence[tuple[int, ...]] = ()
    stage1: Sequence[str] = ()
    stage2: Sequence[str] = ()
    tolerance: float = 0.01
    model: str | None = None
    baseline: Path | None = None
    answers: Path
    resume: bool = False
    runtime: Runtime = field(default_factory=Runtime)


def tune(
    options: TuneOptions,
    progress: CaseProgress = lambda _done, _all: None,
    say: Callable[[str], None] = lambda _line: None,
) -> Tuning:
    """Ask a model every question at every schedule, and unpruned.

    Args:
        options: What to try on which questions.
        progress: Called with questions done and questions in all.
        say: Told what is being built.

    Raises:
        SettingsError: If an option is out of range.
        InputError: If a picture or a question cannot be used.
        BundleError, CheckpointError: If the bundle, or the checkpoint of the baseline, cannot be read.
        PlatformError: If a package is missing.
    """
    task, split = _task(options)
    limit = check_limit(task, split, options.limit)
    if not 0 <= options.tolerance < 1:
        raise SettingsError(f"{option('tolerance')} must be from 0 to below 1, got {options.tolerance:g}")
    bundle = open_bundle(options.bundle)
    options.runtime.check(bundle)
    trials = _trials(options, bundle.spec)
    requests = Requests(bundle)
    asked = [_look(requests, task, split, options.seed, index) for index in range(limit)]
    record = Record(options.answers, _settings(options, bundle, trials), resume=options.resume)
    with _variants(options, bundle, trials, say) as variants:
        rows = ask_all(task, variants, record, split=split, seed=options.seed, limit=limit, progress=progress)
    answered = not isinstance(task, Pairs) or task.answered
    report = Reporter(rows, bundle.spec, asked, answered=answered)
    reports = [report.of(None), *map(report.of, trials)]
    best = smallest(reports[1:], options.tolerance)
    return Tuning(
        bundle=str(options.bundle),
        questions=limit,
        answered=answered,
        tolerance=options.tolerance,
        trials=tuple(reports),
        proposal=None if best is None else reports[1 + best].name,
        command=None if best is None else build_command(bundle, trials[best], options.model),
        answers=str(options.answers),
    )


def _task(options: TuneOptions) -> tuple[Task, str]:
    if (options.data is None) == (options.task is None):
        raise SettingsError(f"give {option('data')} with pictures and questions, or {option('task')}")
    if options.data is not None:
        return Pairs(options.data), ALL
    if options.task in BENCHMARKS:
        raise SettingsError(
            f"{option('task', options.task)} is a benchmark, of which star-export compare asks; tune asks "
            f"{' or '.join(TASKS)}, or pairs from {option('data')}"
        )
    assert options.task is not None
    return open_task(options.task, split=options.split), options.split


def _trials(options: TuneOptions, spec: ExportSpec) -> list[Trial]:
    if options.layers or options.stage1 or options.stage2:
        if options.baseline is not None:
            raise SettingsError(
                f"{option('baseline')} has no meaning with {option('layers')}, {option('stage1')} or "
                f"{option('stage2')}: the unpruned bundle is built with the others"
            )
        return built_trials(spec, options.layers, options.stage1, options.stage2, options.keep)
    return own_trials(spec, options.keep)


def _look(requests: Requests, task: Task, split: str, seed: int, index: int) -> Asked:
    """Prepare a question, so that one that cannot be asked is refused before minutes of work."""
    example = task.example(split, seed, index)
    try:
        (image,) = requests.prepare(needed_image(example))
        tokens = requests.tokenize(example.question, [image], tokens_per_image=[1])
    except StarExportError as error:
        place = task.place(index) if isinstance(task, Pairs) else f"question {index}"
        raise InputError(f"{place}: {error.marked}") from error
    packing = image.packing
    return Asked(
        picture=(packing.tokens, packing.newlines),
        text_tokens=tokens.text_tokens,
        query_tokens=tokens.query_positions.shape[1],
    )


def _settings(options: TuneOptions, bundle: Bundle, trials: Sequence[Trial]) -> dict[str, Any]:
    """All that the answers depend on."""
    return {
        "data": None if options.data is None else sha256(options.data),
        "task": options.task,
        "split": options.split,
        "seed": options.seed,
        "bundle": sha256(bundle.path(MANIFEST)),
        "schedules": [trial.name for trial in trials],
    }


@contextmanager
def _variants(
    options: TuneOptions, bundle: Bundle, trials: Sequence[Trial], say: Callable[[str], None]
) -> Iterator[Mapping[str, Variant]]:
    source = options.model or bundle.manifest["source"]["model"]
    open_own = _own_variants if trials[0].own else _built_variants
    with open_own(options, bundle, trials, source, say) as variants:
        yield variants


@contextmanager
def _own_variants(
    options: TuneOptions, bundle: Bundle, trials: Sequence[Trial], source: str, say: Callable[[str], None]
) -> Iterator[Mapping[str, Variant]]:
    """The bundle itself at every budget."""
    with ExitStack() as stack:
        full = stack.enter_context(
            unpruned_baseline(bundle, options.baseline, source=source, runtime=options.runtime, progress=say)
        )
        looker, whole = (
            Looker(stack.enter_context(open_pipeline(folder, options.runtime)))
            for folder in (options.bundle, full)
        )
        own = {trial.name: Bundled(looker, trial.keep) for trial in trials}
        yield {UNPRUNED: Bundled(whole, None), **own}


@contextmanager
def _built_variants(
    options: TuneOptions, bundle: Bundle, trials: Sequence[Trial], source: str, say: Callable[[str], None]
) -> Iterator[Mapping[str, Variant]]:
    """Parts for all of them, in a scratch folder beside the answers."""
    building = baseline_options(bundle, options.answers, source=source, runtime=options.runtime)
    with built_parts(
        building,
        open_checkpoint(source),
        list(dict.fromkeys(_before(trial) for trial in trials)),
        list(dict.fromkeys(_inside(trial) for trial in trials)),
        runtime=options.runtime,
        tokens=bundle.spec.largest_image,
        say=say,
    ) as parts:

        def assembled(before: Before | None, inside: Inside, layout: Callable[..., Layout]) -> Assembled:
            return Assembled(parts=parts, before=before, inside=inside, layout=layout)

        whole = assembled(None, Inside(), lambda picture: Layout(entering=picture[0]))
        yield {UNPRUNED: whole} | {t.name: assembled(_before(t), _inside(t), t.layout) for t in trials}


def _before(trial: Trial) -> Before:
    assert trial.stage1 is not None
    return Before(score=trial.stage1, proportional=trial.spec.proportional)


def _inside(trial: Trial) -> Inside:
    stages = tuple((stage.after_layer, stage.score) for stage in trial.spec.decoder_stages)
    return Inside(stages=stages, proportional=trial.spec.proportional)
