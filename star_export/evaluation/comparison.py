"""STAR against other schedules and scores, other methods and blind choices, on one model and one task."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

from star_export.build import BuildOptions, resolve_spec
from star_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from star_export.engines import Runtime
from star_export.errors import SettingsError, option
from star_export.evaluation.answering import Variant
from star_export.evaluation.evaluate import ask_all, check_limit
from star_export.evaluation.few_bits import (
    Weights,
    WeightsReport,
    built_weights,
    few_bits,
    weights_reports,
)
from star_export.evaluation.methods import (
    RULES,
    STAR,
    Level,
    Method,
    PictureTokens,
    all_methods,
    check_rules,
    is_choice,
    prune_layer,
)
from star_export.evaluation.parts import Assembled, Before, Inside, Parts, built_parts
from star_export.evaluation.record import Record, Row
from star_export.evaluation.statistics import Estimate, Score, ScoreTable
from star_export.evaluation.task import Task, needed_image
from star_export.evaluation.tasks import open_task
from star_export.files import sha256
from star_export.flops import Layout
from star_export.preprocessing import render, tokenize
from star_export.progress import CaseProgress
from star_export.specs import DType, ExportSpec, check_keep, picture_tokens

#: The paper's budgets, as shares of all patches (arXiv 2505.12359, table 1).
PAPER_SHARES = (0.5, 0.2, 0.1, 0.05)
#: Visual tokens per layer that methods are compared at besides, on average.
AVERAGES = (128, 64, 32, 16)
#: Questions that are asked unless a number is given, of as many as there are.
USUAL_QUESTIONS = 350
#: Room in the bundles, or what the longest question and the task's answers need.
LEAST_TEXT_TOKENS, LEAST_NEW_TOKENS = 128, 32

#: Weights, configs, tokenizers and templates.
_MODEL_FILES = (".safetensors", ".json", ".model", ".jinja")


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of ``star-export compare``; see its help for each."""

    model: str
    task: str = "shapes"
    data: Path | None = None
    split: str | None = None
    seed: int = 0
    limit: int | None = None
    methods: Sequence[str] = ()
    averages: Sequence[int] = ()
    keep: Sequence[int] = ()
    prune_layer: int | None = None
    dtype: DType = "float32"
    quantize: Sequence[str] = ()
    answers: Path
    resume: bool = False
    runtime: Runtime = field(default_factory=Runtime)


@dataclass(frozen=True)
class MethodReport:
    """One method's result.

    Attributes:
        method: What it is.
        score: How it did.
        lead: Its accuracy minus that of the level's reference; None for that one, unpruned, or without it.
        layer: Decoder layers before it prunes inside; None for no pruning there.
        entering: Visual tokens that enter the decoder; like the next three, the mean over the pictures.
        keep: Visual tokens in the last layer.
        tokens_per_layer: Average of visual tokens over the decoder's layers.
        flops: Floating-point operations of a prefill, counted exactly, with the first question.
        speedup: Unpruned prefill time divided by this one's, median over the questions.
    """

    method: Method
    score: Score
    lead: Estimate | None
    layer: int | None
    entering: float
    keep: float
    tokens_per_layer: float
    flops: float
    speedup: float


