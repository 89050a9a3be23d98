"""Staged parity of a bundle against PyTorch.

Stages, each with what came before it forced to the bundle's own choices:
preprocessing, vision features, stage-1 set, stage-2 set, prefill logits, KV
caches of both groups, teacher-forced decode logits, greedy tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from star_export.answer.pipeline import Pipeline
from star_export.answer.steps import DecodeState, VisionOutput
from star_export.bundle import PARITY, Bundle, open_bundle
from star_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from star_export.checkpoint.hub import with_revision
from star_export.contract import group_names, past_names
from star_export.engines import Runtime, open_session
from star_export.engines.session import on_host
from star_export.errors import CheckpointError, NonFiniteError, SettingsError, option
from star_export.files import write_json
from star_export.preprocessing import TokenizedPrompt
from star_export.preprocessing.processor import read_processor
from star_export.progress import CaseProgress
from star_export.validation.batches import compare_batches
from star_export.validation.expected import ExpectedInput, compare_tokenized, expected_input
from star_export.validation.nonfinite import WatchedSession
from star_export.validation.probes import Probe
from star_export.validation.reference import PrefillReference, Reference
from star_export.validation.report import CaseReport, ParityReport, StageResult
from star_export.validation.verdicts import (
    Array,
    Tolerances,
    compare_arrays,
    compare_sets,
    compare_tokens,
    worst,
)


class ParityCheck:
    """Compares one pipeline with one reference.

    Args:
        pipeline: The bundle, loaded by any backend.
        reference: The Hugging Face model, its weights rounded as the bundle's.
        processor: The checkpoint's own ``LlavaProcessor``.
        max_new_tokens: Tokens to decode in the last two stages.
    """

    def __init__(
        self, pipeline: Pipeline, reference: Reference, processor: Any, *, max_new_tokens: int
    ) -> None:
        self.pipeline, self.reference, self.processor = pipeline, reference, processor
        self.max_new_tokens = min(max_new_tokens, pipeline.spec.max_new_tokens)
        self.tolerances = Tolerances.load(pipeline.spec.dtype)

    def run(self, probe: Probe, keep: int | None, agreement: Mapping[str, float] | None = None) -> CaseReport:
        """All stages of one probe at one budget (None for an unpruned bundle).

        ``agreement`` is what :meth:`agreement` gave before the reference's weights were rounded.
        """
        stages = tuple(self._stages(probe, keep))
        if agreement is not None:
            stages = tuple(replace(s, agreement=agreement.get(s.stage)) for s in stages)
        return CaseReport(probe.name, probe.prompt, keep, stages)

    def agreement(self, probe: Probe, keep: int | None) -> dict[str, float]:
        """Share of kept tokens that the reference keeps too, by stage; stage 2 given the same stage 1."""
        shares: dict[str, float] = {}
        for stage in self._stages(probe, keep):
            if stage.agreement is not None:
                shares[stage.stage] = stage.agreement
            if stage.stage == "prefill_logits":
                break  # what follows is not about kept tokens
        return shares

    def _stages(self, probe: Probe, keep: int | None) -> Iterator[StageResult]:
        spec = self.pipeline.spec
        prompt_spec = self.pipeline.prompt_spec
        expected = expected_input(
            self.processor,
            probe.picture,
            probe.prompt,
            image_tokens=spec.image_tokens,
            chat_template=prompt_spec.chat_template if prompt_spec.given_template else None,
        )
        (image,) = self.pipeline.prepare(probe.picture)
        tokens = self.pipeline.tokenize(probe.prompt, [image])
        if fault := compare_tokenized(tokens, expected):
            yield fault  # nothing later can be compared
            return
        yield compare_arrays("preprocessing", image.pixels, expected.pixel_values.numpy(), 0.0)

        vision = self.pipeline.steps.encode_image(image)
        seen = self.reference.encode_image(expected.pixel_values)
        stage1 = compare_sets(
            "stage1_set", vision.indices, seen.scores.numpy(), spec.image_tokens, self.tolerances.score
        )
        if np.isinf(stage1.error):
            yield stage1
            return
        features = seen.features[torch.from_numpy(vision.indices)]
        yield compare_arrays(
            "vision_features",
            on_host(vision.features)[0].astype(np.float32, copy=False),
            features.numpy(),
            self.tolerances.vision_features,
        )
        if keep is not None:
            yield stage1
        yield from self._decoder_stages(probe, keep, tokens, vision, expected, features)

    def _decoder_stages(
        self,
        probe: Probe,
        keep: int | None,
        tokens: TokenizedPrompt,
        vision: VisionOutput,
        wanted: ExpectedInput,
        features: torch.Tensor,
    ) -> Iterator[StageResult]:
        state = self.pipeline.steps.prefill(tokens, vision, keep=keep or 0)
        if fault := _positions_fault(wanted, state):
            yield fault
            return
        places = [stage.after_layer for stage in self.pipeline.spec.decoder_stages]
        expected = self.reference.prefill(
            wanted.input_ids,
            features,
            wanted.image_positions,
            wanted.query_positions,
            stages=list(zip(places, map(torch.from_numpy, state.stage_positions), strict=True)),
        )
        yield from self._kept_stages(keep, tokens, state, expected)
        yield compare_arrays(
            "prefill_logits", state.logits, expected.logits.numpy(), self.tolerances.prefill_logits
        )
        yield from self._cache_stages(state, expected)
        forced = None
        if keep is None:
            forced = self.reference.generate(
                wanted.full_ids,
                wanted.pixel_values,
                max_new_tokens=self.max_new_tokens,
                end_token_ids=self.pipeline.end_token_ids,
            )
        yield from self._token_stages(probe, keep, state, *self._teach(expected, forced))

    def _kept_stages(
        self, keep: int | None, tokens: TokenizedPrompt, state: DecodeState, expected: PrefillReference
    ) -> Iterator[StageResult]:
        """The visual tokens that each stage inside the decoder kept of those that came to it."""
        visual, budgets = tokens.image_positions[0], self.pipeline.spec.budgets(keep)
        stages = zip(state.stage_positions, expected.scores, budgets, strict=True)
        for number, (positions, scores, budget) in enumerate(stages, start=2):
            kept = np.flatnonzero(np.isin(visual, positions))
            yield compare_sets(f"stage{number}_set", kept, scores.numpy(), budget, self.tolerances.score)
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

    def _token_stages(
        self, probe: Probe, keep: int | None, state: DecodeState, teacher: list[int], logits: list[Array]
    ) -> Iterator[StageResult]:
        results = []
        for token, wanted in zip(teacher, logits[1:], strict=True):
            self.pipeline.steps.decode(state, token)
            results.append(
                compare_arrays("decode_logits", state.logits, wanted, self.tolerances.decode_logits)
            )
        yield worst(results)
        answer = self.pipeline.generate(
            probe.picture, probe.prompt, keep=keep, max_new_tokens=self.max_new_tokens
        )
        try:
            found = list(answer.result().token_ids)
        except NonFiniteError as error:
            yield StageResult("greedy_tokens", "fail", float("inf"), 0.0, str(error))
            return
        yield compare_tokens("greedy_tokens", found, teacher, logits, self.tolerances.token_margin)

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


def check_bundle(
    folder: Path,
    *,
    model: str | None = None,
    runtime: Runtime | None = None,
    keep: Sequence[int] = (),
    probes: Sequence[Probe],
    max_new_tokens: int = 8,
    progress: CaseProgress = lambda _done, _total: None,
) -> ParityReport:
    """Check a bundle against the checkpoint it was made from, and write ``parity.json`` into it.

    Args:
        folder: The bundle; every file is hashed first.
        model: Where the checkpoint is now; by default where the manifest says it was.
        runtime: What runs the graphs.
        keep: Budgets to check; the bundle's own by default.
        probes: Pictures and prompts to check with.
        max_new_tokens: Tokens to decode.
        progress: Called with cases done and cases in all.

    Raises:
        BundleError, CheckpointError, SettingsError: If it cannot run.
    """
    bundle, runtime = open_bundle(folder, verify=True), runtime or Runtime()
    if not probes:
        raise SettingsError("a check needs at least one picture")
    if not bundle.spec.schedule and keep:
        raise SettingsError(
            f"this bundle was built with {option('prune', False)}; {option('keep')} has no meaning for it"
        )
    with WatchedSession(open_session(bundle, runtime), bundle) as session:
        pipeline = Pipeline(bundle, session)
        budgets = [pipeline.budget(k) for k in keep or (None,)] if bundle.spec.schedule else [None]
        checkpoint = _source_checkpoint(bundle, model)
        reference, processor = Reference(checkpoint.folder), read_processor(checkpoint.folder)
        check = ParityCheck(pipeline, reference, processor, max_new_tokens=max_new_tokens)
        cases = _run(check, [(probe, budget) for probe in probes for budget in budgets], progress)
        batches = compare_batches(pipeline, probes)
    versions = {name: version(name) for name in ("torch", "transformers", "onnxruntime")}
    if (facts := runtime.entry.facts(bundle)) is not None:
        versions[facts.backend] = facts.version
    report = ParityReport(
        bundle=str(folder),
        backend=runtime.backend,
        reference=str(checkpoint.folder),
        dtype=bundle.spec.dtype,
        cases=cases,
        batches=batches,
        versions=versions,
        nonfinite=session.found,
    )
    write_json(bundle.path(PARITY), report.to_dict())
    return report


def _run(
    check: ParityCheck, wanted: Sequence[tuple[Probe, int | None]], progress: CaseProgress
) -> tuple[CaseReport, ...]:
    """Every probe at every budget; agreement is measured before the reference's weights are rounded."""
    spec = check.pipeline.spec
    agreements: list[dict[str, float] | None] = [None] * len(wanted)
    if spec.dtype != "float32":
        if spec.schedule:
            agreements = [check.agreement(*case) for case in wanted]
        check.reference.round_weights(spec.weight_dtype)
    cases: list[CaseReport] = []
    for case, agreement in zip(wanted, agreements, strict=True):
        progress(len(cases), len(wanted))
        cases.append(check.run(*case, agreement))
    return tuple(cases)


