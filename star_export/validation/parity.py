"""Staged parity of a bundle against PyTorch.

Stages, each with what came before it forced to the bundle's own choices:
preprocessing, vision features, stage-1 set, stage-2 set, prefill logits, KV
caches of both groups, teacher-forced decode logits, logits of a question
appended to the caches, greedy tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from star_export.answer.pipeline import Pipeline
from star_export.answer.steps import DecodeState, VisionOutput
from star_export.contract import group_names, past_names
from star_export.engines.session import on_host
from star_export.errors import NonFiniteError
from star_export.preprocessing import TokenizedPrompt
from star_export.specs import Keep
from star_export.validation.counts import cached_biases, count_stages, picture_counts
from star_export.validation.expected import (
    ExpectedInput,
    ExpectedPrompt,
    compare_tokenized,
    expected_input,
    stacked,
)
from star_export.validation.probes import Probe
from star_export.validation.reference import STAYS, PrefillReference, Reference, VisionReference
from star_export.validation.report import CaseReport, StageResult
from star_export.validation.verdicts import (
    Array,
    Tolerances,
    compare_arrays,
    compare_distributions,
    compare_sets,
    compare_tokens,
    divergence,
    fewest_of_mass,
    of_pictures,
    positions_fault,
    worst,
)

#: What is asked after the answer, on the same caches.
FOLLOW_UP = " And what is to the right of it? Describe it in detail."


class Original(NamedTuple):
    """What a bundle gives against the checkpoint's own weights in float32.

    Attributes:
        agreement: Share of kept tokens that the reference keeps too, by stage.
        divergences: See :func:`divergence`, for each token that was fed.
    """

    agreement: dict[str, float]
    divergences: tuple[float, ...]


class ParityCheck:
    """Compares one pipeline with one reference.

    Args:
        pipeline: The bundle, loaded by any backend.
        reference: The Hugging Face model, its weights rounded as the bundle's.
        processor: The checkpoint's own processor.
        max_new_tokens: Tokens to decode in the last two stages.
        rounding: See :meth:`star_export.engines.backends.Backend.rounding`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        reference: Reference,
        processor: Any,
        *,
        max_new_tokens: int,
        rounding: str | None = None,
    ) -> None:
        self.pipeline, self.reference, self.processor = pipeline, reference, processor
        self.max_new_tokens = min(max_new_tokens, pipeline.spec.max_new_tokens)
        self.tolerances = Tolerances.load(pipeline.spec.dtype)
        self.rounding = rounding
        self._divergences: list[float] = []

    def run(self, probe: Probe, keep: Keep | None, original: "Original | None" = None) -> CaseReport:
        """All stages of one probe at one budget (None for an unpruned bundle).

        ``original`` is what :meth:`against_original` gave before the reference's weights were rounded.
        """
        stages = tuple(self._stages(probe, keep))
        if original is not None:
            stages = tuple(replace(s, agreement=original.agreement.get(s.stage)) for s in stages)
            if self.rounding:
                stages += (compare_distributions(original.divergences, self.rounding),)
        return CaseReport(probe.name, probe.text, keep, stages)

    def against_original(self, probe: Probe, keep: Keep | None) -> "Original":
        """How far the checkpoint's own weights are; stage 2 given the same stage 1."""
        shares: dict[str, float] = {}
        self._divergences.clear()
        last = "decode_logits" if self.rounding else "prefill_logits"
        for stage in self._stages(probe, keep):
            if stage.agreement is not None:
                shares[stage.stage] = stage.agreement
            if stage.stage == last:
                break  # what follows says nothing more
        return Original(shares, tuple(self._divergences))

    def _stages(self, probe: Probe, keep: Keep | None) -> Iterator[StageResult]:
        spec, prompt_spec = self.pipeline.spec, self.pipeline.prompt_spec
        given = expected_input(
            self.processor,
            probe.pictures,
            probe.prompt,
            chat_template=prompt_spec.chat_template if prompt_spec.given_template else None,
        )
        seen = self._encode_images(given)
        counts = [spec.entering(len(picture.scores), picture.newlines, keep) for picture in seen]
        expected = given.prompt([len(picture.scores) for picture in seen], counts)
        images = self.pipeline.prepare(probe.pictures)
        tokens = self.pipeline.tokenize(probe.prompt, images, keep=keep)
        if fault := compare_tokenized(tokens, expected):
            yield fault  # nothing later can be compared
            return
        yield compare_arrays(
            "preprocessing", stacked([i.pixels for i in images]), given.pixels.numpy(), tolerance=0.0
        )

        visions = self.pipeline.steps.encode_images(images, keep)
        kept = [
            compare_sets("stage1_set", vision.indices, picture.scores.numpy(), count, self.tolerances.score)
            for vision, picture, count in zip(visions, seen, counts, strict=True)
        ]
        if np.isinf(worst(kept).error):
            yield of_pictures(kept, counts)
            return
        features = [
            picture.features[torch.from_numpy(vision.indices)]
            for vision, picture in zip(visions, seen, strict=True)
        ]
        yield of_pictures(list(map(self._features_result, visions, features)), counts)
        if spec.stage1 is not None:
            yield of_pictures(kept, counts)
        yield from self._decoder_stages(
            probe,
            keep,
            tokens,
            visions,
            given,
            expected,
            torch.cat(features),
            list(map(picture_counts, visions, seen)) if spec.proportional else [],
        )

    def _encode_images(self, given: ExpectedInput) -> tuple[VisionReference, ...]:
        """Visual tokens of each picture, with the scores of the bundle's stage before the decoder."""
        stage = self.pipeline.spec.stage1
        if stage is None:
            return self.reference.encode_images(given.pictures)
        newline = -STAYS if stage.share is None else STAYS
        return self.reference.encode_images(given.pictures, score=stage.score, newline=newline)

    def _features_result(self, vision: VisionOutput, features: torch.Tensor) -> StageResult:
        found = on_host(vision.features)[0, :, : features.shape[1]].astype(np.float32, copy=False)
        return compare_arrays("vision_features", found, features.numpy(), self.tolerances.vision_features)

    def _decoder_stages(
        self,
        probe: Probe,
        keep: Keep | None,
        tokens: TokenizedPrompt,
        visions: Sequence[VisionOutput],
        given: ExpectedInput,
        wanted: ExpectedPrompt,
        features: torch.Tensor,
        counts: Sequence[torch.Tensor],
    ) -> Iterator[StageResult]:
        state = self.pipeline.steps.prefill(tokens, *visions, keep=keep)
        if fault := positions_fault(
            len(wanted.input_ids), wanted.image_positions.numpy(), state.stage_positions
        ):
            yield fault
            return
        inside = self.pipeline.spec.decoder_stages
        places = [stage.after_layer for stage in inside]
        expected = self.reference.prefill(
            wanted.input_ids,
            features,
            wanted.image_positions,
            wanted.query_positions,
            stages=list(zip(places, map(torch.from_numpy, state.stage_positions), strict=True)),
            scores=[stage.score for stage in inside],
            biases=list(map(torch.from_numpy, cached_biases(self.pipeline.spec, state))),
        )
        yield from self._kept_stages(keep, tokens, state, expected)
        if counts:
            stood_for = [torch.cat(list(counts)), *expected.counts]
            yield from count_stages(self.pipeline.spec, tokens, state, stood_for, self.tolerances.counts)
        yield compare_arrays(
            "prefill_logits", state.logits, expected.logits.numpy(), self.tolerances.prefill_logits
        )
        yield from self._cache_stages(state, expected)
        forced = None
        if not self.pipeline.spec.schedule:
            forced = self.reference.generate(
                given.full_ids,
                given.pictures,
                max_new_tokens=self.max_new_tokens,
                end_token_ids=self.pipeline.end_token_ids,
            )
        teacher, logits = self._teach(expected, forced)
        yield self._decode_stage(state, teacher, logits)
        yield from self._append_stage(state, expected, given, teacher)
        yield self._greedy_stage(probe, keep, teacher, logits)

    def _kept_stages(
        self, keep: Keep | None, tokens: TokenizedPrompt, state: DecodeState, expected: PrefillReference
    ) -> Iterator[StageResult]:
        """The visual tokens that each stage inside the decoder kept of those that came to it."""
        visual = tokens.image_positions[0]
        budgets = self.pipeline.spec.budgets(keep, entering=len(visual))
        stages = zip(state.stage_positions, expected.scores, budgets, strict=True)
        for number, (positions, scores, budget) in enumerate(stages, start=2):
            kept = np.flatnonzero(np.isin(visual, positions))
            wanted = scores.numpy()
            if self.pipeline.spec.adapts and number == len(budgets) + 1:
                mass = self.pipeline.spec.schedule[-1].mass or 0.0
                budget = fewest_of_mass(
                    wanted, budget, mass, found=len(kept), tolerance=self.tolerances.score
                )
            yield compare_sets(f"stage{number}_set", kept, wanted, budget, self.tolerances.score)
            visual = visual[kept]

    def _cache_stages(self, state: DecodeState, expected: PrefillReference) -> Iterator[StageResult]:
        spec = self.pipeline.spec
        for name, group, rows in zip(group_names(spec), spec.groups, state.lengths.tolist(), strict=True):
            yield worst(
                [self._cache_result(f"kv_cache_{name}", state, expected, n, rows) for n in group.layers]
            )

    def _cache_result(
        self, stage: str, state: DecodeState, expected: PrefillReference, layer: int, rows: int
    ) -> StageResult:
        stored = expected.cache.layers[layer]
        results = []
        for name, wanted in zip(past_names(layer), (stored.keys, stored.values), strict=True):
            found = state.caches.numpy(name)[:, :, :rows].astype(np.float32)
            result = compare_arrays(stage, found, wanted.numpy(), self.tolerances.kv_cache)
            results.append(replace(result, detail=f"{name}: {result.detail}"))
        return worst(results)

    def _decode_stage(self, state: DecodeState, teacher: list[int], logits: list[Array]) -> StageResult:
        """The reference's answer, fed token by token."""
        results = []
        for token, wanted in zip(teacher, logits[1:], strict=True):
            self.pipeline.steps.decode(state, token)
            found = state.logits
            self._divergences.append(divergence(found, wanted))
            results.append(compare_arrays("decode_logits", found, wanted, self.tolerances.decode_logits))
        return worst(results)

    def _append_stage(
        self,
        state: DecodeState,
        expected: PrefillReference,
        given: ExpectedInput,
        answer: list[int],
    ) -> Iterator[StageResult]:
        """Another question behind the answer: all but its last token at once, then that one."""
        spec = self.pipeline.spec
        room = min(group.capacity - n for group, n in zip(spec.groups, state.lengths, strict=True))
        question = self.processor.tokenizer(FOLLOW_UP, add_special_tokens=False)["input_ids"][:room]
        if spec.append_tokens == 1 or len(question) < 2:
            return  # a bundle from before there were conversations, or without room for one
        if not self.pipeline.spec.schedule:
            ids = torch.cat([given.full_ids, torch.tensor([*answer, *question])])
            wanted = list(self.reference.forward(ids, given.pictures, rows=2))
        else:
            wanted = [self.reference.decode(expected, token) for token in question][-2:]
        results = []
        for some, logits in zip((question[:-1], question[-1:]), wanted, strict=True):
            self.pipeline.steps.decode(state, *some)
            results.append(
                compare_arrays("append_logits", state.logits, logits.numpy(), self.tolerances.decode_logits)
            )
        yield worst(results)

    def _greedy_stage(
        self, probe: Probe, keep: Keep | None, teacher: list[int], logits: list[Array]
    ) -> StageResult:
        """The answer as users get it."""
        answer = self.pipeline.generate(
            probe.pictures, probe.prompt, keep=keep, max_new_tokens=self.max_new_tokens
        )
        try:
            found = list(answer.result().token_ids)
        except NonFiniteError as error:
            return StageResult("greedy_tokens", "fail", float("inf"), 0.0, str(error))
        return compare_tokens("greedy_tokens", found, teacher, logits, self.tolerances.token_margin)

    def _teach(self, expected: PrefillReference, forced: list[int] | None) -> tuple[list[int], list[Array]]:
        """Tokens of the reference, greedy or ``forced``; logits before each and after the last."""
        ends = self.pipeline.end_token_ids
        limit = len(forced) if forced else self.max_new_tokens
        tokens: list[int] = []
        logits = [expected.logits.numpy()]
        while len(tokens) < limit and not (tokens and tokens[-1] in ends):
            tokens.append(forced[len(tokens)] if forced else int(logits[-1].argmax()))
            logits.append(self.reference.decode(expected, tokens[-1]).numpy())
        return tokens, logits