@dataclass(frozen=True)
class Comparison:
    """A finished comparison; the first method is unpruned, and so are the first weights."""

    model: str
    task: str
    split: str
    seed: int
    questions: int
    layers: int
    methods: tuple[MethodReport, ...]
    weights: tuple[WeightsReport, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def compare(
    options: CompareOptions,
    progress: CaseProgress = lambda _done, _all: None,
    say: Callable[[str], None] = lambda _line: None,
) -> Comparison:
    """Ask one model every question, pruned in every way.

    Args:
        options: What to ask of whom.
        progress: Called with questions done and questions in all.
        say: Told what is being built.

    Raises:
        SettingsError: If an option is out of range, or the task's answers are scored elsewhere.
        InputError: If a benchmark's files or pictures are missing or damaged; what was answered is kept.
        CheckpointError: If the model cannot be read.
        PlatformError: If a package is missing.
    """
    task, split, limit = _questions(options)
    checkpoint = open_checkpoint(options.model)
    examples = (task.example(split, options.seed, index) for index in range(limit))
    questions, sizes = zip(*((e.question, needed_image(e).size[::-1]) for e in examples), strict=True)
    building = _building(options, task, checkpoint, questions)
    spec = _spec(building, checkpoint, options.prune_layer)
    pictures = [picture_tokens(spec.model, size) for size in sizes]
    rules, levels = check_rules(options.methods, spec), list(_levels(options, spec, pictures))
    methods = list(all_methods(rules, levels, spec, pictures))
    weights = few_bits(options.dtype, options.quantize, fmean(tokens for tokens, _ in pictures))
    settings = _settings(options, task, split, checkpoint, [*methods, *weights])
    record = Record(options.answers, settings, resume=options.resume)
    with (
        _parts(building, options.runtime, checkpoint, spec, methods, say) as parts,
        built_weights(building, weights, options.runtime, say) as built,
    ):
        variants = {method.name: _variant(method, spec, parts, options.seed) for method in methods}
        rows = ask_all(
            task,
            variants | {one.weights.name: one.variant for one in built},
            record,
            split=split,
            seed=options.seed,
            limit=limit,
            progress=progress,
        )
        first = parts.full.prepare(task.example(split, options.seed, rows[0].index))
        tokens = parts.full.pipeline.tokenize(rows[0].question, [first])
    counts = {"text_tokens": tokens.text_tokens, "query_tokens": tokens.query_positions.shape[1]}
    report = _Reporter(task, rows, spec, methods, pictures, counts)
    return Comparison(
        model=options.model,
        task=options.task,
        split=split,
        seed=options.seed,
        questions=limit,
        layers=spec.model.text.num_layers,
        methods=tuple(report.of(method) for method in methods),
        weights=weights_reports(built, report.scores),
    )


@dataclass(frozen=True)
class _Reporter:
    task: Task
    rows: Sequence[Row]
    spec: ExportSpec
    methods: Sequence[Method]
    pictures: Sequence[PictureTokens]
    counts: dict[str, int]

    @cached_property
    def scores(self) -> ScoreTable:
        return ScoreTable(self.rows)

    def of(self, method: Method) -> MethodReport:
        baseline = self.methods[0].name
        score = self.scores.score(method.name, baseline=baseline)
        layers = [
            _layout(method, self.spec, p).tokens(self.spec.model.text.num_layers) for p in self.pictures
        ]
        flops = [method.flops(self.spec, picture, **self.counts).exact for picture in self.pictures]
        return MethodReport(
            method=method,
            score=replace(score, metrics=self.task.metrics(self.rows, method.name)),
            lead=self._lead(method),
            layer=prune_layer(method.rule, self.spec),
            entering=fmean(tokens[0] for tokens in layers),
            keep=fmean(tokens[-1] for tokens in layers),
            tokens_per_layer=fmean(map(fmean, layers)),
            flops=fmean(flops),
            speedup=self.scores.speedup(method.name, baseline),
        )

    def _lead(self, method: Method) -> Estimate | None:
        if method.level is None or method.rule == method.level.reference:
            return None
        reference = Method(rule=method.level.reference, level=method.level)
        return self.scores.lead(method.name, reference.name) if reference in self.methods else None


def _questions(options: CompareOptions) -> tuple[Task, str, int]:
    """The task, its split, and how many questions to ask."""
    task = open_task(options.task, split=options.split, data=options.data)
    split = options.split or task.splits[-1]
    if judge := task.judge(split):
        raise SettingsError(f"{option('task', options.task)}: the scores of {split} are made by {judge}")
    usual = min(USUAL_QUESTIONS, task.size(split))
    return task, split, check_limit(task, split, usual if options.limit is None else options.limit)


def _levels(options: CompareOptions, spec: ExportSpec, pictures: Sequence[PictureTokens]) -> Iterator[Level]:
    """STAR's budgets, then the averages that are asked for; the usual ones if none is."""
    mean = fmean(tokens for tokens, _ in pictures)
    usual = not options.keep and not options.averages
    budgets = [int(share * mean + 0.5) for share in PAPER_SHARES] if usual else options.keep
    averages = [average for average in AVERAGES if average < mean] if usual else options.averages
    for keep in budgets:
        check_keep(spec.schedule, keep)
    for average in averages:
        if not 1 <= average < mean:
            raise SettingsError(
                f"{option('average')} must be from 1 to below the {mean:.0f} visual tokens of a picture, "
                f"got {average}"
            )
    yield from (Level(keep=keep) for keep in sorted(set(budgets), reverse=True))
    yield from (Level(average=average) for average in sorted(set(averages), reverse=True))


def _settings(
    options: CompareOptions,
    task: Task,
    split: str,
    checkpoint: Checkpoint,
    asked: Sequence[Method | Weights],
) -> dict[str, Any]:
    """All that the answers depend on."""
    settings = {name: getattr(options, name) for name in ("task", "seed", "prune_layer", "dtype")}
    data = {"data": dict(task.files)} if task.files else {}
    names = [variant.name for variant in asked]
    return settings | {"split": split, "model": _identity(checkpoint), "methods": names} | data


def _identity(checkpoint: Checkpoint) -> str | dict[str, str]:
    """What answers depend on, wherever it lies: the hub's commit, or the files that a build reads."""
    if checkpoint.revision is not None:
        return checkpoint.revision
    files = sorted(path for path in checkpoint.folder.iterdir() if path.suffix in _MODEL_FILES)
    return {path.name: sha256(path) for path in files}


def _spec(building: BuildOptions, checkpoint: Checkpoint, prune_layer: int | None) -> ExportSpec:
    """STAR's own settings on this model, with room for every budget."""
    spec = resolve_spec(replace(building, keep=1, prune_layer=prune_layer), checkpoint)
    first, last = spec.schedule
    return replace(spec, schedule=(first, replace(last, max_tokens=first.max_tokens - 1)))


def _building(
    options: CompareOptions, task: Task, checkpoint: Checkpoint, questions: Sequence[str]
) -> BuildOptions:
    """Of bundles that have room for every question."""
    return BuildOptions(
        model=options.model,
        output=options.answers,
        dtype=options.dtype,
        max_text_tokens=max(LEAST_TEXT_TOKENS, _longest(checkpoint, questions)),
        max_new_tokens=max(LEAST_NEW_TOKENS, task.max_new_tokens),
    )


def _longest(checkpoint: Checkpoint, questions: Sequence[str]) -> int:
    """Text tokens of the longest question, with the model's template around it."""
    from star_export.preprocessing.convert import fit_content, prompt_spec
    from star_export.preprocessing.processor import read_processor

    processor = read_processor(checkpoint.folder)
    tokenizer = processor.tokenizer.backend_tokenizer
    room = checkpoint.model.text.max_position_embeddings
    prompt = prompt_spec(processor, checkpoint.model)
    prompt = fit_content(prompt, tokenizer, max_text_tokens=room, max_images=1)
    rendered = (render(question, prompt) for question in questions)
    return max(tokenize(text, tokenizer, prompt, tokens_per_image=[1]).text_tokens for text in rendered)


@contextmanager
def _parts(
    building: BuildOptions,
    runtime: Runtime,
    checkpoint: Checkpoint,
    spec: ExportSpec,
    methods: Sequence[Method],
    say: Callable[[str], None],
) -> Iterator[Parts]:
    """What the methods run on, gone afterwards."""
    befores = [before for method in methods if isinstance(before := _before(method, spec), Before)]
    insides = [_inside(method, spec) for method in methods]
    with built_parts(
        building,
        checkpoint,
        list(dict.fromkeys(befores)),
        list(dict.fromkeys(insides)),
        runtime=runtime,
        tokens=spec.largest_image,
        say=say,
    ) as parts:
        yield parts


def _variant(method: Method, spec: ExportSpec, parts: Parts, seed: int) -> Variant:
    return Assembled(
        parts=parts,
        before=_before(method, spec),
        inside=_inside(method, spec),
        layout=partial(_layout, method, spec),
        seed=seed,
    )


def _layout(method: Method, spec: ExportSpec, picture: PictureTokens) -> Layout:
    layout = method.layout(spec, picture)
    assert layout is not None  # as all_methods saw to
    return layout


def _before(method: Method, spec: ExportSpec) -> Before | str | None:
    if method.level is None:
        return None
    rule = RULES[method.rule]
    if rule.stage1 is None or is_choice(rule.stage1):
        return rule.stage1
    by_share = method.rule == STAR and spec.model.tiling is not None
    return Before(score=rule.stage1, by_share=by_share, proportional=rule.proportional)


def _inside(method: Method, spec: ExportSpec) -> Inside:
    if method.level is None:
        return Inside()
    layer, rule = prune_layer(method.rule, spec), RULES[method.rule]
    stages = () if layer is None or rule.stage2 is None else ((layer, rule.stage2),)
    return Inside(stages=stages, proportional=rule.proportional)
