"""STAR against its own stages, FastV and blind choices, on one model and one task."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from star_export.answer.pipeline import open_pipeline
from star_export.build import BuildOptions, build, resolve_spec
from star_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from star_export.engines import Runtime
from star_export.evaluation.answering import Looker
from star_export.evaluation.evaluate import ask_all, check_limit
from star_export.evaluation.methods import (
    STAR,
    Bundles,
    Method,
    PictureTokens,
    Pruned,
    all_methods,
    fastv_layer,
)
from star_export.evaluation.record import Record
from star_export.evaluation.statistics import Estimate, Score, ScoreTable
from star_export.evaluation.tasks import open_task
from star_export.files import scratch_folder, sha256
from star_export.progress import CaseProgress
from star_export.specs import DType, ExportSpec, check_keep, picture_tokens

#: The paper's budgets, as shares of all patches (arXiv 2505.12359, table 1).
PAPER_SHARES = (0.5, 0.2, 0.1, 0.05)
MAX_TEXT_TOKENS, MAX_NEW_TOKENS = 128, 32

#: Weights, configs, tokenizers and templates.
_MODEL_FILES = (".safetensors", ".json", ".model", ".jinja")


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of ``star-export compare``; see its help for each."""

    model: str
    task: str = "shapes"
    split: str = "test"
    seed: int = 0
    limit: int | None = None
    keep: Sequence[int] = ()
    prune_layer: int | None = None
    dtype: DType = "float32"
    answers: Path
    resume: bool = False
    runtime: Runtime = field(default_factory=Runtime)


@dataclass(frozen=True)
class MethodReport:
    """One method's result.

    Attributes:
        method: What it is.
        score: How it did.
        lead: STAR's accuracy at the same budget minus this one's; None for STAR and unpruned.
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
    """A finished comparison; the first method is unpruned."""

    model: str
    task: str
    split: str
    seed: int
    questions: int
    prune_layer: int
    layers: int
    methods: tuple[MethodReport, ...]

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
        SettingsError: If an option is out of range.
        CheckpointError: If the model cannot be read.
        PlatformError: If a package is missing.
    """
    task = open_task(options.task, split=options.split)
    limit = check_limit(task, options.split, options.limit)
    checkpoint = open_checkpoint(options.model)
    spec = _spec(options, checkpoint)
    pictures = [
        picture_tokens(spec.model, task.example(options.split, options.seed, index).image.size[::-1])
        for index in range(limit)
    ]
    methods = all_methods(_budgets(options, spec, pictures), spec, pictures)
    settings = {name: getattr(options, name) for name in ("task", "split", "seed", "prune_layer", "dtype")}
    settings["model"] = _identity(checkpoint)
    settings["methods"] = [method.name for method in methods]
    record = Record(options.answers, settings, resume=options.resume)
    with _bundles(options, spec, say) as bundles:
        rows = ask_all(
            task,
            {method.name: Pruned(method, bundles) for method in methods},
            record,
            split=options.split,
            seed=options.seed,
            limit=limit,
            progress=progress,
        )
        first = bundles.full.prepare(task.example(options.split, options.seed, rows[0].index))
        tokens = bundles.full.pipeline.tokenize(rows[0].question, [first])
    sizes = {"text_tokens": tokens.text_tokens, "query_tokens": tokens.query_positions.shape[1]}
    report = _Reporter(ScoreTable(rows), spec, methods[0].name, pictures, sizes)
    return Comparison(
        model=options.model,
        task=options.task,
        split=options.split,
        seed=options.seed,
        questions=limit,
        prune_layer=spec.decoder_stages[0].after_layer,
        layers=spec.model.text.num_layers,
        methods=tuple(report.of(method) for method in methods),
    )


@dataclass(frozen=True)
class _Reporter:
    scores: ScoreTable
    spec: ExportSpec
    baseline: str
    pictures: Sequence[PictureTokens]
    sizes: dict[str, int]

    def of(self, method: Method) -> MethodReport:
        alone = method.rule == STAR or method.name == self.baseline
        layers = [self._tokens(method, picture) for picture in self.pictures]
        flops = [method.flops(self.spec, picture, **self.sizes).exact for picture in self.pictures]
        return MethodReport(
            method=method,
            score=self.scores.score(method.name, baseline=self.baseline),
            lead=None if alone else self.scores.lead(f"{STAR} {method.budget}", method.name),
            layer=method.layer(self.spec),
            entering=fmean(tokens[0] for tokens in layers),
            keep=fmean(tokens[-1] for tokens in layers),
            tokens_per_layer=fmean(map(fmean, layers)),
            flops=fmean(flops),
            speedup=self.scores.speedup(method.name, self.baseline),
        )

    def _tokens(self, method: Method, picture: PictureTokens) -> list[int]:
        """Visual tokens in each layer."""
        return method.layout(self.spec, picture).tokens(self.spec.model.text.num_layers)


def _budgets(options: CompareOptions, spec: ExportSpec, pictures: Sequence[PictureTokens]) -> list[int]:
    mean = fmean(tokens for tokens, _ in pictures)
    budgets = list(options.keep) or [int(share * mean + 0.5) for share in PAPER_SHARES]
    for keep in budgets:
        check_keep(spec.schedule, keep)
    return sorted(dict.fromkeys(budgets), reverse=True)


def _identity(checkpoint: Checkpoint) -> str | dict[str, str]:
    """What answers depend on, wherever it lies: the hub's commit, or the files that a build reads."""
    if checkpoint.revision is not None:
        return checkpoint.revision
    files = sorted(path for path in checkpoint.folder.iterdir() if path.suffix in _MODEL_FILES)
    return {path.name: sha256(path) for path in files}


def _spec(options: CompareOptions, checkpoint: Checkpoint) -> ExportSpec:
    """STAR's own settings on this model, with room for every budget."""
    building = _building(options, output=Path(), keep=1, prune_layer=options.prune_layer)
    spec = resolve_spec(building, checkpoint)
    first, last = spec.schedule
    return replace(spec, schedule=(first, replace(last, max_tokens=first.max_tokens - 1)))


def _building(options: CompareOptions, **settings: Any) -> BuildOptions:
    return BuildOptions(
        model=options.model,
        dtype=options.dtype,
        max_text_tokens=MAX_TEXT_TOKENS,
        max_new_tokens=MAX_NEW_TOKENS,
        **settings,
    )


@contextmanager
def _bundles(options: CompareOptions, spec: ExportSpec, say: Callable[[str], None]) -> Iterator[Bundles]:
    """What all methods run on, gone afterwards."""
    with ExitStack() as stack:
        parent, prefix = options.answers.parent, f".{options.answers.name}.compare-"
        scratch = stack.enter_context(scratch_folder(parent, prefix))

        def make(name: str, **settings: Any) -> Looker:
            say(f"building {name}")
            building = _building(options, output=scratch / name, **settings)
            return Looker(stack.enter_context(open_pipeline(build(building).folder, options.runtime)))

        # In these, stage 1 drops nothing unless a method asks for it.
        room = {"drop_ratio": 0.0, "keep": 1, "max_keep": spec.max_visual_tokens}
        own = spec.decoder_stages[0].after_layer
        layers = dict.fromkeys((own, fastv_layer(spec.model.text.num_layers)))
        pruned = {layer: make(f"pruned-after-{layer}", prune_layer=layer, **room) for layer in layers}
        yield Bundles(spec, make("unpruned", prune=False), pruned, options.seed)
