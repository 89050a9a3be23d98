"""Batches equal singles: decode at every batch size, against the same sequences one at a time.

Runtimes have been seen to be right for one sequence and silently wrong for several (TensorRT issue
4853). The rows differ in picture, length and budget, so that none can pass for another.
"""

from collections.abc import Sequence

import numpy as np

from star_export.answer.pipeline import Pipeline
from star_export.answer.steps import Steps
from star_export.engines.session import Caches, Int64
from star_export.errors import InputError, SettingsError
from star_export.preprocessing import PreparedImage, TokenizedPrompt
from star_export.validation.probes import Messages, Probe
from star_export.validation.report import StageResult
from star_export.validation.verdicts import Array, Tolerances, compare_arrays, worst

#: Sequences at once where only memory limits them.
LARGEST = 4

#: Tokens that are appended to every row.
STEPS = 3


def compare_batches(pipeline: Pipeline, probes: Sequence[Probe]) -> tuple[StageResult, ...]:
    """Decode several sequences together, and compare with each alone.

    Args:
        pipeline: The bundle, loaded by any backend.
        probes: Pictures and prompts, which the rows take in turn.

    Returns:
        A stage for 2 sequences and one for the largest batch; none where one is all that can be decoded.
    """
    most = pipeline.session.max_batch or LARGEST
    sizes = sorted({2, most}, reverse=True) if most > 1 else []
    if not sizes:
        return ()
    tolerance = Tolerances.load(pipeline.spec.dtype).decode_logits
    caches = pipeline.session.allocate_caches(most)
    try:
        rows = [caches.rows(row, row + 1) for row in range(most)]
    except SettingsError:  # TensorRT cannot use them one by one: the scheduler refuses such a bundle too
        return ()
    lengths = _fill(pipeline, probes, rows)
    steps = min(STEPS, pipeline.spec.max_new_tokens)
    found = []
    for size in sizes:
        # Other tokens for every size: what the one before has left behind in the caches is of no use.
        tokens = np.random.default_rng(size).integers(pipeline.spec.model.text.vocab_size, size=(steps, size))
        together = _decode(pipeline.steps, caches.rows(0, size), tokens, lengths[:, :size])
        alone = [
            _decode(pipeline.steps, rows[row], tokens[:, row : row + 1], lengths[:, row : row + 1])
            for row in range(size)
        ]
        pairs = zip(together.swapaxes(0, 1), np.concatenate(alone, axis=1).swapaxes(0, 1), strict=True)
        results = [compare_arrays(f"decode_batch_{size}", *pair, tolerance) for pair in pairs]
        found.append(worst(results))
    return tuple(reversed(found))


def _fill(pipeline: Pipeline, probes: Sequence[Probe], rows: Sequence[Caches]) -> Int64:
    """Prefill every row with a request of its own; the lengths of its caches ``[groups, B]``."""
    lengths = []
    for row, caches in enumerate(rows):
        probe = probes[row % len(probes)]
        images = pipeline.prepare(probe.pictures)
        visions = pipeline.steps.encode_images(images)
        tokens, keep = _prompt(pipeline, images, probe.prompt, row), None
        if pipeline.spec.schedule:
            keep = max(1, pipeline.spec.schedule[-1].max_tokens * (len(rows) - row) // len(rows))
        lengths.append(pipeline.steps.prefill(tokens, *visions, keep=keep, caches=caches).lengths)
    return np.stack(lengths, axis=1)


def _prompt(
    pipeline: Pipeline, images: Sequence[PreparedImage], prompt: str | Messages, row: int
) -> TokenizedPrompt:
    """A prompt that is longer in every row, as long as the bundle has room."""
    try:
        return pipeline.tokenize(prompt + " Why?" * row if isinstance(prompt, str) else prompt, images)
    except InputError:
        return pipeline.tokenize(prompt, images)


def _decode(steps: Steps, caches: Caches, tokens: Int64, lengths: Int64) -> Array:
    """Append ``tokens [steps, B]``; logits after each, float32 ``[steps, B, vocab]``."""
    return np.stack([steps.decode_batch(caches, row, lengths + n).numpy() for n, row in enumerate(tokens)])
