"""Ways to prune visual tokens: STAR, each of its stages alone, and choices that look at nothing."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from star_export.arrays import Float32
from star_export.engines.session import Int64
from star_export.evaluation.answering import Looker, Variant, respond
from star_export.evaluation.record import ScoredAnswer
from star_export.evaluation.task import Example, Task
from star_export.flops import Layout, PrefillFlops, prefill_flops, pruned_layout
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
UNPRUNED = "unpruned"
#: FastV prunes after its second layer (arXiv 2403.06764, section 4.1).
FASTV_LAYER = 2

#: Visual tokens of a picture, and newlines among them.
PictureTokens = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One rule at one budget; what that leaves of a picture depends on the picture's size.

    Attributes:
        rule: One of :data:`RULES`, or :data:`UNPRUNED`.
        budget: STAR's ``N2`` that it is compared at; a picture with fewer visual tokens keeps what it has.
        average: Whether it has STAR's average of tokens per layer, instead of STAR's ``N2`` at the end.
    """

    rule: str
    budget: int
    average: bool = False

    @property
    def name(self) -> str:
        """A name of its own."""
        return f"{self.rule} {self.budget}{' on average' if self.average else ''}"

    def layer(self, spec: ExportSpec) -> int | None:
        """Decoder layers before it prunes inside; None for no pruning there."""
        own = spec.decoder_stages[0].after_layer
        early = fastv_layer(spec.model.text.num_layers)
        return {STAR: own, STAGE2: own, STAGE2_LAST: own, FASTV: early}.get(self.rule)

    def layout(self, spec: ExportSpec, picture: PictureTokens) -> Layout:
        """What it leaves of a picture, layer by layer.

        Args:
            spec: STAR's own settings.
            picture: The picture's size.
        """
        tokens, layer = picture[0], self.layer(spec)
        if self.rule == UNPRUNED:
            return Layout(entering=tokens)
        if self.rule == STAR:
            return pruned_layout(spec, entering=spec.entering(*picture), keep=self.budget)
        keep = min(max(1, self.spends(spec, picture)), tokens)
        return Layout(entering=keep) if layer is None else Layout(entering=tokens, stages=((layer, keep),))

    def spends(self, spec: ExportSpec, picture: PictureTokens) -> int:
        """Visual tokens at the end that it may have; below 1 where STAR's average cannot be had."""
        if not self.average:
            return self.budget
        layers, first = spec.model.text.num_layers, self.layer(spec) or 0
        star = Method(rule=STAR, budget=self.budget).layout(spec, picture)
        return round((sum(star.tokens(layers)) - first * picture[0]) / (layers - first))

    def flops(
        self, spec: ExportSpec, picture: PictureTokens, *, text_tokens: int, query_tokens: int
    ) -> PrefillFlops:
        """Arithmetic of a prefill."""
        rows = 1 if self.rule in (STAGE2_LAST, FASTV) else query_tokens
        layout = self.layout(spec, picture)
        return prefill_flops(spec.model.text, layout, text_tokens=text_tokens, query_tokens=rows)


def fastv_layer(layers: int) -> int:
    """Layers before FastV prunes, in a decoder of any depth."""
    return min(FASTV_LAYER, layers - 1)


def all_methods(
    budgets: Sequence[int], spec: ExportSpec, pictures: Collection[PictureTokens]
) -> list[Method]:
    """The unpruned model, then STAR and everything that it is compared with at every budget.

    Each rule comes at STAR's number of tokens at the end and, where it can spend so
    little on every picture, at STAR's average of tokens per layer.

    Args:
        budgets: Each a ``N2``.
        spec: STAR's own settings.
        pictures: Sizes of the pictures.
    """
    found = [Method(rule=UNPRUNED, budget=spec.largest_image)]
    for budget in budgets:
        found.append(Method(rule=STAR, budget=budget))
        for rule in RULES[1:]:
            found.append(Method(rule=rule, budget=budget))
            average = Method(rule=rule, budget=budget, average=True)
            if all(average.spends(spec, picture) >= 1 for picture in pictures):
                found.append(average)
    return found


@dataclass(frozen=True)
class Bundles:
    """What the methods run on.

    Attributes:
        spec: STAR's own settings.
        full: The unpruned bundle.
        pruned: By ``K``, bundles with room for every visual token.
        seed: Of the random choices.
    """

    spec: ExportSpec
    full: Looker
    pruned: Mapping[int, Looker]
    seed: int


class Pruned(Variant):
    """A method, ready to answer."""

    def __init__(self, method: Method, bundles: Bundles) -> None:
        self.method, self.bundles = method, bundles

    def answer(self, example: Example, task: Task) -> ScoredAnswer:
        """The greedy answer with the visual tokens that the method leaves."""
        method, layer = self.method, self.method.layer(self.bundles.spec)
        looker = self.bundles.full if layer is None else self.bundles.pruned[layer]
        image = looker.prepare(example)
        layout = method.layout(self.bundles.spec, (image.packing.tokens, image.packing.newlines))
        tokens = looker.pipeline.tokenize(example.question, [image], tokens_per_image=[layout.entering])
        if method.rule in (STAGE2_LAST, FASTV):
            tokens = replace(tokens, query_positions=tokens.query_positions[:, -1:])
        keep = layout.stages[-1][1] if layout.stages else None
        features = self._features(example, layout.entering)
        return respond(looker.pipeline, tokens, features, keep, example, task)

    def _features(self, example: Example, entering: int) -> Float32:
        """Visual tokens that enter the decoder ``[1, entering, C]``."""
        full = self.bundles.full.look(example)
        if entering == full.shape[1]:
            return full
        if self.method.rule in (STAR, STAGE1):
            pruned = next(iter(self.bundles.pruned.values()))  # stage 1 does not depend on K
            return pruned.look(example, entering)
        if self.method.rule == RANDOM:
            rng = np.random.default_rng([self.bundles.seed, example.index, entering])
            return full[:, np.sort(rng.choice(full.shape[1], entering, replace=False))]
        return full[:, grid(entering, tokens=full.shape[1])]


def grid(count: int, *, tokens: int) -> Int64:
    """Indices of ``count`` of a picture's visual tokens, spread evenly, ascending.

    Over the square that they are, or else over their sequence.
    """
    side = int(tokens**0.5)
    if side**2 != tokens:
        return (2 * np.arange(count) + 1) * tokens // (2 * count)
    rows = min(side, max(1, round(count**0.5), -(-count // side)))
    indices: list[int] = []
    for row in range(rows):
        columns = count * (row + 1) // rows - count * row // rows
        y = (2 * row + 1) * side // (2 * rows)
        indices += [y * side + (2 * column + 1) * side // (2 * columns) for column in range(columns)]
    return np.array(indices, dtype=np.int64)
