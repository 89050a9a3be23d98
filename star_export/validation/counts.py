"""Parity of proportional attention: what each visual token that is kept stands for."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from star_export.answer.steps import DecodeState, VisionOutput
from star_export.contract import group_names, past_bias
from star_export.preprocessing import TokenizedPrompt
from star_export.specs import ExportSpec
from star_export.validation.reference import VisionReference
from star_export.validation.reference_scores import stands_for
from star_export.validation.report import StageResult
from star_export.validation.verdicts import Array


def picture_counts(vision: VisionOutput, picture: VisionReference) -> torch.Tensor:
    """How many visual tokens of a picture each that the bundle kept stands for ``[N]``."""
    stays = torch.zeros(len(picture.features), dtype=torch.bool)
    stays[torch.from_numpy(vision.indices)] = True
    return stands_for(picture.features, stays, torch.ones(len(stays)))


def cached_biases(spec: ExportSpec, state: DecodeState) -> list[Array]:
    """Per layer group, what proportional attention adds at each cached token ``[S]``; empty without it."""
    names = list(map(past_bias, group_names(spec))) if spec.proportional else []
    return [
        state.caches.numpy(name)[0, 0, :rows, 0].astype(np.float32)
        for name, rows in zip(names, state.lengths, strict=bool(names))
    ]


def count_stages(
    spec: ExportSpec,
    tokens: TokenizedPrompt,
    state: DecodeState,
    counts: Sequence[torch.Tensor],
    tolerance: float,
) -> Iterator[StageResult]:
    """How many tokens each that is left after a stage stands for: of text, itself.

    Args:
        spec: Of the bundle.
        tokens: The prompt.
        state: After its prefill.
        counts: The reference's of the visual tokens, per stage.
        tolerance: Share of all tokens that may be counted for another one.
    """
    places = [np.arange(tokens.input_ids.shape[1]), *state.stage_positions]
    stages = zip(cached_biases(spec, state), places, counts, strict=True)
    for number, (logs, positions, wanted) in enumerate(stages, start=1):
        expected = np.ones(len(positions), np.float32)
        expected[np.isin(positions, tokens.image_positions[0])] = wanted.numpy()
        yield compare_counts(f"stage{number}_counts", logs, expected, tolerance)


def compare_counts(stage: str, found: Array, expected: Array, tolerance: float) -> StageResult:
    """Compare how many tokens each kept one stands for; one that is as like to two may go to either.

    Args:
        stage: Name of the stage.
        found: The logs of those numbers.
        expected: The reference's numbers.
        tolerance: Share of all tokens that may be counted for another one.
    """
    counts = np.exp(found.astype(np.float64))
    if not np.isfinite(counts).all():
        return StageResult(stage, "fail", float("inf"), tolerance, "some counts are not finite")
    error = float(np.abs(counts - expected).sum() / 2 / expected.sum(dtype=np.float64))
    where = int(np.abs(counts - expected).argmax())
    detail = f"token {where} stands for {counts[where]:.2f}, expected {expected[where]:.2f}"
    return StageResult(stage, "pass" if error <= tolerance else "fail", error, tolerance, detail)