def _source_checkpoint(bundle: Bundle, model: str | None) -> Checkpoint:
    """The checkpoint to compare with; must have the shape the bundle was made from."""
    made_from = bundle.manifest["source"]
    source = model or with_revision(made_from["model"], made_from["revision"])
    try:
        checkpoint = open_checkpoint(source)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error.marked} (check needs the source checkpoint; give it with {option('model')})"
        ) from error
    if checkpoint.model != bundle.spec.model:
        raise CheckpointError(f"{source} has another architecture than the model this bundle was made from")
    return checkpoint


def _positions_fault(wanted: ExpectedInput, state: DecodeState) -> StageResult | None:
    """A failed stage if the positions that a prefill says it kept cannot be, else None."""
    before = np.arange(len(wanted.input_ids))
    text = np.setdiff1d(before, wanted.image_positions.numpy())
    for number, kept in enumerate(state.stage_positions, start=2):
        fault = None
        if not len(kept) or (np.diff(kept) <= 0).any() or not np.isin(kept, before).all():
            fault = "kept positions do not ascend or leave the prompt"
        elif len(missing := np.setdiff1d(text, kept)):
            fault = f"text positions {missing[:5].tolist()} were pruned"
        if fault:
            return StageResult(f"stage{number}_set", "fail", float("inf"), 0.0, fault)
        before = kept
    return None
