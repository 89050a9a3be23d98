"""Graphs to put together: one vision graph for each score before the decoder, one prefill for each inside.

Budgets are given at run time, so that few bundles serve every method, schedule and budget.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from star_export.answer.pipeline import open_pipeline
from star_export.arrays import Float32, to_device_dtype, to_float32
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
from star_export.graphs.proportional import counted
from star_export.preprocessing import TokenizedPrompt

#: Embeddings ``[n, C]`` of token ids ``[n]``.
Embed = Callable[[Int64], Float32]


@dataclass(frozen=True, kw_only=True)
class Before:
    """A stage before the decoder.

    Attributes:
        score: Its score.
        by_share: Whether it is built to keep a share of each picture, whose newlines then go last.
        proportional: Whether it tells what each token that it keeps stands for.
    """

    score: str
    by_share: bool = False
    proportional: bool = False


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What is done inside the decoder.

    Attributes:
        stages: ``(after_layer, score)`` of each stage.
        proportional: Whether attention counts visual tokens for what they stand for.
    """

    stages: tuple[tuple[int, str], ...] = ()
    proportional: bool = False


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Opened bundles, each used for one of its graphs.

    Attributes:
        full: The unpruned one.
        visions: For their vision graphs.
        decoders: For their prefill and decode graphs; the unpruned one's if nothing is done.
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
        looker = self.parts.decoders[self.inside]
        image = self.parts.full.prepare(example)
        layout = self.layout((image.packing.tokens, image.packing.newlines))
        tokens = looker.pipeline.tokenize(example.question, [image], tokens_per_image=[layout.entering])
        features = self.features(example, tokens, layout.entering)
        first = (layout.entering,) if self.inside.proportional else ()
        keep = (*first, *(kept for _, kept in layout.stages)) or None
        return respond(looker.pipeline, tokens, [features], keep, example, task)

    def features(self, example: Example, tokens: TokenizedPrompt, entering: int) -> HostArray:
        """Visual tokens that enter the decoder ``[1, entering, C]``, in their order.

        For proportional attention ``[1, entering, C + 1]``.
        """
        full = self.parts.full.look(example)
        if isinstance(self.before, Before) and entering < full.shape[1]:
            return self.parts.visions[self.before].look(example, entering)
        kept = self._chosen(full, tokens, example, entering)
        return self._counted(full, kept) if self.inside.proportional else kept

    def _chosen(self, full: HostArray, tokens: TokenizedPrompt, example: Example, entering: int) -> HostArray:
        """Of ``full [1, P, C]`` what a choice on the host leaves ``[1, entering, C]``."""
        if entering == full.shape[1] or not isinstance(self.before, str):
            return full
        candidates = Candidates(
            features=to_float32(full[0], self.parts.full.pipeline.spec.dtype),
            question=self.parts.embed(tokens.input_ids[0, tokens.query_positions[0]]),
            seed=(self.seed, example.index, entering),
        )
        chosen: HostArray = full[:, np.sort(CHOICES[self.before](candidates, entering))]
        return chosen

    def _counted(self, full: HostArray, kept: HostArray) -> HostArray:
        """Tokens with the log of what each stands for as one more channel, as a vision graph gives them."""
        dtype = self.parts.full.pipeline.spec.dtype
        before, after = (torch.from_numpy(to_float32(tokens, dtype)) for tokens in (full, kept))
        return to_device_dtype(counted(before, after).numpy(), dtype)


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
        insides: What is done inside it.
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
            counts = before.proportional
            name = ("proportional-" if counts else "") + before.score + kind
            return make(name, prune=True, schedule=f"{room}@0", stage1=before.score, proportional=counts)

        def read(inside: Inside) -> Looker:
            layers = [0] * inside.proportional + [layer for layer, _ in inside.stages]
            places = [f"{tokens - 1 - index}@{layer}" for index, layer in enumerate(layers)]
            score = next((score for _, score in inside.stages), None)
            name = "-".join(["after", *map(str, layers), *([score] if score else [])])
            counts = inside.proportional
            return make(name, prune=True, schedule=",".join(places), stage2=score, proportional=counts)

        full = make("unpruned", prune=False)
        yield Parts(
            full=full,
            visions={before: see(before) for before in befores},
            decoders={Inside(): full} | {inside: read(inside) for inside in insides if inside != Inside()},
            embed=_embeddings(checkpoint),
        )


def _embeddings(checkpoint: Checkpoint) -> Embed:
    def embed(ids: Int64) -> Float32:
        rows: Float32 = checkpoint.tensor("language_model.embed_tokens.weight")[ids].float().numpy()
        return rows

    return embed
