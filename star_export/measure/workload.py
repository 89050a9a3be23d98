"""What the sides of a benchmark do, and the four numbers that each is timed by."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from star_export.engines import Runtime
from star_export.engines.session import Closing
from star_export.specs import Keep


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What every side does.

    Attributes:
        bundle: The pruned bundle.
        baseline: The same model built with ``--no-prune``.
        checkpoint: The model in Hugging Face layout.
        picture: The picture's file.
        text: The prompt, rendered, with its image token.
        keep: Budget of the pruned bundle; its own when None.
        others: Further bundles of the same model, by the names of their sides.
        asked: Budget of those of them that prune; each one's own when None.
        new_tokens: Tokens to decode after the first.
        runtime: What runs the bundles; Hugging Face takes its threads.
    """

    bundle: Path
    baseline: Path
    checkpoint: Path
    picture: Path
    text: str
    keep: Keep | None
    others: Mapping[str, Path]
    asked: Keep | None
    new_tokens: int
    runtime: Runtime


@dataclass(frozen=True)
class Sample:
    """Milliseconds of one request.

    Attributes:
        vision: Preprocessed pixels to projected features.
        prefill: Features and prompt to the first logits.
        decode: One more token, mean over the tokens of this request.
        ttft: Picture file and prompt to the first token.
    """

    vision: float
    prefill: float
    decode: float
    ttft: float


class Side(Closing, Protocol):
    """One system under test."""

    def measure(self, workload: Workload) -> Sample:
        """Answer once and take the time."""


def make_sample(start: float, ready: float, seen: float, first: float, new_tokens: int) -> Sample:
    """A sample from the moments (seconds) at which its steps were done; decode ends now."""
    now = time.perf_counter()
    return Sample(
        vision=1000 * (seen - ready),
        prefill=1000 * (first - seen),
        decode=1000 * (now - first) / new_tokens,
        ttft=1000 * (first - start),
    )
