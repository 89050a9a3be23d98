"""Schedules to try, from the largest budgets down."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from star_export.errors import SettingsError, option
from star_export.flops import Layout, pruned_layout
from star_export.specs import ExportSpec, Keep, check_keep, spelled_keep
from star_export.specs.pruning import Schedule, Stage
from star_export.specs.schedules import Place, resolve_schedule
from star_export.specs.scores import SPREAD, TEXT, TEXT_PEAKS

#: Halvings that are tried of what enters the decoder, and of that at every stage inside.
_ENTERING, _INSIDE = 5, 3
#: Budgets below are not tried of their own accord.
_LEAST = 4


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One schedule with its scores.

    Attributes:
        spec: What it is built as, or the bundle that can do it.
        keep: Budgets of every stage.
        own: Whether the bundle's own graphs do it.
    """

    spec: ExportSpec
    keep: tuple[int, ...]
    own: bool

    @property
    def places(self) -> tuple[Place, ...]:
        """The stages as ``--schedule`` takes them; a share that nobody changed stays one."""
        pairs = zip(self.spec.schedule, self.keep, strict=True)
        return tuple(_place(stage, tokens) for stage, tokens in pairs)

    @property
    def schedule(self) -> str:
        """As ``--schedule`` takes it."""
        return ",".join(map(str, self.places))

    @property
    def stage1(self) -> str | None:
        """Score before the decoder."""
        return self.spec.stage1.score if self.spec.stage1 else None

    @property
    def stage2(self) -> str | None:
        """Score inside it."""
        return self.spec.decoder_stages[0].score if self.spec.decoder_stages else None

    @property
    def name(self) -> str:
        """A name of its own."""
        return " ".join([self.schedule, *(score for score in (self.stage1, self.stage2) if score)])

    def layout(self, picture: tuple[int, int]) -> Layout:
        """What it leaves of a picture of so many visual tokens, and newlines among them."""
        return pruned_layout(self.spec, entering=self.spec.entering(*picture, self.keep), keep=self.keep)


def _place(stage: Stage, tokens: int) -> Place:
    same = stage.share is not None and tokens == stage.tokens
    return Place(after_layer=stage.after_layer, tokens=tokens, share=stage.share if same else None)


def own_trials(spec: ExportSpec, keeps: Sequence[Keep]) -> list[Trial]:
    """What a bundle's graphs can do at run time: budgets up to those that it was built for.

    Args:
        spec: The bundle's.
        keeps: Budgets to try; by default, from the built ones down.

    Raises:
        SettingsError: If it prunes nothing, or cannot serve a budget.
    """
    if not spec.schedule:
        raise SettingsError(
            f"this bundle was built with {option('prune', False)} and has no budgets to try; "
            f"give {option('layers')}, {option('stage1')} or {option('stage2')} to build others"
        )
    for keep in keeps:
        check_keep(spec.schedule, keep)
    budgets = [spec.asked(keep) for keep in keeps] or list(_budgets(spec.schedule))
    return [Trial(spec=spec, keep=keep, own=True) for keep in dict.fromkeys(budgets)]


def _budgets(schedule: Schedule) -> Iterator[tuple[int, ...]]:
    """Budgets of every stage, each below the one before and not above what was built."""
    first, *others = schedule
    most = first.max_tokens if first.after_layer else first.tokens
    halvings = range(1 if first.after_layer == 0 and first.share is not None else _ENTERING)
    for tokens in dict.fromkeys(_half(most, times) for times in halvings):
        yield from ((tokens, *rest) for rest in _below(tokens, others))


def _below(before: int, stages: Sequence[Stage]) -> Iterator[tuple[int, ...]]:
    if not stages:
        yield ()
        return
    most = min(before // 2, stages[0].max_tokens)
    for tokens in dict.fromkeys(_half(most, times) for times in range(_INSIDE)):
        if tokens < before:
            yield from ((tokens, *rest) for rest in _below(tokens, stages[1:]))


def _half(tokens: int, times: int) -> int:
    return max(min(_LEAST, tokens), tokens >> times)


def built_trials(
    spec: ExportSpec,
    layers: Sequence[tuple[int, ...]],
    stage1: Sequence[str],
    stage2: Sequence[str],
    keeps: Sequence[Keep],
) -> list[Trial]:
    """Every combination of places, scores and budgets; each of what is not given, as the bundle has it.

    Args:
        spec: The bundle's; the model and the pictures are its own.
        layers: Layers of the stages inside the decoder; none at all for pruning before it alone.
        stage1: Scores before the decoder.
        stage2: Scores inside it.
        keeps: Budgets of every stage; by default, from half of a picture's tokens down.

    Raises:
        SettingsError: If a place, a score or a budget does not fit the model.
    """
    inside = spec.decoder_stages
    layers = layers or [tuple(stage.after_layer for stage in inside)]
    stage1 = stage1 or [spec.stage1.score if spec.stage1 else SPREAD]
    stage2 = stage2 or [inside[0].score if inside else TEXT_PEAKS]
    trials = {}
    for places, first, second in product(layers, stage1, stage2):
        for keep in keeps or _halves(spec, len(places)):
            trial = _built(spec, places, first, second, keep)
            trials[trial.name] = trial
    return list(trials.values())


def _halves(spec: ExportSpec, inside: int) -> Iterator[tuple[int, ...]]:
    most = spec.largest_image // 2
    room = [Stage(after_layer=layer, score=TEXT, tokens=most, max_tokens=most) for layer in range(inside + 1)]
    return _budgets(tuple(room))


def _built(spec: ExportSpec, layers: tuple[int, ...], stage1: str, stage2: str, keep: Keep) -> Trial:
    budgets = keep if isinstance(keep, tuple) else (keep,)
    if len(budgets) != 1 + len(layers):
        raise SettingsError(
            f"{option('keep', spelled_keep(keep))} has {len(budgets)} budgets; give {1 + len(layers)}, one "
            f"before the decoder and one for each of {option('layers', ','.join(map(str, layers)) or 0)}"
        )
    text = ",".join(f"{tokens}@{layer}" for tokens, layer in zip(budgets, (0, *layers), strict=True))
    inside = stage2 if layers else None
    schedule = resolve_schedule(spec.model, spec.images, text, stage1=stage1, stage2=inside)
    return Trial(spec=replace(spec, schedule=schedule), keep=budgets, own=False)
