"""Ways to prune visual tokens, and what each leaves of a picture at a budget, layer by layer."""

import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from star_export.errors import SettingsError, option
from star_export.evaluation.choices import CDPRUNER, CHOICES, DIVPRUNE, GRID, QR, RANDOM
from star_export.flops import Layout, PrefillFlops, prefill_flops, pruned_layout
from star_export.specs import STAGE1_SCORES, STAGE2_SCORES, ExportSpec
from star_export.specs.schedules import balanced
from star_export.specs.scores import DRIFT, KEY_NORM, LAST, RECEIVED, SPREAD, TEXT, TEXT_PEAKS, check_score

STAR, STAGE2, FASTV, BALANCED_STAR, UNPRUNED = "star", "stage-2", "fastv", "balanced-star", "unpruned"
#: `spread` with attention that counts what each kept token stands for.
PROPORTIONAL_SPREAD = f"proportional-{SPREAD}"
#: FastV prunes after its second layer (arXiv 2403.06764, section 4.1).
FASTV_LAYER = 2

#: Visual tokens of a picture, and newlines among them.
PictureTokens = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a method chooses.

    Attributes:
        what: In words.
        stage1: Before the decoder, a score of the vision graph or a choice on the host; None lets all enter.
        stage2: Score of the stage inside the decoder; None for no such stage.
        proportional: Whether attention counts what is kept for what it stands for.
    """

    what: str
    stage1: str | None = None
    stage2: str | None = None
    proportional: bool = False


#: Every rule by the name that ``--method`` takes.
RULES = {
    STAR: Rule(what="as in the paper: stage 1 drops 10 %", stage1=RECEIVED, stage2=TEXT),
    STAGE2: Rule(what="STAR's stage 2 without its stage 1", stage2=TEXT),
    FASTV: Rule(what="`last` after layer 2 (arXiv 2403.06764)", stage2=LAST),
    **{name: Rule(what=f"before the decoder: {what}", stage1=name) for name, what in STAGE1_SCORES.items()},
    BALANCED_STAR: Rule(what="STAR's scores on the schedule `balanced`", stage1=RECEIVED, stage2=TEXT),
    **{
        f"balanced-{name}": Rule(what=f"`spread`, then inside: {what}", stage1=SPREAD, stage2=name)
        for name, what in STAGE2_SCORES.items()
    },
    DIVPRUNE: Rule(what="the farthest from those chosen, one by one (arXiv 2503.02175)", stage1=DIVPRUNE),
    CDPRUNER: Rule(
        what="relevant and unlike those chosen, one by one (as arXiv 2506.10967)", stage1=CDPRUNER
    ),
    QR: Rule(what="pivots of a QR decomposition, one by one", stage1=QR),
    PROPORTIONAL_SPREAD: Rule(
        what="`spread`; attention counts each for all it stands for", stage1=SPREAD, proportional=True
    ),
    f"proportional-{DIVPRUNE}": Rule(
        what="`divprune`; attention counts each for all it stands for", stage1=DIVPRUNE, proportional=True
    ),
    f"proportional-balanced-{TEXT_PEAKS}": Rule(
        what=f"`balanced-{TEXT_PEAKS}`; attention counts each for all it stands for",
        stage1=SPREAD,
        stage2=TEXT_PEAKS,
        proportional=True,
    ),
    GRID: Rule(what="evenly over the picture, without looking", stage1=GRID),
    RANDOM: Rule(what="by lot", stage1=RANDOM),
}


@dataclass(frozen=True, kw_only=True)
class Level:
    """What methods are compared at; one of both.

    Attributes:
        average: Visual tokens per layer, on average.
        keep: STAR's ``N2``: the average is what STAR has at it.
    """

    average: int | None = None
    keep: int | None = None

    @property
    def name(self) -> str:
        """A name of its own."""
        return f"keep {self.keep}" if self.average is None else f"average {self.average}"

    @property
    def reference(self) -> str:
        """The rule that the others are compared with."""
        return SPREAD if self.keep is None else STAR

    def tokens(self, spec: ExportSpec, picture: PictureTokens) -> float:
        """The average for one picture."""
        if self.average is not None:
            return self.average
        layers = spec.model.text.num_layers
        return sum(_star(spec, picture, self.keep).tokens(layers)) / layers


@dataclass(frozen=True, kw_only=True)
class Method:
    """One rule at one level; what that leaves of a picture depends on the picture's size.

    Attributes:
        rule: One of :data:`RULES`, or :data:`UNPRUNED`, which has no level.
        level: What it is compared at.
    """

    rule: str
    level: Level | None = None

    @property
    def name(self) -> str:
        """A name of its own."""
        return self.rule if self.level is None else f"{self.rule}, {self.level.name}"

    def layout(self, spec: ExportSpec, picture: PictureTokens) -> Layout | None:
        """What it leaves of a picture, layer by layer; None where it cannot have that average.

        Args:
            spec: STAR's own settings.
            picture: The picture's size.
        """
        if self.level is None:
            return Layout(entering=picture[0])
        if self.rule == STAR:
            return None if self.level.keep is None else _star(spec, picture, self.level.keep)
        average, rule = self.level.tokens(spec, picture), RULES[self.rule]
        layer = prune_layer(self.rule, spec)
        if layer is None:
            return Layout(entering=min(round(average), picture[0]))
        if rule.stage1 is None:
            return _inside(average, layer, picture[0], spec.model.text.num_layers)
        return _balanced(average, picture[0], spec.model.text.num_layers)

    def flops(
        self, spec: ExportSpec, picture: PictureTokens, *, text_tokens: int, query_tokens: int
    ) -> PrefillFlops:
        """Arithmetic of a prefill."""
        layout, stage2 = self.layout(spec, picture), RULES[self.rule].stage2 if self.level else None
        assert layout is not None
        rows = scoring_rows(stage2, query_tokens)
        return prefill_flops(spec.model.text, layout, text_tokens=text_tokens, query_tokens=rows)


def scoring_rows(stage2: str | None, query_tokens: int) -> int:
    """Rows of attention that a score inside the decoder reads, of those of the question."""
    return {LAST: 1, DRIFT: 0, KEY_NORM: 0}.get(stage2 or TEXT, query_tokens)


def prune_layer(rule: str, spec: ExportSpec) -> int | None:
    """Decoder layers before a rule prunes inside; None for no pruning there.

    Args:
        rule: Its name.
        spec: STAR's own settings.
    """
    layers = spec.model.text.num_layers
    if rule == FASTV:
        return min(FASTV_LAYER, layers - 1)
    if rule in (STAR, STAGE2):
        return spec.decoder_stages[0].after_layer
    return balanced(1, layers)[-1].after_layer if rule in RULES and RULES[rule].stage2 else None


def _star(spec: ExportSpec, picture: PictureTokens, keep: int | None) -> Layout:
    return pruned_layout(spec, entering=spec.entering(*picture), keep=keep)


def _inside(average: float, layer: int, tokens: int, layers: int) -> Layout | None:
    keep = round((average * layers - layer * tokens) / (layers - layer))
    return Layout(entering=tokens, stages=((layer, min(keep, tokens)),)) if keep >= 1 else None


def _balanced(average: float, tokens: int, layers: int) -> Layout | None:
    first, last = balanced(round(average), layers)
    if first.tokens >= tokens:
        return None
    return Layout(entering=first.tokens, stages=((last.after_layer, last.tokens),))


def check_rules(names: Sequence[str], spec: ExportSpec) -> tuple[str, ...]:
    """The rules to compare: those named, or all that the model has what they need for.

    Args:
        names: As users type them.
        spec: STAR's own settings.

    Raises:
        SettingsError: If one does not exist, with the nearest name, or the model has nothing for its score.
    """
    for name in names:
        if name not in RULES:
            near = difflib.get_close_matches(name, RULES, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise SettingsError(
                f"{option('method', name)} does not exist; {hint}methods are {', '.join(RULES)}"
            )
        if (score := RULES[name].stage1) in STAGE1_SCORES:
            check_score(0, score, spec.model)
    return tuple(name for name in RULES if (name in names if names else _possible(RULES[name], spec)))


def _possible(rule: Rule, spec: ExportSpec) -> bool:
    try:
        if rule.stage1 in STAGE1_SCORES:
            check_score(0, rule.stage1, spec.model)
    except SettingsError:
        return False
    return True


def all_methods(
    rules: Sequence[str], levels: Sequence[Level], spec: ExportSpec, pictures: Collection[PictureTokens]
) -> Iterator[Method]:
    """The unpruned model, then at every level every rule that can have it for every picture.

    Args:
        rules: Names, of :func:`check_rules`.
        levels: What they are compared at.
        spec: STAR's own settings.
        pictures: Sizes of the pictures.
    """
    yield Method(rule=UNPRUNED)
    for level in levels:
        for rule in rules:
            method = Method(rule=rule, level=level)
            if all(method.layout(spec, picture) for picture in set(pictures)):
                yield method


def is_choice(name: str | None) -> bool:
    """Whether the host chooses what enters the decoder."""
    return name in CHOICES
