"""Comparisons of one stage: arrays, kept sets, token sequences."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources

import numpy as np
import numpy.typing as npt

from star_export.validation.report import StageResult, Status

Array = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Largest error that passes, per stage; ``tolerances/<dtype>.toml`` says where they come from.

    Attributes:
        vision_features, prefill_logits, kv_cache, decode_logits: Largest absolute
            difference, divided by the root mean square of the reference.
        score: Relative score difference below which two tokens tie.
        counts: Share of the tokens that may be counted for another kept one.
        token_margin: Logit difference, divided by the root mean square of the
            logits, below which two next tokens tie.
    """

    vision_features: float
    prefill_logits: float
    kv_cache: float
    decode_logits: float
    score: float
    counts: float
    token_margin: float

    @classmethod
    def load(cls, dtype: str) -> "Tolerances":
        """The declared tolerances of ``dtype``; there is no other way to set one."""
        text = resources.files(__package__).joinpath(f"tolerances/{dtype}.toml").read_text()
        return cls(**tomllib.loads(text))


def compare_arrays(stage: str, found: Array, expected: Array, tolerance: float) -> StageResult:
    """Largest difference of two arrays in units of the reference's root mean square."""
    if found.shape != expected.shape:
        detail = f"shape {list(found.shape)}, expected {list(expected.shape)}"
        return StageResult(stage, "fail", float("inf"), tolerance, detail)
    finite = np.isfinite(found) & np.isfinite(expected)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        detail = f"{found[where]} at {where}, expected {expected[where]}"
        return StageResult(stage, "fail", float("inf"), tolerance, detail)
    scale = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))) or 1.0
    difference = np.abs(found.astype(np.float64) - expected)
    where = tuple(int(i) for i in np.unravel_index(difference.argmax(), difference.shape))
    error = float(difference[where]) / scale
    status: Status = "pass" if error <= tolerance else "fail"
    return StageResult(stage, status, error, tolerance, f"max |difference| / rms, worst at {where}")


def divergence(found: Array, expected: Array) -> float:
    """KL(expected || found), in nats, of the next token's distributions that logits ``[vocab]`` give."""
    wide = [logits.astype(np.float64) for logits in (found, expected)]
    mine, wanted = (logits - np.logaddexp.reduce(logits) for logits in wide)
    return float(np.sum(np.exp(wanted) * (wanted - mine)))


def compare_distributions(divergences: Sequence[float], kind: str) -> StageResult:
    """The mean divergence from the checkpoint's own weights; ``kind`` of integers says how much passes."""
    text = resources.files(__package__).joinpath("tolerances/quantized.toml").read_text()
    limit, mean = float(tomllib.loads(text)[kind]), float(np.mean(divergences))
    detail = f"mean KL of {len(divergences)} next tokens, in nats, as users run it"
    return StageResult("divergence", "pass" if mean <= limit else "fail", mean, limit, detail)


def worst(results: list[StageResult]) -> StageResult:
    """The failed result if there is one, else that with the largest error; all of one stage."""
    return max(results, key=lambda result: (result.status == "fail", result.error))


def of_pictures(results: list[StageResult], counts: Sequence[int]) -> StageResult:
    """The worst result of a request's pictures; ``counts`` of tokens weigh what agrees in each."""
    found = worst(results)
    if len(results) == 1 or np.isinf(found.error):
        return found
    found = replace(found, detail=f"picture {results.index(found) + 1}: {found.detail}")
    if found.agreement is None:
        return found
    shares = [result.agreement or 0.0 for result in results]
    return replace(found, agreement=float(np.average(shares, weights=counts)))


