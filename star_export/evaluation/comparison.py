"""STAR against its own stages, FastV and blind choices, on one model and one task."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from star_export.answer.pipeline import open_pipeline
from star_export.build import BuildOptions, build
from star_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from star_export.engines import Runtime
from star_export.evaluation.answering import Looker
from star_export.evaluation.evaluate import ask_all, check_limit
from star_export.evaluation.methods import STAR, Bundles, Method, Pruned, all_methods, fastv_layer
from star_export.evaluation.record import Record
from star_export.evaluation.statistics import Estimate, Score, ScoreTable
from star_export.evaluation.tasks import open_task
from star_export.files import scratch_folder, sha256
from star_export.progress import CaseProgress
from star_export.specs import (
    DEFAULT_DROP_RATIO,
    DType,
    ExportSpec,
    ModelSpec,
    check_keep,
    resolve_images,
    resolve_star,
    stage1_count,
)

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
        tokens_per_layer: Average of visual tokens over the decoder's layers.
        flops: Floating-point operations of a prefill, counted exactly.
        speedup: Unpruned prefill time divided by this one's, median over the questions.
    """

    method: Method
    score: Score
    lead: Estimate | None
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
    spec = _spec(options, checkpoint.model)
    methods = all_methods(_budgets(options, spec), spec)
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
    report = _Reporter(ScoreTable(rows), spec, tokens.text_tokens, tokens.query_positions.shape[1])
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
    text_tokens: int
    query_tokens: int

    def of(self, method: Method) -> MethodReport:
        baseline = f"unpruned {self.spec.largest_image}"
        alone = method.rule == STAR or method.name == baseline
        flops = method.flops(self.spec, text_tokens=self.text_tokens, query_tokens=self.query_tokens)
        return MethodReport(
            method=method,
            score=self.scores.score(method.name, baseline=baseline),
            lead=None if alone else self.scores.lead(f"{STAR} {method.budget}", method.name),
            tokens_per_layer=method.tokens_per_layer(self.spec.model.text.num_layers),
            flops=flops.exact,
            speedup=self.scores.speedup(method.name, baseline),
        )


def _budgets(options: CompareOptions, spec: ExportSpec) -> list[int]:
    patches = spec.largest_image
    budgets = list(options.keep) or [int(share * patches + 0.5) for share in PAPER_SHARES]
    for keep in budgets:
        check_keep(spec.schedule, keep)
    return sorted(dict.fromkeys(budgets), reverse=True)


def _identity(checkpoint: Checkpoint) -> str | dict[str, str]:
    """What answers depend on, wherever it lies: the hub's commit, or the files that a build reads."""
    if checkpoint.revision is not None:
        return checkpoint.revision
    files = sorted(path for path in checkpoint.folder.iterdir() if path.suffix in _MODEL_FILES)
    return {path.name: sha256(path) for path in files}


def _spec(options: CompareOptions, model: ModelSpec) -> ExportSpec:
    """STAR's own settings on this model, with room for every budget."""
    room = stage1_count(patches=model.vision.tile_tokens, drop_ratio=DEFAULT_DROP_RATIO) - 1
    images = resolve_images(model, room=model.text.max_position_embeddings)
    return ExportSpec(
        model=model,
        schedule=resolve_star(model, images, prune_layer=options.prune_layer, keep=1, max_keep=room),
        images=images,
        max_text_tokens=MAX_TEXT_TOKENS,
        max_new_tokens=MAX_NEW_TOKENS,
        append_tokens=1,
        dtype=options.dtype,
    )


@contextmanager
def _bundles(options: CompareOptions, spec: ExportSpec, say: Callable[[str], None]) -> Iterator[Bundles]:
    """What all methods run on, gone afterwards."""
    with ExitStack() as stack:
        parent, prefix = options.answers.parent, f".{options.answers.name}.compare-"
        scratch = stack.enter_context(scratch_folder(parent, prefix))

        def make(name: str, **settings: Any) -> Looker:
            say(f"building {name}")
            building = BuildOptions(
                model=options.model,
                output=scratch / name,
                dtype=options.dtype,
                max_text_tokens=MAX_TEXT_TOKENS,
                max_new_tokens=MAX_NEW_TOKENS,
                **settings,
            )
            return Looker(stack.enter_context(open_pipeline(build(building).folder, options.runtime)))

        # In these, stage 1 drops nothing unless a method asks for it.
        room = {"drop_ratio": 0.0, "keep": 1, "max_keep": spec.largest_image - 1}
        own = spec.decoder_stages[0].after_layer
        layers = dict.fromkeys((own, fastv_layer(spec.model.text.num_layers)))
        pruned = {layer: make(f"pruned-after-{layer}", prune_layer=layer, **room) for layer in layers}
        yield Bundles(make("unpruned", prune=False), pruned, options.seed)
