"""Staged parity of a bundle against PyTorch.

Stages, each with what came before it forced to the bundle's own choices:
preprocessing, vision features, stage-1 set, stage-2 set, prefill logits, KV
caches of both groups, teacher-forced decode logits, greedy tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from star_export.bundle import PARITY, Bundle, open_bundle
from star_export.checkpoint import Checkpoint, open_checkpoint
from star_export.contract import past_names
from star_export.engines import open_session
from star_export.engines.session import DeviceArray
from star_export.errors import CheckpointError, SettingsError
from star_export.files import write_json
from star_export.pipeline import DecodeState, Pipeline, VisionOutput, stage2_indices
from star_export.preprocessing import TokenizedPrompt, pixel_values, render
from star_export.preprocessing.convert import read_processor
from star_export.preprocessing.prompts import has_bos
from star_export.validation.compare import (
    Array,
    Tolerances,
    compare_arrays,
    compare_sets,
    compare_tokens,
    worst,
)
from star_export.validation.probes import Probe
from star_export.validation.reference import PrefillReference, Reference
from star_export.validation.report import CaseReport, ParityReport, StageResult


class ParityCheck:
    """Compares one pipeline with one reference.

    Args:
        pipeline: The bundle, loaded by any backend.
        reference: The Hugging Face model of the same weights.
        processor: The checkpoint's own ``LlavaProcessor``.
        max_new_tokens: Tokens to decode in the last two stages.
    """

    def __init__(
        self, pipeline: Pipeline, reference: Reference, processor: Any, *, max_new_tokens: int
    ) -> None:
        self.pipeline, self.reference, self.processor = pipeline, reference, processor
        self.max_new_tokens = min(max_new_tokens, pipeline.spec.max_new_tokens)
        self.tolerances = Tolerances.load(pipeline.spec.dtype)

    def run(self, probe: Probe, keep: int | None) -> CaseReport:
        """All stages of one probe at one budget (None for an unpruned bundle)."""
        return CaseReport(probe.name, probe.prompt, keep, tuple(self._stages(probe, keep)))

    def _stages(self, probe: Probe, keep: int | None) -> Iterator[StageResult]:
        tokens = self.pipeline.tokenize(probe.prompt)
        pixels = pixel_values(probe.picture, self.pipeline.image_spec)
        yield self._preprocessing(probe, tokens, pixels)

        vision = self.pipeline.encode_image(pixels)
        seen = self.reference.encode_image(torch.from_numpy(pixels))
        stage1 = compare_sets("stage1_set", vision.indices, seen.scores.numpy(), self.tolerances.score)
        if np.isinf(stage1.error):  # nothing later can be compared
            yield stage1
            return
        features = seen.features[torch.from_numpy(vision.indices)]
        yield compare_arrays(
            "vision_features", _host(vision.features)[0], features.numpy(), self.tolerances.vision_features
        )
        if keep is not None:
            yield stage1
        yield from self._decoder_stages(probe, keep, tokens, pixels, vision, features)

    def _preprocessing(self, probe: Probe, tokens: TokenizedPrompt, pixels: Array) -> StageResult:
        """The bundle's own preprocessing against the checkpoint's processor; exact."""
        text = render(probe.prompt, self.pipeline.prompt_spec)
        spec = self.pipeline.prompt_spec
        expected = self.processor(
            images=probe.picture,
            text=text,
            return_tensors="pt",
            add_special_tokens=not has_bos(text, spec),
        )
        image_token = spec.image_token_id
        wanted = [token for token in expected["input_ids"][0].tolist() if token != image_token]
        found = [token for token in tokens.input_ids[0].tolist() if token != image_token]
        if found != wanted:
            return StageResult(
                "preprocessing", "fail", float("inf"), 0.0, f"text tokens {found}, expected {wanted}"
            )
        return compare_arrays("preprocessing", pixels, expected["pixel_values"].float().numpy(), 0.0)

    def _decoder_stages(
        self,
        probe: Probe,
        keep: int | None,
        tokens: TokenizedPrompt,
        pixels: Array,
        vision: VisionOutput,
        features: torch.Tensor,
    ) -> Iterator[StageResult]:
        state = self.pipeline.prefill(tokens, vision, keep=keep or 0)
        if fault := _position_fault(tokens, state.kept_positions, keep):
            yield StageResult("stage2_set", "fail", float("inf"), 0.0, fault)
            return
        star = self.pipeline.spec.star
        expected = self.reference.prefill(
            torch.from_numpy(tokens.input_ids[0]),
            features,
            torch.from_numpy(tokens.image_positions[0]),
            torch.from_numpy(tokens.query_positions[0]),
            prune_layer=star.prune_layer if star else None,
            kept_positions=torch.from_numpy(state.kept_positions),
        )
        if expected.scores is not None:
            kept = np.array(stage2_indices(tokens, state.kept_positions))
            yield compare_sets("stage2_set", kept, expected.scores.numpy(), self.tolerances.score)
        yield compare_arrays(
            "prefill_logits", state.logits, expected.logits.numpy(), self.tolerances.prefill_logits
        )
        yield from self._cache_stages(state, expected)
        yield from self._token_stages(probe, keep, pixels, state, expected)

    def _cache_stages(self, state: DecodeState, expected: PrefillReference) -> Iterator[StageResult]:
        early = self.pipeline.spec.num_early_layers
        layers = range(self.pipeline.spec.model.text.num_layers)
        for group, members in (("early", layers[:early]), ("late", layers[early:])):
            rows = state.position if group == "early" else state.late_length
            results = [
                self._cache_result(f"kv_cache_{group}", state, expected, layer, rows) for layer in members
            ]
            if results:
                yield worst(results)

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
        self,
        probe: Probe,
        keep: int | None,
        pixels: Array,
        state: DecodeState,
        expected: PrefillReference,
    ) -> Iterator[StageResult]:
        forced = None if keep is not None else self._generate(probe, pixels)
        teacher, logits = self._teach(expected, forced)
        results = []
        for token, wanted in zip(teacher, logits[1:], strict=False):
            self.pipeline.decode(state, token)
            results.append(
                compare_arrays("decode_logits", state.logits, wanted, self.tolerances.decode_logits)
            )
        if results:
            yield worst(results)
        answer = self.pipeline.generate(
            probe.picture, probe.prompt, keep=keep, max_new_tokens=self.max_new_tokens
        )
        found = list(answer.result().token_ids)
        yield compare_tokens("greedy_tokens", found, teacher, logits, self.tolerances.token_margin)

    def _generate(self, probe: Probe, pixels: Array) -> list[int]:
        ids = torch.from_numpy(self.pipeline.tokenize(probe.prompt).input_ids[0])
        return self.reference.generate(ids, torch.from_numpy(pixels), max_new_tokens=self.max_new_tokens)

    def _teach(self, expected: PrefillReference, forced: list[int] | None) -> tuple[list[int], list[Array]]:
        """Greedy tokens of the reference, or ``forced`` ones, and the logits before each."""
        ends = self.pipeline.spec.model.eos_token_ids
        tokens: list[int] = []
        logits = [expected.logits.numpy()]
        while True:
            tokens.append(forced[len(tokens)] if forced else int(logits[-1].argmax()))
            if len(tokens) == (len(forced) if forced else self.max_new_tokens) or tokens[-1] in ends:
                return tokens, logits
            logits.append(self.reference.decode(expected, tokens[-1]).numpy())


def check_bundle(
    folder: Path,
    *,
    model: str | None = None,
    backend: str = "onnxruntime",
    keep: Sequence[int] = (),
    probes: Sequence[Probe],
    max_new_tokens: int = 8,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> ParityReport:
    """Check a bundle against the checkpoint it was made from, and write ``parity.json`` into it.

    Args:
        folder: The bundle; every file is hashed first.
        model: Where the checkpoint is now; by default where the manifest says it was.
        backend: What runs the graphs.
        keep: Budgets to check; the bundle's own by default.
        probes: Pictures and prompts to check with.
        max_new_tokens: Tokens to decode.
        progress: Called with cases done and cases in all.

    Raises:
        BundleError, CheckpointError, SettingsError: If it cannot run.
    """
    bundle = open_bundle(folder, verify=True)
    if bundle.spec.star is None and keep:
        raise SettingsError("this bundle was built with --no-prune; --keep has no meaning for it")
    pipeline = Pipeline(bundle, open_session(bundle, backend))
    budgets = [pipeline.budget(k) for k in keep or (None,)] if bundle.spec.star else [None]
    checkpoint = _source_checkpoint(bundle, model)
    check = ParityCheck(
        pipeline,
        Reference(checkpoint.folder, round_to=getattr(torch, bundle.spec.dtype)),
        read_processor(checkpoint.folder),
        max_new_tokens=max_new_tokens,
    )
    cases: list[CaseReport] = []
    for probe in probes:
        for budget in budgets:
            progress(len(cases), len(probes) * len(budgets))
            cases.append(check.run(probe, budget))
    versions = {name: version(name) for name in ("torch", "transformers", "onnxruntime")}
    report = ParityReport(str(folder), str(checkpoint.folder), bundle.spec.dtype, tuple(cases), versions)
    write_json(bundle.path(PARITY), report.to_dict())
    return report


def _source_checkpoint(bundle: Bundle, model: str | None) -> Checkpoint:
    """The checkpoint to compare with; must have the shape the bundle was made from."""
    source = model or bundle.manifest["source"]["model"]
    try:
        checkpoint = open_checkpoint(source)
    except CheckpointError as error:
        raise CheckpointError(f"{error} (check needs the source checkpoint; give it with --model)") from error
    if checkpoint.model != bundle.spec.model:
        raise CheckpointError(f"{source} has another architecture than the model this bundle was made from")
    return checkpoint


def _position_fault(tokens: TokenizedPrompt, kept: npt.NDArray[np.int64], keep: int | None) -> str | None:
    """What is wrong with the positions that a prefill says it kept, or None."""
    length = tokens.input_ids.shape[1]
    if (np.diff(kept) <= 0).any() or kept[0] < 0 or kept[-1] >= length:
        return "kept positions do not ascend or leave the prompt"
    text = np.setdiff1d(np.arange(length), tokens.image_positions[0])
    if missing := np.setdiff1d(text, kept).tolist():
        return f"text positions {missing[:5]} were pruned"
    budget = tokens.image_positions.shape[1] if keep is None else keep
    found = len(kept) - len(text)
    return None if found == budget else f"{found} visual tokens were kept, expected {budget}"


def _host(tensor: DeviceArray) -> Array:
    return tensor.numpy().astype(np.float32, copy=False)
