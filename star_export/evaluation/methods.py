"""Ways to prune visual tokens: STAR, each of its stages alone, and choices that look at nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from star_export.arrays import Float32
from star_export.engines.session import Int64
from star_export.evaluation.answering import Looker, respond
from star_export.evaluation.record import ScoredAnswer
from star_export.evaluation.task import Example, Task
from star_export.flops import Layout, PrefillFlops, layout_flops
from star_export.specs import ExportSpec

STAR, STAGE1, STAGE2, STAGE2_LAST, FASTV, RANDOM, GRID = RULES = (
    "STAR",
    "stage 1 alone",
    "stage 2 alone, all text rows",
    "stage 2 alone, last row",
    "FastV",
    "random",
    "uniform grid",
)
#: FastV prunes after its second layer (arXiv 2403.06764, section 4.1).
FASTV_LAYER = 2


@dataclass(frozen=True, kw_only=True)
class Method:
    """One rule at one budget.

    Attributes:
        rule: One of :data:`RULES`, or ``unpruned``.
        budget: STAR's ``N2`` that it is compared at.
        average: Whether it has STAR's average of tokens per layer, instead of STAR's ``N2`` at the end.
        entering: Visual tokens that enter the decoder.
        layer: Decoder layers before it prunes inside; None for no pruning there.
        keep: Visual tokens after that.
    """

    rule: str
    budget: int
    average: bool
    entering: int
    layer: int | None
    keep: int

    @property
    def name(self) -> str:
        """A name of its own."""
        return f"{self.rule} {self.budget}{' on average' if self.average else ''}"

    def tokens_per_layer(self, layers: int) -> float:
        """Average of visual tokens over the decoder's layers."""
        early = layers if self.layer is None else self.layer
        return (early * self.entering + (layers - early) * self.keep) / layers

    def flops(self, spec: ExportSpec, *, text_tokens: int, query_tokens: int) -> PrefillFlops:
        """Arithmetic of a prefill."""
        rows = 1 if self.rule in (STAGE2_LAST, FASTV) else query_tokens
        stages = () if self.layer is None else ((self.layer, self.keep),)
        layout = Layout(entering=self.entering, stages=stages)
        return layout_flops(spec.model.text, layout, text_tokens=text_tokens, query_tokens=rows)


def fastv_layer(layers: int) -> int:
    """Layers before FastV prunes, in a decoder of any depth."""
    return min(FASTV_LAYER, layers - 1)


def unpruned(patches: int) -> Method:
    """Every token in every layer."""
    return Method(rule="unpruned", budget=patches, average=False, entering=patches, layer=None, keep=patches)


def methods_at(budget: int, *, patches: int, stage1_keep: int, layers: int, prune_layer: int) -> list[Method]:
    """STAR and everything that it is compared with at one budget.

    Each rule comes at STAR's number of tokens at the end and, where it can spend so
    little, at STAR's average of tokens per layer.

    Args:
        budget: ``N2``.
        patches: ``P``.
        stage1_keep: ``N1``.
        layers: Layers of the decoder.
        prune_layer: ``K``.
    """
    star = Method(
        rule=STAR, budget=budget, average=False, entering=stage1_keep, layer=prune_layer, keep=budget
    )
    total = star.tokens_per_layer(layers) * layers
    found = [star]
    for rule in RULES[1:]:
        layer = {STAGE2: prune_layer, STAGE2_LAST: prune_layer, FASTV: fastv_layer(layers)}.get(rule)
        fair = total / layers if layer is None else (total - layer * patches) / (layers - layer)
        for average, keep in ((False, budget), (True, round(fair))):
            if keep >= 1:
                entering = keep if layer is None else patches
                found.append(
                    Method(
                        rule=rule, budget=budget, average=average, entering=entering, layer=layer, keep=keep
                    )
                )
    return found


@dataclass(frozen=True)
class Bundles:
    """What the methods run on.

    Attributes:
        full: The unpruned bundle.
        pruned: By ``K``, bundles with room for every patch after stage 2.
        seed: Of the random choices.
    """

    full: Looker
    pruned: Mapping[int, Looker]
    seed: int


class Pruned:
    """A method, ready to answer."""

    def __init__(self, method: Method, bundles: Bundles) -> None:
        self.method, self.bundles = method, bundles

    def answer(self, example: Example, task: Task) -> ScoredAnswer:
        """The greedy answer with the visual tokens that the method leaves."""
        method = self.method
        looker = self.bundles.full if method.layer is None else self.bundles.pruned[method.layer]
        tokens = looker.pipeline.tokenize(
            example.question, [looker.prepare(example)], tokens_per_image=[method.entering]
        )
        if method.rule in (STAGE2_LAST, FASTV):
            tokens = replace(tokens, query_positions=tokens.query_positions[:, -1:])
        keep = None if method.layer is None else method.keep
        return respond(looker.pipeline, tokens, self._features(example), keep, example, task)

    def _features(self, example: Example) -> Float32:
        """Visual tokens that enter the decoder ``[1, entering, C]``."""
        method, full = self.method, self.bundles.full.look(example)
        if method.rule in (STAR, STAGE1):
            pruned = next(iter(self.bundles.pruned.values()))  # stage 1 does not depend on K
            return pruned.look(example, method.entering)
        if method.rule == RANDOM:
            rng = np.random.default_rng([self.bundles.seed, example.index, method.entering])
            return full[:, np.sort(rng.choice(full.shape[1], method.entering, replace=False))]
        if method.rule == GRID:
            return full[:, grid(method.entering, patches=full.shape[1])]
        return full


def grid(count: int, *, patches: int) -> Int64:
    """Indices of ``count`` of the patches of a square picture, spread evenly, ascending."""
    side = int(patches**0.5)
    rows = min(side, max(1, round(count**0.5), -(-count // side)))
    indices: list[int] = []
    for row in range(rows):
        columns = count * (row + 1) // rows - count * row // rows
        y = (2 * row + 1) * side // (2 * rows)
        indices += [y * side + (2 * column + 1) * side // (2 * columns) for column in range(columns)]
    return np.array(indices, dtype=np.int64)


def all_methods(budgets: Sequence[int], spec: ExportSpec) -> list[Method]:
    """The unpruned model and every method at every budget of a pruned spec."""
    (stage,) = spec.decoder_stages
    patches = spec.largest_image
    found = [unpruned(patches)]
    for budget in budgets:
        found += methods_at(
            budget,
            patches=patches,
            stage1_keep=spec.image_tokens,
            layers=spec.model.text.num_layers,
            prune_layer=stage.after_layer,
        )
    return found
