"""Graphs to put together: one vision graph for each score before the decoder, one prefill for each inside.

Budgets are given at run time, so that few bundles serve every method, schedule and budget.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np

from star_export.answer.pipeline import open_pipeline
from star_export.arrays import Float32, to_float32
from star_export.build import BuildOptions, build
from star_export.checkpoint.checkpoint import Checkpoint
from star_export.engines import Runtime
from star_export.engines.session import HostArray, Int64
from star_export.evaluation.answering import Looker, Variant, respond
from star_export.evaluation.choices import CHOICES, Candidates
from star_export.evaluation.record import ScoredAnswer
from star_export.evaluation.task import Example, Task
from star_export.files import scratch_folder
from star_export.flops import Layout
from star_export.preprocessing import TokenizedPrompt

#: ``(after_layer, score)`` of every stage inside the decoder.
Inside = tuple[tuple[int, str], ...]
#: Embeddings ``[n, C]`` of token ids ``[n]``.
Embed = Callable[[Int64], Float32]


@dataclass(frozen=True, kw_only=True)
class Before:
    """A stage before the decoder.

    Attributes:
        score: Its score.
        by_share: Whether it is built to keep a share of each picture, whose newlines then go last.
    """

    score: str
    by_share: bool = False


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Opened bundles, each used for one of its graphs.

    Attributes:
        full: The unpruned one.
        visions: For their vision graphs.
        decoders: For their prefill and decode graphs.
        embed: The model's embeddings.
    """

    full: Looker
    visions: Mapping[Before, Looker]
    decoders: Mapping[Inside, Looker]
    embed: Embed


@dataclass(frozen=True, kw_only=True)
class Assembled(Variant):
    """A variant made of parts.

    Attributes:
        parts: What there is.
        before: The stage before the decoder, or the name of a choice on the host; None lets all enter.
        inside: The stages inside it.
        layout: What they leave of a picture that has so many visual tokens and newlines.
        seed: Of a choice by lot.
    """

    parts: Parts
    before: Before | str | None
    inside: Inside
    layout: Callable[[tuple[int, int]], Layout]
    seed: int = 0

    def answer(self, example: Example, task: Task) -> ScoredAnswer:
        """The greedy answer with the visual tokens that are left."""
        looker = self.parts.decoders[self.inside] if self.inside else self.parts.full
        image = self.parts.full.prepare(example)
        layout = self.layout((image.packing.tokens, image.packing.newlines))
        tokens = looker.pipeline.tokenize(example.question, [image], tokens_per_image=[layout.entering])
        features = self.features(example, tokens, layout.entering)
        keep = tuple(kept for _, kept in layout.stages) or None
        return respond(looker.pipeline, tokens, [features], keep, example, task)

    def features(self, example: Example, tokens: TokenizedPrompt, entering: int) -> HostArray:
        """Visual tokens that enter the decoder ``[1, entering, C]``, in their order."""
        full = self.parts.full.look(example)
        if entering == full.shape[1] or self.before is None:
            return full
        if isinstance(self.before, Before):
            return self.parts.visions[self.before].look(example, entering)
        candidates = Candidates(
            features=to_float32(full[0], self.parts.full.pipeline.spec.dtype),
            question=self.parts.embed(tokens.input_ids[0, tokens.query_positions[0]]),
            seed=(self.seed, example.index, entering),
        )
        return full[:, np.sort(CHOICES[self.before](candidates, entering))]


@contextmanager
def built_parts(
    options: BuildOptions,
    checkpoint: Checkpoint,
    befores: Collection[Before],
    insides: Collection[Inside],
    *,
    runtime: Runtime,
    tokens: int,
    say: Callable[[str], None],
) -> Iterator[Parts]:
    """Build what is wanted in a scratch folder, gone afterwards.

    Args:
        options: Of the unpruned bundle; its output is the name beside which the scratch folder is.
        checkpoint: The same model.
        befores: Stages before the decoder.
        insides: Stages inside it.
        runtime: What runs them.
        tokens: Visual tokens of the largest request: there is room for every budget below.
        say: Told what is being built.
    """
    with ExitStack() as stack:
        prefix = f".{options.output.name}.parts-"
        scratch = stack.enter_context(scratch_folder(options.output.parent, prefix))

        def make(name: str, **settings: object) -> Looker:
            say(f"building {name}")
            made = build(replace(options, output=scratch / name, **settings)).folder  # type: ignore[arg-type]
            return Looker(stack.enter_context(open_pipeline(made, runtime)))

        def see(before: Before) -> Looker:
            room = "99.9%" if before.by_share else tokens - 1
            kind = "-by-share" if before.by_share else ""
            return make(before.score + kind, prune=True, schedule=f"{room}@0", stage1=before.score)

        def read(inside: Inside) -> Looker:
            (score,) = {score for _, score in inside}
            places = [f"{tokens - 1 - index}@{layer}" for index, (layer, _) in enumerate(inside)]
            name = "-".join(["after", *(str(layer) for layer, _ in inside), score])
            return make(name, prune=True, schedule=",".join(places), stage2=score)

        yield Parts(
            full=make("unpruned", prune=False),
            visions={before: see(before) for before in befores},
            decoders={inside: read(inside) for inside in insides},
            embed=_embeddings(checkpoint),
        )


def _embeddings(checkpoint: Checkpoint) -> Embed:
    def embed(ids: Int64) -> Float32:
        rows: Float32 = checkpoint.tensor("language_model.embed_tokens.weight")[ids].float().numpy()
        return rows

    return embed