def compare_sets(stage: str, found: Indices, scores: Array, count: int, tolerance: float) -> StageResult:
    """Compare kept tokens with those the reference's scores choose.

    Args:
        stage: Name of the stage.
        found: Kept indices, which must ascend without repeats.
        scores: The reference's score of every candidate.
        count: How many must be kept, at least 1.
        tolerance: Relative distance from the last kept score within which a token may differ.
    """
    if len(found) != count:
        detail = f"{len(found)} tokens were kept, expected {count}"
        return StageResult(stage, "fail", float("inf"), tolerance, detail)
    if (np.diff(found) <= 0).any() or found[0] < 0 or found[-1] >= len(scores):
        return StageResult(stage, "fail", float("inf"), tolerance, "indices do not ascend or leave the range")
    if not np.isfinite(scores).all():  # no order to agree with
        detail = f"the reference's score of token {int(np.isfinite(scores).argmin())} is not finite"
        return StageResult(stage, "fail", float("inf"), tolerance, detail)
    expected = np.sort(np.argsort(-scores, kind="stable")[: len(found)])
    differing = np.setxor1d(found, expected)
    same = len(found) - len(differing) // 2
    agreement, share = f"{same} of {len(found)} tokens agree", same / len(found)
    if not len(differing):
        return StageResult(stage, "pass", 0.0, tolerance, agreement, share)
    threshold = scores[expected].min()
    distance = np.abs(scores[differing] - threshold) / max(abs(threshold), _TINY)
    error = float(distance.max())
    detail = f"{agreement}; farthest from the last kept score: token {differing[distance.argmax()]}"
    status: Status = "ambiguous" if error <= tolerance else "fail"
    return StageResult(stage, status, error, tolerance, detail, share)


def fewest_of_mass(scores: Array, most: int, mass: float, *, found: int, tolerance: float) -> int:
    """How many of the best scores reach a part of their sum; ``found``, where rounding alone decides that.

    Args:
        scores: Of every candidate.
        most: How many there may be.
        mass: The part.
        found: How many the bundle kept.
        tolerance: Relative distance of the part that counts as rounding.
    """
    sums = np.cumsum(np.sort(scores.astype(np.float64))[::-1]) / scores.sum(dtype=np.float64)
    fewest, largest = (
        min(most, int(np.searchsorted(sums, part)) + 1)
        for part in (mass * (1 - tolerance), mass * (1 + tolerance))
    )
    return min(max(found, fewest), largest)


def positions_fault(tokens: int, visual: Indices, stages: Sequence[Indices]) -> StageResult | None:
    """A failed stage if the positions that a prefill says it kept cannot be, else None.

    Args:
        tokens: Of the prompt.
        visual: Positions of visual tokens.
        stages: Positions that each stage inside the decoder kept.
    """
    before = np.arange(tokens)
    text = np.setdiff1d(before, visual)
    for number, kept in enumerate(stages, start=2):
        fault = None
        if not len(kept) or (np.diff(kept) <= 0).any() or not np.isin(kept, before).all():
            fault = "kept positions do not ascend or leave the prompt"
        elif len(missing := np.setdiff1d(text, kept)):
            fault = f"text positions {missing[:5].tolist()} were pruned"
        if fault:
            return StageResult(f"stage{number}_set", "fail", float("inf"), 0.0, fault)
        before = kept
    return None


def compare_tokens(
    stage: str, found: list[int], expected: list[int], logits: list[Array], tolerance: float
) -> StageResult:
    """Compare greedy tokens; the first difference may be a near-tie, later ones follow from it.

    Args:
        stage: Name of the stage.
        found: Tokens of the bundle.
        expected: Tokens of the reference.
        logits: The reference's logits before each expected token.
        tolerance: Distance of the two logits, in units of the logits' root mean square, that counts as a tie.
    """
    agree = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), None)
    if agree is None and len(found) == len(expected):
        return StageResult(stage, "pass", 0.0, tolerance, f"{len(expected)} tokens agree")
    if agree is None:
        detail = f"{len(found)} tokens, expected {len(expected)}"
        return StageResult(stage, "fail", float("inf"), tolerance, detail)
    row = logits[agree].astype(np.float64)
    detail = f"token {agree} is {found[agree]}, expected {expected[agree]}"
    if not np.isfinite(row).all():
        return StageResult(stage, "fail", float("inf"), tolerance, f"{detail}; its logits are not finite")
    # Either sign: a reference that takes the lower logit contradicts itself, which is no tie.
    difference = abs(float(row[expected[agree]] - row[found[agree]]))
    margin = difference / max(float(np.sqrt(np.mean(row**2))), _TINY)
    status: Status = "ambiguous" if margin <= tolerance else "fail"
    return StageResult(stage, status, margin, tolerance, detail)
