"""What few bits cost in answers: one model with its weights in several types, unpruned and pruned."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from star_export.answer.pipeline import open_pipeline
from star_export.build import BuildOptions, build
from star_export.bundle import open_bundle
from star_export.engines import Runtime
from star_export.errors import SettingsError, option
from star_export.evaluation.answering import Bundled, Looker
from star_export.evaluation.statistics import Score, ScoreTable, markdown
from star_export.files import scratch_folder
from star_export.specs import FAST_PRESET, QUANTIZED_TYPES, DType

_INTRODUCTION = """## Few bits

Weights of linear layers in integers, in blocks of {block} with a scale each; in 4 bits but the last layer's
and the vision tower's, which have 8. The same questions, unpruned and with `spread`'s choice of one token
in nine, of which attention counts each for all it stands for (`--schedule fast-N --proportional`).
"""

#: Visual tokens of a pruned bundle, as a share of all: 64 of 576.
_SHARE = 1 / 9


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A bundle of the model.

    Attributes:
        kind: What linear layers have: integers, or the bundle's element type.
        quantize: The integers; None for none.
        tokens: Visual tokens that enter the decoder, where attention counts them for what they stand
            for; None unpruned.
    """

    kind: str
    quantize: str | None
    tokens: int | None

    @property
    def name(self) -> str:
        """In tables and records."""
        return f"{self.kind}, {'unpruned' if self.tokens is None else f'{self.tokens} tokens'}"

    def options(self, building: BuildOptions) -> BuildOptions:
        """Of its build."""
        schedule = None if self.tokens is None else f"{FAST_PRESET}-{self.tokens}"
        return replace(
            building,
            prune=schedule is not None,
            schedule=schedule,
            proportional=schedule is not None,
            quantize=self.quantize,
            quantize_vision=self.quantize is not None,
        )


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """How one bundle did.

    Attributes:
        weights: What it is.
        bytes: Of its weights files.
        block: Weights that share a scale; None for whole ones.
        score: With its retention of the first one's, unpruned with whole weights.
    """

    weights: Weights
    bytes: int
    block: int | None
    score: Score


def few_bits(dtype: DType, types: Sequence[str], image_tokens: float) -> list[Weights]:
    """Bundles to compare: whole weights first, and each unpruned and pruned; none without types.

    Args:
        dtype: Element type of the bundles.
        types: Of ``QUANTIZED_TYPES``.
        image_tokens: Visual tokens of a picture.

    Raises:
        SettingsError: If a type is unknown.
    """
    if unknown := [kind for kind in types if kind not in QUANTIZED_TYPES]:
        raise SettingsError(f"{option('quantize')} must be {', '.join(QUANTIZED_TYPES)}, got {unknown[0]}")
    tokens = max(1, round(_SHARE * image_tokens))
    kinds = {dtype: None, **{kind: kind for kind in types}} if types else {}
    return [
        Weights(kind=kind, quantize=quantize, tokens=entering)
        for entering in (None, tokens)
        for kind, quantize in kinds.items()
    ]


@dataclass(frozen=True, kw_only=True)
class Built:
    """A bundle that is open.

    Attributes:
        weights: What it is.
        bytes: Of its weights files.
        block: Weights that share a scale; None for whole ones.
        variant: What answers, at its own budget.
    """

    weights: Weights
    bytes: int
    block: int | None
    variant: Bundled


@contextmanager
def built_weights(
    building: BuildOptions, wanted: Sequence[Weights], runtime: Runtime, say: Callable[[str], None]
) -> Iterator[list[Built]]:
    """Build them in a scratch folder, gone afterwards; ``building`` has what they share."""
    with ExitStack() as stack:
        prefix = f".{building.output.name}.weights-"
        scratch = stack.enter_context(scratch_folder(building.output.parent, prefix))

        def make(index: int, weights: Weights) -> Built:
            say(f"building {weights.name}")
            made = build(replace(weights.options(building), output=scratch / str(index))).folder
            bundle = open_bundle(made)
            return Built(
                weights=weights,
                bytes=sum(file.bytes for file in bundle.weights),
                block=bundle.spec.quantization.block if bundle.spec.quantization else None,
                variant=Bundled(Looker(stack.enter_context(open_pipeline(made, runtime))), None),
            )

        yield [make(index, weights) for index, weights in enumerate(wanted)]


def weights_reports(built: Sequence[Built], scores: ScoreTable) -> tuple[WeightsReport, ...]:
    """How each did, against the first."""
    return tuple(
        WeightsReport(
            weights=one.weights,
            bytes=one.bytes,
            block=one.block,
            score=scores.score(one.weights.name, baseline=built[0].weights.name),
        )
        for one in built
    )


def few_bits_section(reports: Sequence[WeightsReport]) -> Iterator[str]:
    """Of a page; nothing without reports."""
    if not reports:
        return
    rows = [
        [
            found.weights.kind,
            "all" if found.weights.tokens is None else str(found.weights.tokens),
            f"{found.bytes / 1e6:.1f}",
            found.score.accuracy.percent(),
            "" if found.score.retention is None else found.score.retention.percent(),
        ]
        for found in reports
    ]
    yield _INTRODUCTION.format(block=next(found.block for found in reports if found.block))
    yield markdown(["weights", "visual tokens", "MB", "accuracy %", f"of {reports[0].weights.name}, %"], rows)
