"""Smaller KV caches give what the bundle's own give: TensorRT has engines of their own for each size."""

from collections.abc import Sequence

import numpy as np

from star_export.answer.pipeline import Pipeline
from star_export.answer.steps import VisionOutput
from star_export.preprocessing import TokenizedPrompt
from star_export.validation.probes import Probe
from star_export.validation.report import StageResult
from star_export.validation.verdicts import Array, Tolerances, compare_arrays, worst

#: Tokens that are appended to every prompt.
STEPS = 3


def compare_capacities(
    pipeline: Pipeline, probes: Sequence[Probe], rooms: Sequence[int]
) -> tuple[StageResult, ...]:
    """Read each prompt and append tokens in caches of each size, and in the bundle's own.

    Args:
        pipeline: The bundle, loaded by a backend that has these sizes.
        probes: Pictures and prompts; those that are too long for a size are left out there.
        rooms: Tokens of text and answer that the smaller caches have room for.

    Returns:
        A stage for each room that a probe fits into.
    """
    results = [[r for probe in probes if (r := _compare(pipeline, probe, room))] for room in rooms]
    return tuple(worst(of_room) for of_room in results if of_room)


def _compare(pipeline: Pipeline, probe: Probe, room: int) -> StageResult | None:
    """Logits in both sizes of caches; None where the smaller one has no room."""
    spec = pipeline.spec
    images = pipeline.prepare(probe.pictures)
    tokens = pipeline.tokenize(probe.prompt, images)
    visual, small = tokens.image_positions.shape[1], spec.capacities_with(room)
    steps = min(STEPS, spec.max_new_tokens)
    lengths = spec.lengths(tokens.input_ids.shape[1] - visual, visual)
    if any(length + steps > most for length, most in zip(lengths, small, strict=True)):
        return None
    visions = pipeline.steps.encode_images(images)
    found, expected = (
        _logits(pipeline, tokens, visions, capacities, steps) for capacities in (small, spec.capacities)
    )
    tolerance = Tolerances.load(spec.dtype).decode_logits
    return compare_arrays(f"decode_room_{room}", found, expected, tolerance)


def _logits(
    pipeline: Pipeline,
    tokens: TokenizedPrompt,
    visions: Sequence[VisionOutput],
    capacities: tuple[int, ...],
    steps: int,
) -> Array:
    """After the prompt and after each of ``steps`` tokens: float32 ``[1 + steps, vocab]``."""
    caches = pipeline.session.allocate_caches(1, capacities)
    state = pipeline.steps.prefill(tokens, *visions, caches=caches)
    logits = [state.logits]
    for token in np.random.default_rng(0).integers(pipeline.spec.model.text.vocab_size, size=steps).tolist():
        pipeline.steps.decode(state, token)
        logits.append(state.logits)
    return np.stack(logits)
